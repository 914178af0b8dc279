"""Random pruning, of units and of weights: the control of every comparison."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isometry.pruners.masking import Masking
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.surgery import UnitGroup

__all__ = ["Random", "RandomWeights"]


@dataclass(frozen=True)
class Random(Pruner):
    """Remove units drawn uniformly, by the `seed` of `prune`; a larger ratio removes a superset."""

    def importance(self, context: PruningContext, group: UnitGroup) -> Tensor:
        """Return a random order of the units, the same for the same seed and layer: [units]."""
        return _draw(context, group.root, (group.units,))


@dataclass(frozen=True)
class RandomWeights(Masking):
    """Mask weights drawn uniformly, by the `seed` of `prune`; a larger ratio masks a superset."""

    def scores(self, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a random order of the weights of every layer, the same for the same seed and layer."""
        return {name: _draw(context, name, layer.weight.shape) for name, layer in layers.items()}


def _draw(context: PruningContext, layer: str, shape: tuple[int, ...]) -> Tensor:
    """Return independent uniform numbers of a shape, in float64, by the seed and the layer's name."""
    seed = zlib.crc32(f"{context.seed}/{layer}".encode())
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
