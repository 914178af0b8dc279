"""Random pruning, the control of every comparison."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.pruners.pruner import Pruner, PruningContext
from isometry.surgery import UnitGroup

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Pruner):
    """Remove units drawn uniformly, by the `seed` of `prune`; a larger ratio removes a superset."""

    def importance(self, context: PruningContext, group: UnitGroup) -> Tensor:
        """Return a random order of the units, the same for the same seed and layer: [units]."""
        seed = zlib.crc32(f"{context.seed}/{group.root}".encode())
        return torch.rand(group.units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
