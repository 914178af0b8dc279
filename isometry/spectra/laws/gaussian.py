"""Products of square Gaussian layers, and one Gaussian layer of any shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isometry.spectra.laws.law import Array, Curved, Law, check_fraction, check_positive

__all__ = ["FussCatalan", "MarchenkoPastur"]


@dataclass(frozen=True)
class FussCatalan(Curved):
    """Products of L Gaussian layers, lambda / sigma^(2L) ~ Fuss-Catalan of order L.

    Randomly masked layers of density p behave like Gaussian layers with sigma² p, magnitude-pruned ones with sigma² v(p), see
    `magnitude_variance`.

    Attributes:
        layers: L, at least 1.
        sigma: standard deviation of a weight times sqrt(N).

    Source: Penson & Zyczkowski 2011 (arXiv 1103.3453); Pennington et al. 2017 (arXiv 1711.04735).
    """

    layers: int
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, f"{type(self).__name__}(4)", layers=self.layers, sigma=self.sigma)

    @property
    def _scale(self) -> float:
        return self.sigma ** (2 * self.layers)

    @property
    def edges(self) -> tuple[float, float]:
        """(0, sigma^L sqrt((L + 1)^(L + 1) / L^L))."""
        n = self.layers
        return 0.0, math.sqrt(self._scale) * math.exp(((n + 1) * math.log(n + 1) - n * math.log(n)) / 2)

    def moment(self, k: float) -> float:
        """Return E lambda^k = sigma^(2Lk) Gamma((L+1)k+1) / (Gamma(k+1) Gamma(Lk+2)); infinite for k <= -1/(L+1)."""
        from scipy import special

        n = self.layers
        if k <= -1 / (n + 1):
            return math.inf
        logs = special.gammaln((n + 1) * k + 1) - special.gammaln(k + 1) - special.gammaln(n * k + 2)
        return self._scale**k * math.exp(logs)

    @property
    def log_mean(self) -> float:
        """E log s, which is L (log sigma - 1/2)."""
        return (math.log(self._scale) - self.layers) / 2

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho), parametrized by the angle 0 < phi < pi / (L + 1).

        lambda = sin^(L+1)((L+1) phi) / (sin(phi) sin^L(L phi)), rho = sin²(phi) sin^(L-1)(L phi) / (pi sin^L((L+1) phi)).
        """
        n = self.layers
        # Angles are dense at both ends: lambda spans many decades toward pi / (L + 1).
        ends = np.geomspace(1e-9, 0.5, 3000)
        phi = np.concatenate([ends, 1 - ends[::-1]]) * math.pi / (n + 1)
        upper, inner = np.log(np.sin((n + 1) * phi)), np.log(np.sin(n * phi))
        square = (n + 1) * upper - np.log(np.sin(phi)) - n * inner
        rho = 2 * np.log(np.sin(phi)) + (n - 1) * inner - math.log(math.pi) - n * upper
        order = np.argsort(square)
        return square[order], rho[order]


@dataclass(frozen=True)
class MarchenkoPastur(Law):
    """The n singular values of one Gaussian layer n x m, n <= m, with entries of variance sigma²/m.

    Attributes:
        ratio: c = n / m in (0, 1].
        sigma: standard deviation of a weight times sqrt(m).

    Source: Marchenko & Pastur 1967.
    """

    ratio: float
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "MarchenkoPastur(0.5)", sigma=self.sigma)
        check_fraction(self, "MarchenkoPastur(0.5)", ratio=self.ratio)

    @property
    def edges(self) -> tuple[float, float]:
        """The two values sigma (1 -+ sqrt(c))."""
        root = math.sqrt(self.ratio)
        return self.sigma * (1 - root), self.sigma * (1 + root)

    def density(self, squares: Array) -> Array:
        """Return sqrt((high - x)(x - low)) / (2 pi c x), with x and the edges in units of sigma²."""
        low, high = (edge**2 for edge in self.edges)
        root = np.sqrt(np.maximum((high - squares) * (squares - low), 0))
        return root / (2 * math.pi * self.ratio * squares * self.sigma**2)
