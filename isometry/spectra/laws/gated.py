"""Layers with gates that are open or closed, as those of ReLU."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isometry.spectra.laws.law import Array, Curved, positive, share

__all__ = ["BernoulliGaussian", "BernoulliOrthogonal"]


class _Gated(Curved):
    """Layers with Bernoulli gates: lambda(M) is rational in the moment transform M, so M solves a polynomial."""

    layers: int
    open: float
    sigma: float

    @property
    def atoms(self) -> dict[float, float]:
        """A share 1 - p of the values is 0."""
        return {0.0: 1 - self.open} if self.open < 1 else {}

    @property
    def _scale(self) -> float:
        return self.sigma ** (2 * self.layers)

    @property
    @abstractmethod
    def _factors(self) -> list[tuple[float, int]]:
        """Return (a, n) of lambda(M) = product of (M + a)^n at sigma 1."""

    def _square(self, m: float) -> float:
        """Return lambda(M) at sigma 1 for a real M."""
        return math.prod((m + a) ** n for a, n in self._factors)

    @property
    @abstractmethod
    def _upper(self) -> float:
        """Return the M at which lambda(M) is the upper edge; infinite where an atom sits there."""

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho), rho = Im M / (pi lambda), M the physical root of lambda(M) in the upper half plane.

        Roots of the polynomial in M would be ill-conditioned: -p is an L-fold one at lambda 0. The physical branch is
        the curve M = r exp(i t) - p from t = pi / L at r = 0 to the real upper edge on which lambda(M) is real with the
        arguments of its factors adding up to 0; t is found by bisection for every r.
        """
        if math.isfinite(self._upper):
            share = np.concatenate([np.geomspace(1e-9, 0.9, 2500), 1 - np.geomspace(0.1, 1e-9, 1500)[1:]])
            r = share * (self._upper + self.open)
        else:
            r = np.geomspace(1e-9, 1e6, 4000)
        angles = np.concatenate([np.geomspace(1e-7, 0.02, 60), np.linspace(0.02, math.pi * (1 - 1e-9), 400)[1:]])
        turned = self._turn(r[:, None], angles[None, :])
        rising = (turned[:, :-1] < 0) & (turned[:, 1:] >= 0)
        held = rising.any(1)
        r, first = r[held], rising[held].argmax(1)
        low, high = angles[first], angles[first + 1]
        for _ in range(60):
            middle = (low + high) / 2
            below = self._turn(r, middle) < 0
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        log_square = sum(n * np.log(np.abs(r * np.exp(1j * low) - self.open + a)) for a, n in self._factors)
        log_rho = np.log(r * np.sin(low) / math.pi) - log_square
        order = np.argsort(log_square)
        return log_square[order], log_rho[order]

    def _turn(self, r: Array, angle: Array) -> Array:
        """Return the argument of lambda(M) at M = r exp(i angle) - p, continuous over the upper half plane."""
        m = r * np.exp(1j * angle) - self.open
        turned = [n * (angle if a == self.open else np.angle(m + a)) for a, n in self._factors]
        return np.sum(np.broadcast_arrays(*turned), axis=0)


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
        positive(self, "BernoulliOrthogonal(4)", layers=self.layers, sigma=self.sigma)
        share(self, "BernoulliOrthogonal(4, open=0.5)", open=self.open)

    @property
    def _factors(self) -> list[tuple[float, int]]:
        return [(self.open, self.layers), (0.0, -1), (1.0, 1 - self.layers)]

    @property
    def _upper(self) -> float:
        # The extremum of lambda(M) over M > 0, where there is one.
        closed = self.layers * (1 - self.open)
        return self.open / (closed - 1) if closed > 1 else math.inf

    @property
    def edges(self) -> tuple[float, float]:
        """(0, s_max); everything is 0 or sigma^L, and both edges are sigma^L, where there is one layer or no gate."""
        if self.layers == 1 or self.open == 1:
            return math.sqrt(self._scale), math.sqrt(self._scale)
        high = self._square(self._upper) if math.isfinite(self._upper) else 1.0
        return 0.0, math.sqrt(self._scale * high)

    @property
    def atoms(self) -> dict[float, float]:
        """A share at 0, and at sigma^L what L nearly always open gates leave untouched."""
        n, p = self.layers, self.open
        found = {} if p == 1 else {0.0: 1 - p}
        untouched = max(1 - n * (1 - p), 0.0)
        if untouched:
            found[self.sigma**n] = untouched
        return found

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
        positive(self, "BernoulliGaussian(4)", layers=self.layers, sigma=self.sigma)
        share(self, "BernoulliGaussian(4, open=0.5)", open=self.open)

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
