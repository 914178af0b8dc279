"""One-shot magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.pruners.pruner import Pruner

__all__ = ["L1"]


@dataclass(frozen=True)
class L1(Pruner):
    """Remove the units of the smallest mean absolute weight, at once, without training.

    Source: Li et al., ICLR 2017, "Pruning filters for efficient ConvNets".
    """
