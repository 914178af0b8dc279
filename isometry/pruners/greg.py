"""GReg: pruning by growing L2 regularization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from isometry.limits import Number
from isometry.pruners.growing import Growing, GrowingPenalty
from isometry.pruners.pruner import PruningContext
from isometry.pruners.stage import Stage
from isometry.surgery import Selection

__all__ = ["ContrastingPenalty", "GReg", "GReg2"]


@dataclass(frozen=True)
class GReg(Growing):
    """GReg-1: a growing L2 penalty on the weights of the selected units.

    Source: Wang et al., ICLR 2021, "Neural pruning via growing regularization"; defaults of its CIFAR experiments.
    """

    magnitude_ratio: float | None = 1000.0
    biases: bool = False
    norms: bool = False
    zero_out: int | None = None


@dataclass(frozen=True)
class GReg2(GReg):
    """GReg-2: a small L2 penalty that grows on all units first and tells them apart; then GReg-1 on the lowest.

    The first stage grows by `pick_delta` every `interval` steps up to `pick`, on all units alike. Then the units of the
    smallest magnitude are selected; their strength grows on by `delta` while that of the kept units falls by as much,
    down to 0.

    Attributes:
        pick_delta: increment of the first stage. 1e-5.
        pick: the strength at which units are selected. 1e-2.

    Source: Wang et al., ICLR 2021, "Neural pruning via growing regularization", section 3.3.
    """

    pick_delta: float = 1e-5
    pick: float = 1e-2
    limits: ClassVar[Mapping[str, Number]] = {
        **Growing.limits,
        "pick_delta": Number(0, above=True),
        "pick": Number(0, above=True),
    }

    def stage_before_selection(self, context: PruningContext) -> Stage | None:
        """Return the training with the penalty on all units."""
        everything = [(group, tuple(range(group.units))) for group in context.groups]
        first = replace(
            self, delta=self.pick_delta, ceiling=self.pick, stabilize=0, magnitude_ratio=None, zero_out=None
        )
        return first.stage("before_selection", GrowingPenalty(first, context, everything))

    def penalty(self, context: PruningContext, selection: Selection) -> GrowingPenalty:
        """Return the penalty that grows on from `pick`, and falls on the kept units."""
        return ContrastingPenalty(self, context, selection)


class ContrastingPenalty(GrowingPenalty):
    """GReg-2's second stage: the strength grows from `pick` on selected units and falls from there on kept ones."""

    pruner: GReg2

    @property
    def growth(self) -> int:
        """How many steps the growth takes at most."""
        return math.ceil((self.pruner.ceiling - self.pruner.pick) / self.pruner.delta - 1e-9) * self.pruner.interval

    def strength_at(self, step: int) -> float:
        """Return the strength that a layer not yet finished has at `step`."""
        return self.pruner.pick + super().strength_at(step)

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Add the gradients on selected and kept units."""
        super().gradients(step)
        falling = self.pruner.pick - self.pruner.delta * (step // self.pruner.interval)
        if falling > 0:
            for layer in self.layers:
                for tensor, selected in layer.penalized:
                    if tensor.grad is not None:
                        tensor.grad.addcmul_(tensor, 1 - selected, value=falling)
