"""Deep residual networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isometry.spectra.laws.law import Array, Law, check_positive

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual(Law):
    """Residual networks J = product of (1 + X_l), with X_l Gaussian of variance c / (N L) and L to infinity.

    Attributes:
        strength: c = L sigma_w² E phi'², the variance per block summed over the depth.

    Edges: lambda_max = (r + 1)/(r - 1) exp(c r) with r = sqrt(1 + 2/c), lambda_min = 1 / lambda_max; the condition number
    is lambda_max. The Green's function solves z G - 1 = G exp(c (2 z G - 1)).
    Source: Tarnowski et al., AISTATS 2019 (arXiv 1809.08848).
    """

    strength: float

    def __post_init__(self) -> None:
        check_positive(self, "Residual(1.0)", strength=self.strength)

    @property
    def edges(self) -> tuple[float, float]:
        """(1 / s_max, s_max)."""
        r = math.sqrt(1 + 2 / self.strength)
        high = math.sqrt((r + 1) / (r - 1) * math.exp(self.strength * r))
        return 1 / high, high

    @property
    def condition_number(self) -> float:
        """The condition number s_max / s_min = lambda_max."""
        return self.edges[1] ** 2

    def density(self, squares: Array) -> Array:
        """Return rho = -Im G / pi, where H = z G solves H - 1 = (H / z) exp(c (2 H - 1)).

        The curve of those complex H at which z is real and positive is parametrized by their real part a; the imaginary
        part b solves 2 c b = arg(1 - 1/H) mod 2 pi.
        """
        _, b, z = self._curve
        order = np.argsort(z)
        imaginary = np.interp(squares, z[order], b[order], left=0.0, right=0.0)
        return imaginary / (math.pi * squares)

    @cached_property
    def _curve(self) -> tuple[Array, Array, Array]:
        from scipy import optimize

        c = self.strength
        r = math.sqrt(1 + 2 / c)
        # The ends of the curve are real: H (H - 1) = 1 / (2 c), where dz/dH = 0.
        a = np.linspace((1 - r) / 2, (1 + r) / 2, 4001)[1:-1]
        b = np.empty_like(a)
        for i, real in enumerate(a):

            def gap(imaginary: float, real: float = real) -> float:
                h = complex(real, imaginary)
                return 2 * c * imaginary - float(np.angle((h - 1) / h))

            # arg((H - 1)/H) decreases to 0, from pi (between the poles) or from 0, while 2 c b increases: they cross once.
            top = math.pi / (2 * c) + 1e-9
            low = 1e-12
            b[i] = optimize.brentq(gap, low, top) if gap(low) < 0 < gap(top) else 0.0
        h = a + 1j * b
        z = (h / (h - 1) * np.exp(c * (2 * h - 1))).real
        return a, b, z

    def moment(self, k: float) -> float:
        """Return E lambda^k; exactly exp(c) for k = 1, by quadrature otherwise."""
        return math.exp(self.strength) if k == 1 else super().moment(k)
