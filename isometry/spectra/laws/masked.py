"""Layers some of whose weights were removed, at random or the smallest ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isometry.spectra.laws.gaussian import FussCatalan
from isometry.spectra.laws.law import Array, Law, check_fraction

__all__ = ["MagnitudeMask", "RandomMask", "magnitude_variance"]


@dataclass(frozen=True)
class RandomMask(Law):
    """One orthogonal layer with a random share p of its weights kept: W o M ~ p O + sqrt(p (1 - p)) G.

    Attributes:
        density_kept: p in (0, 1).

    With free parts of circular and Haar type, g(s) = G of the symmetrized law solves w = s - p (1 - p) g and
    g = w / (w² - p²); the edges follow from z(u) = p²/u² - p (1 - p) / (u (u - 1)).
    Source: rectangular free convolution (Benaych-Georges 2009), checked by simulation.
    """

    density_kept: float

    def __post_init__(self) -> None:
        check_fraction(self, "RandomMask(0.9)", density_kept=self.density_kept)
        if self.density_kept == 1:
            raise ValueError("RandomMask() got density_kept=1.0, which removes nothing; the law is then Isometry().")

    def _square(self, u: float) -> float:
        p = self.density_kept
        return p**2 / u**2 - p * (1 - p) / (u * (u - 1))

    @property
    def edges(self) -> tuple[float, float]:
        """(low, high): the images of the roots u = ((5p - 1) -+ sqrt((1 - p)(1 + 7p))) / (2 (4p - 2))."""
        p = self.density_kept
        if abs(4 * p - 2) < 1e-9:
            return 0.0, math.sqrt(27 / 16)
        roots = [((5 * p - 1) + sign * math.sqrt((1 - p) * (1 + 7 * p))) / (2 * (4 * p - 2)) for sign in (1, -1)]
        squares = sorted(self._square(u) for u in roots)
        return math.sqrt(max(squares[0], 0.0)), math.sqrt(squares[1])

    def density(self, squares: Array) -> Array:
        """Return the density of lambda, |Im g| / (pi s), where g is the root of its cubic equation in the lower half plane."""
        p = self.density_kept
        c = p * (1 - p)
        density = np.empty(len(squares))
        for i, s in enumerate(np.sqrt(squares)):
            g = np.roots([c**2, -2 * c * s, s**2 - p**2 + c, -s])
            density[i] = max(-float(g.imag.min()), 0.0) / (math.pi * s)
        return density

    def moment(self, k: float) -> float:
        """Return E lambda^k; exactly p for k = 1, by quadrature otherwise."""
        return self.density_kept if k == 1 else super().moment(k)


@dataclass(frozen=True)
class MagnitudeMask(FussCatalan):
    """Products of L Gaussian layers, each with only its share `kept` of largest weights.

    They behave like Gaussian layers of variance sigma² v(kept), see `magnitude_variance`; with a random mask of the same
    share the variance is sigma² kept: `FussCatalan(L, sigma * sqrt(kept))`.

    Attributes:
        layers: L, at least 1.
        sigma: standard deviation of a weight before the mask, times sqrt(N).
        kept: share of the weights kept, in (0, 1].

    Source: Fuss-Catalan with the variance of a two-sided truncated normal distribution; checked by simulation.
    """

    kept: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "MagnitudeMask(3, kept=0.1)", kept=self.kept)

    @property
    def _scale(self) -> float:
        return float(super()._scale * magnitude_variance(self.kept) ** self.layers)


def magnitude_variance(kept: float) -> float:
    """Return v(p) = p + 2 z phi(z), z = Phi^-1(1 - p/2): the share of a Gaussian's variance in its largest entries.

    Layers with only the share p of their largest weights behave like Gaussian layers with sigma² v(p):
    `FussCatalan(L, sigma * sqrt(magnitude_variance(p)))`. The gain 1 / sqrt(v) restores the mean square.

    Args:
        kept: p in (0, 1].
    """
    if not 0 < kept <= 1:
        raise ValueError(f"magnitude_variance() got {kept}; it takes the share of weights kept, in (0, 1], e.g. 0.1.")
    from scipy import special

    z = float(special.ndtri(1 - kept / 2))
    return kept + 2 * z * float(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
