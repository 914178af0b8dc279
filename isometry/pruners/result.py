"""Pruned: what pruning returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from isometry.errors import join_names
from isometry.networks import Size
from isometry.networks.masks import masked_layers
from isometry.surgery import Plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pruned"]


@dataclass
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the physically smaller network, or the masked one after unstructured pruning, in eval mode.
        plan: the units that were removed, in the indices of the original network; empty where weights were masked.
        history: what the pruner logged while it trained, one row per epoch; empty for one-shot pruners
            and for a `Pruning`, whose epochs are the user's.
        before, after: `Size` of the original network and of `model`.
        left_alone: {layer: why none of its units were removed}.
        inexact: layers that normalize over channels (LayerNorm, GroupNorm) some of which were removed: their statistics
            change, so that this removal is not exact.
        input_spec: the `InputSpec` of the inputs it was traced with, or a tuple or dict of several, which `save` stores; None
            where that is not known.
    """

    model: nn.Module
    plan: Plan
    history: pd.DataFrame
    before: Size
    after: Size
    left_alone: dict[str, str]
    inexact: tuple[str, ...] = ()
    input_spec: Any = None

    @property
    def ratio(self) -> float:
        """The fraction of filters and neurons removed over the layers of the plan; of weights masked where the plan is empty.

        A floor or rounding may keep it below the requested one; a global ranking counts coupled layers once.
        """
        return self.plan.ratio if self.plan.widths else self._masked_share

    @property
    def _masked_share(self) -> float:
        """The fraction of weights that masks hold at zero over the layers that have masks; 0 without any."""
        counts = self._kept_weights().values()
        total = sum(weights for _, weights in counts)
        return 1 - sum(kept for kept, _ in counts) / total if total else 0.0

    @property
    def sparsity(self) -> dict[str, float]:
        """{layer: the fraction of its weights that a mask holds at zero}, of the layers of `model` that have masks."""
        return {name: 1 - count / total for name, (count, total) in self._kept_weights().items()}

    def _kept_weights(self) -> dict[str, tuple[int, int]]:
        """Return {layer: (how many weights its mask keeps, how many it has)} of the layers that have masks."""
        return {
            name: (int(layer.weight_mask.count_nonzero()), layer.weight_mask.numel())
            for name, layer in masked_layers(self.model)
        }

    def then(self, later: Pruned) -> Pruned:
        """Return this pruning followed by `later`, a pruning of this one's network, as one of the original network.

        Five rounds of pruning and training are saved as one: `isometry.save(first.then(second), path)` writes a plan in
        the original indices, which `isometry.load(path, model)` replays on the dense network.

        Args:
            later: what pruning `self.model`, trained since or not, returned.

        Raises:
            TypeError: `later` is no `Pruned`.
            ValueError: it is a pruning of another network: a layer has another number of units than this one keeps.
        """
        if not isinstance(later, Pruned):
            raise TypeError(
                f"Pruned.then() got {type(later).__name__}; it takes what pruning this one's network returned, e.g. "
                "first.then(isometry.prune(first.model, isometry.L1(), 0.5))."
            )
        from pandas import DataFrame, concat  # takes long to import

        plan = self.plan.then(later.plan)
        histories = [history for history in (self.history, later.history) if not history.empty]
        return Pruned(
            later.model,
            plan,
            concat(histories, ignore_index=True) if histories else DataFrame(),
            self.before,
            later.after,
            {layer: reason for layer, reason in later.left_alone.items() if not plan.removed.get(layer)},
            tuple(sorted({*self.inexact, *later.inexact})),
            self.input_spec,
        )

    def __str__(self) -> str:
        layers: dict[str, list[str]] = {}
        for layer, reason in self.left_alone.items():
            layers.setdefault(reason, []).append(layer)
        weights = self._kept_weights()
        masked = [f"{name}: {n - kept:,} of {n:,} weights masked" for name, (kept, n) in weights.items()]
        units = [str(self.plan)] if self.plan.removed or not masked else []
        lines = [*units, *masked, *(f"left alone: {join_names(names)}: {reason}" for reason, names in layers.items())]
        if self.inexact:
            lines.append(f"not exact: {join_names(self.inexact)} normalize over channels some of which were removed")
        sizes = (
            f"{name} {getattr(self.before, key):,} -> {getattr(self.after, key):,}"
            for name, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("bytes", "bytes"))
        )
        if units:
            lines.append(f"{self.ratio:.1%} of the units removed; {', '.join(sizes)}")
        if masked:
            also = "" if units else "; parameters and FLOPs stay as they are"
            lines.append(f"{self._masked_share:.1%} of the weights of these layers masked{also}")
        return "\n".join(lines)

    __repr__ = __str__
