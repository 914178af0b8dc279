"""SNIP: single-shot pruning by connection sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from isometry.data import Split, read_data
from isometry.data.nests import count_samples
from isometry.limits import Number
from isometry.networks import placed
from isometry.networks.modules import call
from isometry.networks.preservation import random_preserved
from isometry.pruners.masking import Masking
from isometry.pruners.pruner import PruningContext
from isometry.training.evaluation import like_outputs
from isometry.training.objective import Objective

__all__ = ["SNIP"]


@dataclass(frozen=True)
class SNIP(Masking):
    """Mask the weights w of the smallest |gradient x w|: those by which the loss of one batch depends least on the mask.

    The gradient is that of the loss, by default cross-entropy, of one batch of the training data, in eval mode. The method was made for
    networks at initialization; trained ones can be masked, too.

    Attributes:
        batch_size: how many samples, drawn by the `seed` of `prune`; of a loader, the first batch is taken. 100, the default of the
            reference code.
        scope: "global", as in the source.

    Source: Lee, Ajanthan & Torr, ICLR 2019, Algorithm 1; eval mode as in its reference code, which masks biases besides.
    """

    batch_size: int = 100
    scope: str = field(default="global", kw_only=True)
    limits: ClassVar[Mapping[str, Number]] = {**Masking.limits, "batch_size": Number(1, whole=True)}

    @property
    def needs_data(self) -> bool:
        """Always: scores are gradients of a loss."""
        return True

    def scores(self, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the sensitivity of every weight, up to a factor."""
        model = context.model.eval().requires_grad_(True)
        with random_preserved([]):
            data = read_data(context.training_data, batch_size=self.batch_size)
            if isinstance(data, Split):
                count = count_samples(data.inputs)
                order = torch.randperm(count, generator=torch.Generator().manual_seed(context.seed))
                batch = next(data.batches(self.batch_size, order))
            else:
                batch = data.first()
        with torch.enable_grad():
            outputs, targets = call(model, placed(batch.inputs, model)), placed(batch.targets, model)
            Objective(context.loss, None)(outputs, like_outputs(targets, outputs)).backward()
        # Behind a mask there is no gradient; in front of it, the product is the same for the weights that it keeps.
        behind = {name: layer._parameters.get("weight_orig", layer.weight) for name, layer in layers.items()}
        return {name: torch.zeros_like(p) if p.grad is None else (p.grad * p).abs() for name, p in behind.items()}
