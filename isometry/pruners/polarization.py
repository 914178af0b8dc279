"""Polarization of BatchNorm scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from isometry.limits import Number
from isometry.pruners.sparsifying import Sparsifying, scales
from isometry.training.recipe import Regularizer, Schedule, Steps

__all__ = ["Polarization", "Polarizing"]

_SCHEDULE = Steps((0.3, 0.6, 0.8), 0.2)


@dataclass(frozen=True)
class Polarizing(Regularizer):
    """strength x (t ||gamma||_1 - ||gamma - mean||_1) over all BatchNorm scales, which are clamped to [0, bound]."""

    strength: float
    t: float
    bound: float

    def loss(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        every = torch.cat([scale.float() for scale in scales(model, Polarization.kinds)])
        return self.strength * (self.t * every.abs() - (every - every.mean()).abs()).sum()

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        """Clamp the scales to [0, bound], those that are not frozen."""
        for scale in scales(model, Polarization.kinds):
            if scale.requires_grad:
                scale.clamp_(0, self.bound)


@dataclass(frozen=True)
class Polarization(Sparsifying):
    """Drive part of the BatchNorm scales to 0 and the others to a bound, then remove the units of the smallest.

    The paper takes a threshold in the valley of the histogram; here `prune` takes a ratio, as for every pruner.

    Attributes:
        t: share of the plain L1 penalty; at the optimum a fraction 1/2 - t/4 of the scales is at the bound. 1.4:
            ResNet-56 (1.5: VGG-16).
        bound: largest scale.

    Source: Zhuang et al., NeurIPS 2020, "Neuron-level structured pruning using polarization regularizer": strength 5e-5
    for ResNet-56 (3e-5 for VGG-16), 200 epochs (its warm-up epoch is left out), weight decay 5e-4. Its
    scales start at 0.5; here they start where the network has them.
    """

    strength: float = 5e-5
    epochs: int = 200
    batch_size: int = 128
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule | None = _SCHEDULE
    t: float = 1.4
    bound: float = 1.0
    limits: ClassVar[Mapping[str, Number]] = {**Sparsifying.limits, "t": Number(0), "bound": Number(0, above=True)}

    def regularizer(self) -> Regularizer | None:
        """Return the polarizing penalty, with its clamp."""
        return Polarizing(self.strength, self.t, self.bound)
