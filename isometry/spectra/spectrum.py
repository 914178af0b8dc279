"""Spectrum: a weighted set of singular values a sample, and every statistic taken from one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

__all__ = ["Bound", "Estimate", "Spectrum", "mean_with_error"]


class Bound(float):
    """A float known from one side only; it prints with its sign, e.g. `<=0.031`."""

    side: str

    def __new__(cls, value: float, side: str) -> Bound:
        """Make a bound; `side` is '<=' (the truth lies at or below) or '>=' (at or above)."""
        self = super().__new__(cls, value)
        self.side = side
        return self

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]
        return float(self), self.side

    def __repr__(self) -> str:
        return f"{self.side}{float(self)!r}"

    def __str__(self) -> str:
        return f"{self.side}{float(self)!s}"

    def __format__(self, spec: str) -> str:
        return f"{self.side}{float(self):{spec}}"


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its error.

    Attributes:
        value: the estimate.
        sem: its standard error over the units it was averaged from; nan where one unit leaves it unknown.
        interval: 95 % confidence interval, (low, high).
        units: how many independent units it was averaged from.
    """

    value: float
    sem: float
    interval: tuple[float, float]
    units: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"


def mean_with_error(units: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Estimate:
    """Return the mean of independent `units` [B] with its standard error and Student's 95 % interval.

    Args:
        units: one number a unit.
        low: a lower bound of every unit's truth, where the units are themselves known within a bracket only.
        high: an upper bound likewise; the interval then spans from the lowest to the highest end of both.
    """
    count = len(units)
    value = float(units.mean())
    if count < 2:
        return Estimate(value, math.nan, (math.nan, math.nan), count)
    quantile = float(stats.t.ppf(0.975, count - 1))
    ends = [units if end is None else end for end in (low, high)]
    sems = [float(end.std()) / math.sqrt(count) for end in ends]
    interval = (float(ends[0].mean()) - quantile * sems[0], float(ends[1].mean()) + quantile * sems[1])
    return Estimate(value, float(units.std()) / math.sqrt(count), interval, count)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Weighted singular values of B maps.

    A full decomposition gives r values of weight 1/r; a quadrature gives nodes with weights, of which the extremes
    are bounds; pooling samples is concatenation.

    Attributes:
        values: [B, k] float64, singular values (or quadrature nodes).
        weights: [B, k] float64, at least 0, each row sums to 1.
        complete: whether `values` are all the singular values. Where they are not, the smallest is an upper bound of
            the smallest singular value and the largest a lower bound of the largest, and both say so.
    """

    values: Tensor
    weights: Tensor
    complete: bool = True
    _moments: dict[float, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.values.shape != self.weights.shape or self.values.ndim != 2 or not self.values.numel():
            raise ValueError(
                f"Spectrum() got values {tuple(self.values.shape)} and weights {tuple(self.weights.shape)}; it takes "
                "two non-empty tensors of one shape [B, k], e.g. Spectrum.of(torch.tensor([[1.0, 0.5]]))."
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError("Spectrum() got singular values that are NaN or infinite; all of them must be finite.")

    @classmethod
    def of(cls, values: Tensor) -> Spectrum:
        """Return the complete spectrum with `values` [B, k] (or [k]), each of weight 1/k."""
        values = torch.atleast_2d(values).double()
        return cls(values, torch.full_like(values, 1 / values.shape[-1]))

    @classmethod
    def pool(cls, spectra: Iterable[Spectrum]) -> Spectrum:
        """Concatenate the samples of several spectra (padded with weight 0 where they hold fewer values)."""
        parts = list(spectra)
        width = max(part.values.shape[1] for part in parts)

        def widen(x: Tensor, filler: Tensor | float) -> Tensor:
            wide = x.new_zeros(x.shape[0], width) + filler
            wide[:, : x.shape[1]] = x
            return wide

        values = torch.cat([widen(part.values, part.values[:, -1:]) for part in parts])
        weights = torch.cat([widen(part.weights, 0.0) for part in parts])
        return cls(values, weights, all(part.complete for part in parts))

    def __len__(self) -> int:
        """The number of samples B."""
        return len(self.values)

    def moments(self, power: float) -> Tensor:
        """Return the weighted mean of s ** power for every sample: [B]."""
        if power not in self._moments:
            self._moments[power] = (self.values.pow(power) * self.weights).sum(1)
        return self._moments[power]

    @property
    def sample_means(self) -> Tensor:
        """[B]: the mean singular value of every sample."""
        return self.moments(1)

    @property
    def mean(self) -> float:
        """The mean singular value, over samples and values."""
        return float(self.moments(1).mean())

    @property
    def mean_square(self) -> float:
        """The mean squared singular value, ||J||²_F / r averaged over samples."""
        return float(self.moments(2).mean())

    @property
    def std(self) -> float:
        """The standard deviation over the pool of samples and values (population, as the papers print it)."""
        return float(((self.values - self.mean).square() * self.weights).sum(1).mean().sqrt())

    @property
    def isometry_gap(self) -> float:
        """The mean of (s - 1)² over the pool; 0 exactly at dynamical isometry."""
        return float(((self.values - 1).square() * self.weights).sum(1).mean())

    def _ends(self) -> tuple[Tensor, Tensor]:
        held = self.weights > 0
        low = torch.where(held, self.values, math.inf).amin(1)
        return low, torch.where(held, self.values, -math.inf).amax(1)

    @property
    def min(self) -> float:
        """The smallest singular value of the pool; a `Bound` (<=) where the values are quadrature nodes."""
        low = float(self._ends()[0].min())
        return low if self.complete else Bound(low, "<=")

    @property
    def max(self) -> float:
        """The largest singular value of the pool; a `Bound` (>=) where the values are quadrature nodes."""
        high = float(self._ends()[1].max())
        return high if self.complete else Bound(high, ">=")

    @property
    def condition_numbers(self) -> Tensor:
        """[B]: largest over smallest of every sample; infinite where the smallest is 0."""
        low, high = self._ends()
        return torch.where(low > 0, high / low, math.inf)

    @property
    def condition_number(self) -> float:
        """The mean over samples of max / min; a `Bound` (>=) where the values are quadrature nodes."""
        value = float(self.condition_numbers.mean())
        return value if self.complete else Bound(value, ">=")

    def quantile(self, q: float) -> float:
        """Return the q-quantile of the pool, a weighted inverse of the distribution function."""
        values, order = self.values.flatten().sort()
        mass = self.weights.flatten()[order].cumsum(0) / len(self)
        return float(values[min(int(torch.searchsorted(mass, q - 1e-12)), len(values) - 1)])

    def cdf(self, points: Tensor) -> Tensor:
        """Return the share of the pool at or below each of `points` [p]: [p] in [0, 1]."""
        values, order = self.values.flatten().sort()
        mass = torch.cat([values.new_zeros(1), self.weights.flatten()[order].cumsum(0)]) / len(self)
        return mass[torch.searchsorted(values, points.to(values), right=True)]

    def histogram(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return each bin's share of the pool and its standard error over samples.

        Args:
            edges: [b + 1], rising. A value on an edge belongs to the bin above it, the last edge to the last bin.

        Returns:
            share [b] and error [b]; the error is nan for one sample.
        """
        bins = torch.bucketize(self.values, edges.to(self.values), right=True) - 1
        bins = torch.where(self.values == float(edges[-1]), len(edges) - 2, bins)
        inside = (bins >= 0) & (bins < len(edges) - 1)
        share = self.values.new_zeros(len(self), len(edges) - 1)
        share.scatter_add_(1, bins.clamp(0, len(edges) - 2), torch.where(inside, self.weights, 0.0))
        return share.mean(0), share.std(0) / math.sqrt(len(self)) if len(self) > 1 else share[0] * math.nan
