"""Levels: samples measured in low precision, and what those that were measured in full precision, too, say about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from isometry.measurement.brackets import Brackets
from isometry.spectra import student_quantile

__all__ = ["LOW_PRECISION", "PAIRS", "Levels"]

LOW_PRECISION = torch.bfloat16

PAIRS = 16
"""Samples measured in both precisions, at least: what the interval of the correction rests on."""


@dataclass(frozen=True, eq=False)
class Levels:
    """Mean JSVs of samples in two precisions.

    Rounding puts low precision off by nearly the same factor at all samples of a network, so that a few samples in both correct
    many in one: a ratio estimate with the two levels of multilevel Monte Carlo (Giles, Acta Numerica 24, 2015).

    Attributes:
        coarse: [B], in low precision; nan where that was not computed.
        fine: [B], in full precision, likewise.
        cost: [B], time in low precision over time in full precision; nan where one of them was not computed.
    """

    coarse: Tensor
    fine: Tensor
    cost: Tensor

    @classmethod
    def of(cls, *, coarse: Tensor | None = None, fine: Tensor | None = None, cost: float = math.nan) -> Levels:
        """Return the levels of a batch, of which at least one was computed."""
        known = fine if coarse is None else coarse
        assert known is not None
        none = torch.full_like(known, math.nan)
        return cls(none if coarse is None else coarse, none if fine is None else fine, torch.full_like(known, cost))

    @classmethod
    def pool(cls, parts: Sequence[Levels]) -> Levels:
        """Concatenate the samples of several batches."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    @property
    def corrected(self) -> Tensor:
        """[B]: which samples are known in low precision alone."""
        return self.fine.isnan()

    @property
    def pairs(self) -> int:
        """The number of samples in both precisions."""
        return int(self._paired.sum())

    @property
    def _paired(self) -> Tensor:
        return ~(self.coarse.isnan() | self.fine.isnan())

    @property
    def factor(self) -> float:
        """Full over low precision, of the samples in both."""
        coarse, fine = (float(level[self._paired].mean()) for level in (self.coarse, self.fine))
        return fine / coarse if coarse else 1.0

    @property
    def _spread(self) -> float:
        """Standard deviation of what the factor leaves unexplained."""
        return float((self.fine - self.factor * self.coarse)[self._paired].std())

    @property
    def error(self) -> float:
        """Half-width of the 95 % interval of the factor, as a share of it; nan for fewer than two samples in both."""
        mean = float(self.fine[self._paired].mean())
        if self.pairs < 2 or not mean:
            return 0.0 if not mean else math.nan
        return student_quantile(self.pairs) * self._spread / math.sqrt(self.pairs) / mean

    @property
    def relative_cost(self) -> float:
        """Time in low precision over time in full precision: the median, as the first passes are slow."""
        return float(self.cost[self._paired].nanmedian())

    def brackets(self, resolution: float) -> Brackets:
        """Return every sample's mean: as measured in full precision, else as corrected.

        Args:
            resolution: how far the largest singular value may be off.
        """
        means = torch.where(self.corrected, self.factor * self.coarse, self.fine)
        none = torch.zeros_like(means)
        shared = torch.where(self.corrected, self.error * means, none)
        own = torch.where(self.corrected, self._spread**2, none)
        return Brackets(means, means, own, resolution, shared, none, none)

    def wanted_pairs(self, total: int) -> int:
        """Return how many of `total` samples to measure in both precisions for the shortest interval in the same time."""
        unexplained, cost = self._unexplained, self.relative_cost
        if unexplained >= 1:
            return total
        return min(total, max(PAIRS, math.ceil(total * math.sqrt(cost * unexplained / (1 - unexplained)))))

    def gain(self, total: int) -> float:
        """Return by which factor two levels shorten the time to the same half-width, with `total` samples.

        With share p of the samples in both precisions, time is multiplied by cost + p, and the variance by
        (1 - u) + u / p, where u is the share of the variance between samples that low precision does not explain.
        """
        share, unexplained = self.wanted_pairs(total) / total, self._unexplained
        return 1 / ((self.relative_cost + share) * (1 - unexplained + unexplained / share))

    @property
    def _unexplained(self) -> float:
        variance = float(self.fine[self._paired].var())
        return self._spread**2 / variance if variance else 0.0
