"""Pruned: what pruning returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from isometry.errors import join_names
from isometry.networks import Size
from isometry.surgery import Plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pruned"]


@dataclass
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the physically smaller network, in eval mode.
        plan: the units that were removed, in the indices of the original network.
        history: what the pruner logged while it trained, one row per epoch; empty for one-shot pruners.
        before, after: `Size` of the original network and of `model`.
        left_alone: {layer: why none of its units were removed}.
        inexact: layers that normalize over channels (LayerNorm, GroupNorm) some of which were removed: their statistics
            change, so that this removal is not exact.
    """

    model: nn.Module
    plan: Plan
    history: pd.DataFrame
    before: Size
    after: Size
    left_alone: dict[str, str]
    inexact: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """The fraction of filters and neurons removed over the layers of the plan.

        A floor or rounding may keep it below the requested one; a global ranking counts coupled layers once.
        """
        return self.plan.ratio

    def __str__(self) -> str:
        layers: dict[str, list[str]] = {}
        for layer, reason in self.left_alone.items():
            layers.setdefault(reason, []).append(layer)
        lines = [str(self.plan), *(f"left alone: {join_names(names)}: {reason}" for reason, names in layers.items())]
        if self.inexact:
            lines.append(f"not exact: {join_names(self.inexact)} normalize over channels some of which were removed")
        sizes = (
            f"{name} {getattr(self.before, key):,} -> {getattr(self.after, key):,}"
            for name, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("bytes", "bytes"))
        )
        return "\n".join([*lines, f"{self.ratio:.1%} of the units removed; {', '.join(sizes)}"])
