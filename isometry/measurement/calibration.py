"""Calibration: what the whole spectra or the long runs of a few samples say about short runs of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from isometry.spectra import Bidiagonal, student_quantile

__all__ = ["LENGTHS", "Calibration", "Pilot"]

LENGTHS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
"""Steps of the short runs that are considered."""

_USUAL_SPREAD = 0.1
"""Of the factor between samples, as a share of the short runs' half-width: what it is before any is known ..."""
_WORTH = 12
"""... which counts as much as so many samples. For planning only: the interval takes nothing from it."""


@dataclass(frozen=True)
class Calibration:
    """How the result of a short run relates to that of a long one.

    The middle of a short run's bracket is off by nearly the same factor at all samples of a network, so that a few long runs
    correct many short ones: a ratio estimate, as in multilevel Monte Carlo (Giles, Acta Numerica 24, 2015).

    Attributes:
        steps: of the short runs.
        factor: long over short.
        error: half-width of the 95 % interval of the factor, as a share of it.
        spread: the factor's standard deviation between samples, likewise, for planning.
        half: half-width of the long runs' brackets, as a share of their middle.
        probe_variance: of one probe within a sample. It hardly depends on the steps, being that of a random direction.
    """

    steps: int
    factor: float
    error: float
    spread: float
    half: float
    probe_variance: float

    def expected_error(self, count: int) -> float:
        """Return what `error` is likely to be with `count` samples, at least 2."""
        return student_quantile(count) * self.spread / math.sqrt(count)


@dataclass(frozen=True, eq=False)
class Pilot:
    """Runs of the first samples, cut after `LENGTHS` steps and at the end.

    Attributes:
        middle: [B, L + 1], middles of the brackets, averaged over probes.
        width: [B, L + 1], half-widths of the brackets, likewise.
        variance: [B, L + 1], of the corrected middles between probes; see `Bidiagonal.correction`.
        limit: [B], what the middles tend to, as far as known.
        half: [B], half-width of the bracket of `limit`.
        length: [B], steps of the runs.
    """

    middle: Tensor
    width: Tensor
    variance: Tensor
    limit: Tensor
    half: Tensor
    length: Tensor

    @classmethod
    def of(cls, run: Bidiagonal, limit: Tensor | None = None) -> Pilot:
        """Return what a run with its basis shows.

        Args:
            run: B x P starting vectors, at least two per sample.
            limit: [B, P], the quadratic forms vᵀ (AᵀA)^½ v where they are known; None takes the run's own brackets.
        """
        steps = run.alpha.shape[-1]
        lower, upper = run.narrowed()
        narrow = (upper - lower).mean(1) / 2
        half = (upper - lower) / 2 if limit is None else torch.zeros_like(lower)
        limit = (lower + upper) / 2 if limit is None else limit
        middles, widths, variances = [], [], []
        for length in (*LENGTHS, steps):
            cut = run.first(length)
            lower, upper = cut.bracket()
            middle, mean = (lower + upper) / 2, (lower + upper).mean(1) / 2
            factor = torch.where(mean > 0, limit.mean(1) / mean, 1.0)
            variances.append((factor[:, None] * middle + cut.correction()).var(1))
            middles.append(mean)
            widths.append((upper - lower).mean(1) / 2)
        widths[-1] = narrow
        middle, width, variance = (torch.stack(parts, 1).cpu() for parts in (middles, widths, variances))
        limits = limit.mean(1).cpu()
        return cls(middle, width, variance, limits, half.mean(1).cpu(), torch.full_like(limits, steps))

    @classmethod
    def pool(cls, parts: Sequence[Pilot]) -> Pilot:
        """Concatenate the samples of several pilots."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.limit)

    @property
    def run_half(self) -> float:
        """Half-width of the longest runs' brackets, as a share of the mean."""
        total = float(self.limit.mean())
        return float(self.width[:, -1].mean()) / total if total > 0 else 0.0

    def calibrations(self) -> list[Calibration]:
        """Return what the pilot says about runs of every length up to its own."""
        steps = int(self.length.max())
        lengths = [*((length, index) for index, length in enumerate(LENGTHS) if length < steps), (steps, -1)]
        return [self._calibration(length, index) for length, index in lengths]

    def _calibration(self, steps: int, index: int) -> Calibration:
        total, middle, count = float(self.limit.mean()), self.middle[:, index], len(self)
        if not total > 0:
            return Calibration(steps, 1.0, 0.0, 0.0, 0.0, 0.0)
        factor = total / float(middle.mean())
        spread = float((self.limit - factor * middle).std()) / total if count > 1 else math.inf
        usual = _USUAL_SPREAD * float(self.width[:, index].mean()) / total
        squares = (spread**2 * (count - 1) if count > 1 else 0.0) + usual**2 * _WORTH
        return Calibration(
            steps,
            factor,
            error=student_quantile(max(2, count)) * spread / math.sqrt(count),
            spread=math.sqrt(squares / (count - 1 + _WORTH)),
            half=float(self.half.mean()) / total,
            probe_variance=float(self.variance.mean()),
        )
