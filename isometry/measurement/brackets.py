"""Brackets: what a stochastic estimate knows about every sample's mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Brackets"]


@dataclass(frozen=True, eq=False)
class Brackets:
    """What a stochastic measurement knows about every sample's mean JSV.

    Attributes:
        lower, upper: [B] float64, quadrature bounds averaged over the sample's probes: certified for the probes.
        probe_variance: [B], variance over the sample's probes divided by their number; nan for one probe.
        largest_residual: how far a singular value may lie from the largest Ritz value, at most.
    """

    lower: Tensor
    upper: Tensor
    probe_variance: Tensor
    largest_residual: float

    @classmethod
    def pool(cls, parts: Sequence[Brackets]) -> Brackets:
        """Concatenate the samples of several brackets."""
        lower, upper, variance = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("lower", "upper", "probe_variance")
        )
        return cls(lower, upper, variance, max(part.largest_residual for part in parts))

    @property
    def middle(self) -> Tensor:
        """[B]: the middle of every sample's bracket."""
        return (self.lower + self.upper) / 2
