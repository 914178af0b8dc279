"""Layers whose units are switched on or off at random, as by ReLU."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isometry.spectra.laws.law import Array, Curved, check_fraction, check_positive

__all__ = ["BernoulliGaussian", "BernoulliOrthogonal"]


class _Gated(Curved):
    """Layers with Bernoulli gates: lambda is a rational function of the moment transform M."""

    layers: int
    open: float
    sigma: float

    @property
    def atoms(self) -> dict[float, float]:
        """0, with the share 1 - p."""
        return {0.0: 1 - self.open} if self.open < 1 else {}

    @property
    def _scale(self) -> float:
        return self.sigma ** (2 * self.layers)

    @property
    @abstractmethod
    def _factors(self) -> list[tuple[float, int]]:
        """The pairs (a, n) of lambda(M) = product of (M + a)^n at sigma 1."""

    def _square(self, m: float) -> float:
        """Return lambda(M) at sigma 1 for a real M."""
        return math.prod((m + a) ** n for a, n in self._factors)

    @property
    @abstractmethod
    def _upper(self) -> float:
        """The M at which lambda(M) is the upper edge; infinite where there is an atom at the edge."""

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho), rho = Im M / (pi lambda), M the physical root of lambda(M) in the upper half plane.

        Finding M as a root of a polynomial would be ill-conditioned: at lambda 0, -p is an L-fold root. The physical
        branch is instead traced as the curve M = r exp(i t) - p, from t = pi / L at r = 0 to the real upper edge, on
        which lambda(M) is real, that is, the arguments of its factors add up to 0; t is found by bisection for every r.
        """
        if math.isfinite(self._upper):
            fraction = np.concatenate([np.geomspace(1e-9, 0.9, 2500), 1 - np.geomspace(0.1, 1e-9, 1500)[1:]])
            r = fraction * (self._upper + self.open)
        else:
            r = np.geomspace(1e-9, 1e6, 4000)
        angles = np.concatenate([np.geomspace(1e-7, 0.02, 60), np.linspace(0.02, math.pi * (1 - 1e-9), 400)[1:]])
        arguments = self._argument(r[:, None], angles[None, :])
        crossing = (arguments[:, :-1] < 0) & (arguments[:, 1:] >= 0)
        solvable = crossing.any(1)
        r, first = r[solvable], crossing[solvable].argmax(1)
        low, high = angles[first], angles[first + 1]
        for _ in range(60):
            middle = (low + high) / 2
            below = self._argument(r, middle) < 0
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        log_square = sum(n * np.log(np.abs(r * np.exp(1j * low) - self.open + a)) for a, n in self._factors)
        log_rho = np.log(r * np.sin(low) / math.pi) - log_square
        order = np.argsort(log_square)
        return log_square[order], log_rho[order]

    def _argument(self, r: Array, angle: Array) -> Array:
        """Return the argument of lambda(M) at M = r exp(i angle) - p, continuous over the upper half plane."""
        m = r * np.exp(1j * angle) - self.open
        arguments = [n * (angle if a == self.open else np.angle(m + a)) for a, n in self._factors]
        return np.sum(np.broadcast_arrays(*arguments), axis=0)


@dataclass(frozen=True)
class BernoulliOrthogonal(_Gated):
    """L orthogonal layers, each followed by gates that are open with probability p (ReLU: p = 1/2, sigma² = 2).

    Attributes:
        layers: L.
        open: p in (0, 1].
        sigma: gain of a layer.

    lambda(M) = sigma^(2L) (M + p)^L / (M (M + 1)^(L-1)); variance of lambda / its mean: L (1/p - 1).
    Source: Pennington et al. 2017, 2018 (arXiv 1711.04735, 1802.09979).
    """

    layers: int
    open: float = 0.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "BernoulliOrthogonal(4)", layers=self.layers, sigma=self.sigma)
        check_fraction(self, "BernoulliOrthogonal(4, open=0.5)", open=self.open)

    @property
    def _factors(self) -> list[tuple[float, int]]:
        return [(self.open, self.layers), (0.0, -1), (1.0, 1 - self.layers)]

    @property
    def _upper(self) -> float:
        # The extremum of lambda(M) over M > 0, where there is one.
        closed = self.layers * (1 - self.open)  # expected number of closed gates on a path
        return self.open / (closed - 1) if closed > 1 else math.inf

    @property
    def edges(self) -> tuple[float, float]:
        """(0, s_max); both are sigma^L for one layer or p = 1, where all values are 0 or sigma^L."""
        if self.layers == 1 or self.open == 1:
            return math.sqrt(self._scale), math.sqrt(self._scale)
        high = self._square(self._upper) if math.isfinite(self._upper) else 1.0
        return 0.0, math.sqrt(self._scale * high)

    @property
    def atoms(self) -> dict[float, float]:
        """0, with the share 1 - p, and sigma^L, with the share 1 - L (1 - p) where that is positive."""
        n, p = self.layers, self.open
        atoms = {} if p == 1 else {0.0: 1 - p}
        always_open = max(1 - n * (1 - p), 0.0)
        if always_open:
            atoms[self.sigma**n] = always_open
        return atoms

    def moment(self, k: float) -> float:
        """Return E lambda^k; exact for k = 1 and 2, by quadrature otherwise."""
        first = self._scale * self.open**self.layers
        if k == 1:
            return first
        return first**2 * (1 + self.layers * (1 / self.open - 1)) if k == 2 else super().moment(k)


@dataclass(frozen=True)
class BernoulliGaussian(_Gated):
    """L Gaussian layers, each followed by gates that are open with probability p (ReLU: p = 1/2, sigma² = 2).

    Attributes:
        layers: L.
        open: p in (0, 1].
        sigma: standard deviation of a weight times sqrt(N).

    lambda(M) = sigma^(2L) (1 + M) (M + p)^L / M; variance of lambda / its mean: L / p.
    Source: Pennington et al. 2017, 2018 (arXiv 1711.04735, 1802.09979).
    """

    layers: int
    open: float = 0.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "BernoulliGaussian(4)", layers=self.layers, sigma=self.sigma)
        check_fraction(self, "BernoulliGaussian(4, open=0.5)", open=self.open)

    @property
    def _upper(self) -> float:
        n, p = self.layers, self.open
        return (-(n - 1) + math.sqrt((n - 1) ** 2 + 4 * n * p)) / (2 * n)

    @property
    def _factors(self) -> list[tuple[float, int]]:
        return [(1.0, 1), (self.open, self.layers), (0.0, -1)]

    @property
    def edges(self) -> tuple[float, float]:
        """(0, the minimum of lambda(M) over M > 0)."""
        return 0.0, math.sqrt(self._scale * self._square(self._upper))

    def moment(self, k: float) -> float:
        """Return E lambda^k; exact for k = 1 and 2, by quadrature otherwise."""
        first = self._scale * self.open**self.layers
        if k == 1:
            return first
        return first**2 * (1 + self.layers / self.open) if k == 2 else super().moment(k)
