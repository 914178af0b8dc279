"""Unstructured magnitude pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isometry.pruners.masking import Masking
from isometry.pruners.pruner import PruningContext

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Masking):
    """Mask the weights of the smallest magnitude, at once, without training; `L1` removes units by the same measure.

    Source: Han et al., NeurIPS 2015, "Learning both weights and connections", where every layer has a threshold of its own.
    """

    def scores(self, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the magnitude of every weight."""
        return {name: layer.weight.abs() for name, layer in layers.items()}
