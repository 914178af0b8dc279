"""Spectra: weighted sets of singular values, one per sample, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isometry.spectra.estimate import Bound

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Weighted singular values of B maps.

    A complete decomposition gives r values of weight 1/r. A quadrature gives nodes with weights; its extreme nodes are
    bounds of the extreme singular values. Samples are pooled by concatenation.

    Attributes:
        values: [B, k] float64, singular values (or quadrature nodes).
        weights: [B, k] float64, at least 0, each row sums to 1.
        complete: whether `values` are all the singular values. Otherwise the smallest node is an upper bound of the
            smallest singular value and the largest node a lower bound of the largest, and `min` and `max` are `Bound`s.
            Nodes are no sample of the spectrum: statistics other than moments and bounds describe the nodes.
        resolution: size below which a value is a rounding error, as a share of the sample's largest.
    """

    values: Tensor
    weights: Tensor
    complete: bool = True
    resolution: float = 0.0
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
    def of(cls, values: Tensor, resolution: float = 0.0) -> Spectrum:
        """Return the complete spectrum with `values` [B, k] (or [k]), each of weight 1/k.

        Args:
            values: singular values.
            resolution: those below `resolution` times the sample's largest become 0, being rounding errors.
        """
        values = torch.atleast_2d(values).double()
        if resolution:
            values = torch.where(values < resolution * values.amax(1, keepdim=True), 0.0, values)
        return cls(values, torch.full_like(values, 1 / values.shape[-1]), resolution=resolution)

    @classmethod
    def pool(cls, spectra: Iterable[Spectrum]) -> Spectrum:
        """Concatenate the samples of several spectra; those with fewer values are padded with values of weight 0."""
        parts = list(spectra)
        width = max(part.values.shape[1] for part in parts)

        def widen(x: Tensor, filler: Tensor | float) -> Tensor:
            wide = x.new_zeros(x.shape[0], width) + filler
            wide[:, : x.shape[1]] = x
            return wide

        values = torch.cat([widen(part.values, part.values[:, -1:]) for part in parts])
        weights = torch.cat([widen(part.weights, 0.0) for part in parts])
        resolution = max(part.resolution for part in parts)
        return cls(values, weights, all(part.complete for part in parts), resolution)

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
        """Return the smallest and the largest value [B] of every sample; of nodes, no smaller than can be told from 0."""
        weighted = self.weights > 0
        high = torch.where(weighted, self.values, -math.inf).amax(1)
        low = torch.where(weighted, self.values, math.inf).amin(1)
        return (low if self.complete else torch.maximum(low, self.resolution * high)), high

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
        """[B]: largest over smallest singular value of every sample; infinite where the smallest is 0."""
        low, high = self._ends()
        return torch.where(low > 0, high / low, math.inf)

    @property
    def condition_number(self) -> float:
        """The mean over samples of max / min; infinite as soon as one sample is singular.

        A `Bound` (>=) where the values are quadrature nodes.
        """
        value = float(self.condition_numbers.mean())
        return value if self.complete else Bound(value, ">=")

    @property
    def median_condition_number(self) -> float:
        """The (lower) median over samples of max / min; a `Bound` (>=) where the values are quadrature nodes."""
        value = float(self.condition_numbers.median())
        return value if self.complete else Bound(value, ">=")

    @property
    def singular_samples(self) -> int:
        """The number of samples whose smallest singular value is 0 (to within `resolution`); 0 where only nodes are known."""
        return int((self._ends()[0] == 0).sum()) if self.complete else 0

    @property
    def isometry_gaps(self) -> Tensor:
        """[B]: the mean of (s - 1)² of every sample."""
        return ((self.values - 1).square() * self.weights).sum(1)

    def quantile(self, q: float) -> float:
        """Return the q-quantile of the pool: the smallest value at or below which its share is at least q in [0, 1]."""
        values, order = self.values.flatten().sort()
        mass = self.weights.flatten()[order].cumsum(0) / len(self)
        return float(values[min(int(torch.searchsorted(mass, q - 1e-12)), len(values) - 1)])

    def cdf(self, points: Tensor) -> Tensor:
        """Return the share of the pool at or below each of `points` [p]: [p] in [0, 1]."""
        values, order = self.values.flatten().sort()
        mass = torch.cat([values.new_zeros(1), self.weights.flatten()[order].cumsum(0)]) / len(self)
        return mass[torch.searchsorted(values, points.to(values), right=True)]

    def histogram(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return each bin's share of the pool, with its standard error over samples.

        Of quadrature nodes, the shares of the nodes: those of the spectrum are not known, and the errors are nan.

        Args:
            edges: [b + 1], increasing. A value on an edge belongs to the bin above it, the last edge to the last bin.

        Returns:
            Share [b] and standard error [b], which is nan for one sample.
        """
        bins = torch.bucketize(self.values, edges.to(self.values), right=True) - 1
        bins = torch.where(self.values == float(edges[-1]), len(edges) - 2, bins)
        inside = (bins >= 0) & (bins < len(edges) - 1)
        share = self.values.new_zeros(len(self), len(edges) - 1)
        share.scatter_add_(1, bins.clamp(0, len(edges) - 2), torch.where(inside, self.weights, 0.0))
        known = self.complete and len(self) > 1
        return share.mean(0), share.std(0) / math.sqrt(len(self)) if known else share[0] * math.nan
