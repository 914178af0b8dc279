"""SNIP: single-shot pruning by connection sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isometry.networks import placed
from isometry.pruners.masking import Masking
from isometry.pruners.pruner import PruningContext
from isometry.training.random_state import RandomState

__all__ = ["SNIP"]


@dataclass(frozen=True)
class SNIP(Masking):
    """Mask the weights w of the smallest |gradient x w|: those by which the loss of one batch depends least on the mask.

    The gradient is that of the mean cross-entropy of one batch of the training data, in train mode, as at the start of
    training, for which the method was made; trained networks can be masked, too.

    Attributes:
        batch_size: how many samples, drawn by the `seed` of `prune`; 128, the batch of the source for CIFAR-10 (100 for MNIST).
        scope: "global", as in the source.

    Source: Lee, Ajanthan & Torr, ICLR 2019, Eq. 6 and Algorithm 1.
    """

    batch_size: int = 128
    scope: str = field(default="global", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(
                f"SNIP() got batch_size={self.batch_size}; it takes at least 1, e.g. SNIP(batch_size=100)."
            )

    @property
    def needs_data(self) -> bool:
        """Always: scores are gradients of a loss."""
        return True

    def scores(self, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the sensitivity of every weight, up to a factor."""
        model, split = context.model.train().requires_grad_(True), context.training_split
        state = RandomState(context.seed, next(model.parameters()).device)
        batch = state.permutation(len(split.inputs))[: self.batch_size]
        inputs, targets = placed(split.inputs[batch], model), split.targets[batch]
        with state.active(), torch.enable_grad():
            F.cross_entropy(model(inputs), targets.to(inputs.device)).backward()
        # Behind a mask there is no gradient; in front of it, the product is the same for the weights that it keeps.
        behind = {name: layer._parameters.get("weight_orig", layer.weight) for name, layer in layers.items()}
        return {name: torch.zeros_like(p) if p.grad is None else (p.grad * p).abs() for name, p in behind.items()}
