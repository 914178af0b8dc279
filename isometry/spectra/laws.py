"""Closed-form spectra: what the singular values of random, pruned and residual maps tend to.

Shapes and scales unless stated: square N x N layers, N to infinity; "Gaussian" weights are independent with variance
sigma²/N, "orthogonal" ones sigma times a Haar matrix. A law is that of the singular values s; its formulas are in
lambda = s².
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from isometry.spectra.spectrum import Spectrum

__all__ = [
    "BernoulliGaussian",
    "BernoulliOrthogonal",
    "FussCatalan",
    "Isometry",
    "Law",
    "MarchenkoPastur",
    "NormLaw",
    "RandomMask",
    "Residual",
    "magnitude_variance",
]

Array = NDArray[np.float64]


class Law(ABC):
    """A distribution of singular values: atoms plus a density between two edges."""

    @property
    @abstractmethod
    def edges(self) -> tuple[float, float]:
        """The smallest and largest singular value of the continuous part."""

    @property
    def atoms(self) -> dict[float, float]:
        """{singular value: its share}, where a share of the values is exactly equal."""
        return {}

    @abstractmethod
    def density(self, squares: Array) -> Array:
        """Return the density of lambda = s² at `squares`, without the atoms."""

    def pdf(self, s: Array | float) -> Array:
        """Return the density of s, 2 s rho(s²), without the atoms; 0 outside the edges."""
        s = np.asarray(s, dtype=float)
        low, high = self.edges
        inside = (s > low) & (s < high)
        out = np.zeros_like(s)
        if inside.any():
            out[inside] = 2 * s[inside] * self.density(s[inside] ** 2)
        return out

    @cached_property
    def _grid(self) -> tuple[Array, Array]:
        """Singular values between the edges, dense near both, and the mass of the continuous part up to each."""
        low, high = self.edges
        if low == high:
            return np.array([low, high + 1e-12]), np.zeros(2)
        cosine = (1 - np.cos(np.linspace(0, math.pi, 4001))) / 2
        start = low or 0.02 * high
        s = start + (high - start) * cosine
        if not low:  # the density can diverge at zero: a geometric grid there
            s = np.concatenate([[0.0], high * np.geomspace(1e-10, 0.02, 2000)[:-1], s])
        middle = (s[1:] + s[:-1]) / 2
        mass = np.concatenate([[0.0], np.cumsum(self.pdf(middle) * np.diff(s))])
        # Edges can be singular: the rule's small loss there is made good by the known total.
        return s, mass * (1 - sum(self.atoms.values())) / mass[-1]

    def cdf(self, s: Array | float) -> Array:
        """Return the share of singular values at or below s, atoms included."""
        s = np.asarray(s, dtype=float)
        grid, mass = self._grid
        out = np.interp(s, grid, mass, left=0.0, right=mass[-1])
        for place, share in self.atoms.items():
            out = out + share * (s >= place)
        return out

    def moment(self, k: float) -> float:
        """Return the mean of lambda^k = s^(2k), atoms included; here by quadrature of the distribution function."""
        grid, mass = self._grid
        middle = (grid[1:] + grid[:-1]) / 2
        total = float((middle ** (2 * k) * np.diff(mass)).sum())
        return total + sum(share * place ** (2 * k) for place, share in self.atoms.items())

    @property
    def mean_jsv(self) -> float:
        """The mean singular value."""
        return self.moment(0.5)

    def distance(self, spectrum: Spectrum) -> float:
        """Return the Kolmogorov-Smirnov distance to a measured spectrum: the largest gap of the two distributions."""
        values, order = spectrum.values.flatten().sort()
        steps = (spectrum.weights.flatten()[order].cumsum(0) / len(spectrum)).numpy()
        snapped = values.numpy().copy()
        # Values on an atom up to rounding count as on it.
        for place in self.atoms:
            snapped[np.abs(snapped - place) < (1e-5 if place else 1e-8) * snapped.max()] = place
        above, below = steps, np.concatenate([[0.0], steps[:-1]])
        theory = self.cdf(snapped)
        left = theory - sum(share * (snapped == place) for place, share in self.atoms.items())
        last = np.append(np.diff(snapped) > 0, True)
        first = np.append(True, np.diff(snapped) > 0)
        return float(max(np.abs(theory - above)[last].max(), np.abs(left - below)[first].max()))


@dataclass(frozen=True)
class Isometry(Law):
    """All singular values equal `scale`: products of orthogonal layers of gain g have scale g^L at any width.

    Also a convolution whose only tap is orthonormal (delta-orthogonal), zero or circular padding, stride 1.

    Source: Saxe et al., ICLR 2014 (arXiv 1312.6120); Xiao et al., ICML 2018 (arXiv 1806.05393).
    """

    scale: float = 1.0

    @property
    def edges(self) -> tuple[float, float]:
        """(scale, scale)."""
        return self.scale, self.scale

    @property
    def atoms(self) -> dict[float, float]:
        """Everything at `scale`."""
        return {self.scale: 1.0}

    def density(self, squares: Array) -> Array:
        """Return zeros: there is no continuous part."""
        return np.zeros_like(squares)

    def moment(self, k: float) -> float:
        """Return scale^(2k)."""
        return self.scale ** (2 * k)


@dataclass(frozen=True)
class FussCatalan(Law):
    """Products of L Gaussian layers, lambda / sigma^(2L) ~ Fuss-Catalan of order L.

    Randomly masked layers of density p are Gaussian with sigma² p; magnitude-pruned ones with sigma² v(p), see
    `magnitude_variance`.

    Attributes:
        layers: L, at least 1.
        sigma: standard deviation of a weight times sqrt(N).

    Source: Penson & Zyczkowski 2011 (arXiv 1103.3453); Pennington et al. 2017 (arXiv 1711.04735).
    """

    layers: int
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, layers=self.layers, sigma=self.sigma)

    @property
    def _scale(self) -> float:
        return self.sigma ** (2 * self.layers)

    @property
    def edges(self) -> tuple[float, float]:
        """(0, sigma^L sqrt((L + 1)^(L + 1) / L^L))."""
        n = self.layers
        return 0.0, math.sqrt(self._scale * (n + 1) ** (n + 1) / n**n)

    def moment(self, k: float) -> float:
        """Return E lambda^k = sigma^(2Lk) Gamma((L+1)k+1) / (Gamma(k+1) Gamma(Lk+2)), k > -1/(L+1)."""
        n = self.layers
        logs = special.gammaln((n + 1) * k + 1) - special.gammaln(k + 1) - special.gammaln(n * k + 2)
        return self._scale**k * math.exp(logs)

    @property
    def log_mean(self) -> float:
        """E log s, which is L (log sigma - 1/2)."""
        return self.layers * (math.log(self.sigma) - 0.5)

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho) at sigma 1, rising, from the parametric form in the angle 0 < phi < pi / (L + 1)."""
        n = self.layers
        # Angles crowd at both ends: lambda spans many decades towards pi / (L + 1).
        ends = np.geomspace(1e-9, 0.5, 3000)
        phi = np.concatenate([ends, 1 - ends[::-1]]) * math.pi / (n + 1)
        upper, inner = np.log(np.sin((n + 1) * phi)), np.log(np.sin(n * phi))
        square = (n + 1) * upper - np.log(np.sin(phi)) - n * inner
        rho = 2 * np.log(np.sin(phi)) + (n - 1) * inner - math.log(math.pi) - n * upper
        order = np.argsort(square)
        return square[order], rho[order]

    def density(self, squares: Array) -> Array:
        """Return the density of lambda: rho = sin²(phi) sin^(L-1)(L phi) / (pi sin^L((L+1) phi))."""
        x, y = self._curve
        return np.exp(np.interp(np.log(squares / self._scale), x, y)) / self._scale


@dataclass(frozen=True)
class MarchenkoPastur(Law):
    """One Gaussian layer n x m, n <= m, entries of variance sigma²/m: the n singular values.

    Attributes:
        ratio: c = n / m in (0, 1].
        sigma: standard deviation of a weight times sqrt(m).

    Source: Marchenko & Pastur 1967.
    """

    ratio: float
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, ratio=self.ratio, sigma=self.sigma)
        _share(self, ratio=self.ratio)

    @property
    def edges(self) -> tuple[float, float]:
        """Sigma (1 -+ sqrt(c))."""
        root = math.sqrt(self.ratio)
        return self.sigma * (1 - root), self.sigma * (1 + root)

    def density(self, squares: Array) -> Array:
        """Return sqrt((high - x)(x - low)) / (2 pi c x) in units of sigma²."""
        low, high = (edge**2 for edge in self.edges)
        root = np.sqrt(np.maximum((high - squares) * (squares - low), 0))
        return root / (2 * math.pi * self.ratio * squares * self.sigma**2)


class _Gated(Law):
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

    def density(self, squares: Array) -> Array:
        """Return rho = Im M / (pi lambda), M the physical root of lambda(M) = lambda in the upper half plane."""
        x, y = self._curve
        return np.exp(np.interp(np.log(squares / self._scale), x, y, left=-np.inf, right=-np.inf)) / self._scale

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho) at sigma 1, rising in lambda.

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
        _positive(self, layers=self.layers, open=self.open, sigma=self.sigma)
        _share(self, open=self.open)

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
        _positive(self, layers=self.layers, open=self.open, sigma=self.sigma)
        _share(self, open=self.open)

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


@dataclass(frozen=True)
class RandomMask(Law):
    """One orthogonal layer of which a random share p of the weights is kept: W o M ~ p O + sqrt(p (1 - p)) G.

    Attributes:
        density_kept: p in (0, 1).

    With free parts of circular and Haar type, g(s) = G of the symmetrised law solves w = s - p (1 - p) g and
    g = w / (w² - p²); the edges follow from z(u) = p²/u² - p (1 - p) / (u (u - 1)).
    Source: rectangular free convolution (Benaych-Georges 2009), checked by simulation.
    """

    density_kept: float

    def __post_init__(self) -> None:
        _positive(self, density_kept=self.density_kept)
        _share(self, density_kept=self.density_kept)

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
        """Return the density of lambda, Im g / (pi s) in size, g the complex root of its cubic in the lower half plane."""
        p = self.density_kept
        c = p * (1 - p)
        found = np.empty(len(squares))
        for i, s in enumerate(np.sqrt(squares)):
            g = np.roots([c**2, -2 * c * s, s**2 - p**2 + c, -s])
            found[i] = max(-float(g.imag.min()), 0.0) / (math.pi * s)
        return found

    def moment(self, k: float) -> float:
        """Return E lambda^k; exactly p for k = 1, by quadrature otherwise."""
        return self.density_kept if k == 1 else super().moment(k)


@dataclass(frozen=True)
class Residual(Law):
    """Residual nets J = product of (1 + X_l), X_l Gaussian of variance c / (N L), L to infinity.

    Attributes:
        strength: c, the per-block variance summed over depth, L sigma_w² E phi'².

    Edges: lambda_max = (r + 1)/(r - 1) exp(c r) with r = sqrt(1 + 2/c), lambda_min = 1 / lambda_max; the condition number
    is lambda_max. The Green's function solves z G - 1 = G exp(c (2 z G - 1)).
    Source: Tarnowski et al., AISTATS 2019 (arXiv 1809.08848).
    """

    strength: float

    def __post_init__(self) -> None:
        _positive(self, strength=self.strength)

    @property
    def edges(self) -> tuple[float, float]:
        """(1 / s_max, s_max)."""
        r = math.sqrt(1 + 2 / self.strength)
        high = math.sqrt((r + 1) / (r - 1) * math.exp(self.strength * r))
        return 1 / high, high

    @property
    def condition_number(self) -> float:
        """s_max / s_min, which is lambda_max."""
        return self.edges[1] ** 2

    def density(self, squares: Array) -> Array:
        """Return rho = -Im G / pi, with H = z G solving H - 1 = (H / z) exp(c (2 H - 1)).

        The curve of complex H with a real z > 0 is traced in its real part a: the imaginary part b solves
        2 c b = arg(1 - 1/H) mod 2 pi.
        """
        _, b, z = self._curve
        order = np.argsort(z)
        imaginary = np.interp(squares, z[order], b[order], left=0.0, right=0.0)
        return imaginary / (math.pi * squares)

    @cached_property
    def _curve(self) -> tuple[Array, Array, Array]:
        c = self.strength
        r = math.sqrt(1 + 2 / c)
        # The ends of the curve are real: H (H - 1) = 1 / (2 c), where dz/dH = 0.
        a = np.linspace((1 - r) / 2, (1 + r) / 2, 4001)[1:-1]
        b = np.empty_like(a)
        for i, real in enumerate(a):

            def gap(imaginary: float, real: float = real) -> float:
                h = complex(real, imaginary)
                return 2 * c * imaginary - float(np.angle((h - 1) / h))

            # arg((H - 1)/H) falls from pi (between the poles) or 0 to 0 while 2 c b rises: one crossing.
            top = math.pi / (2 * c) + 1e-9
            low = 1e-12
            b[i] = optimize.brentq(gap, low, top) if gap(low) < 0 < gap(top) else 0.0
        h = a + 1j * b
        z = (h / (h - 1) * np.exp(c * (2 * h - 1))).real
        return a, b, z

    def moment(self, k: float) -> float:
        """Return E lambda^k; exactly exp(c) for k = 1, by quadrature otherwise."""
        return math.exp(self.strength) if k == 1 else super().moment(k)


@dataclass(frozen=True)
class NormLaw(Law):
    """LayerNorm (scale 1, epsilon 0) of width n at an input of standard deviation `spread`: 1/spread, and zeros.

    LayerNorm removes the mean and the length, two directions; RMSNorm the length alone. Exact at any width.

    Attributes:
        width: n.
        spread: the population standard deviation of the input (LayerNorm), its root mean square (RMSNorm).
        lost: directions lost, 2 for LayerNorm, 1 for RMSNorm.
    """

    width: int
    spread: float
    lost: int = 2

    @property
    def edges(self) -> tuple[float, float]:
        """(1 / spread, 1 / spread)."""
        return 1 / self.spread, 1 / self.spread

    @property
    def atoms(self) -> dict[float, float]:
        """The lost directions at 0, all others at 1 / spread."""
        return {0.0: self.lost / self.width, 1 / self.spread: 1 - self.lost / self.width}

    def density(self, squares: Array) -> Array:
        """Return zeros: there is no continuous part."""
        return np.zeros_like(squares)

    def moment(self, k: float) -> float:
        """Return (1 - lost / n) spread^(-2k)."""
        return (1 - self.lost / self.width) * self.spread ** (-2 * k)


def magnitude_variance(kept: float) -> float:
    """Return v(p) = p + 2 z phi(z), z = Phi^-1(1 - p/2): the share of a Gaussian's variance in its largest entries.

    Layers from which all but the share p of largest weights was removed behave like Gaussian ones with
    sigma² v(p): `FussCatalan(L, sigma * sqrt(magnitude_variance(p)))`; the gain 1 / sqrt(v) restores the mean square.

    Args:
        kept: p in (0, 1].
    """
    if not 0 < kept <= 1:
        raise ValueError(f"magnitude_variance() got {kept}; it takes the share of weights kept, in (0, 1], e.g. 0.1.")
    z = float(stats.norm.ppf(1 - kept / 2))
    return kept + 2 * z * float(stats.norm.pdf(z))


def _positive(law: Law, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{type(law).__name__}() got {name}={value}; it takes a positive number.")


def _share(law: Law, **values: float) -> None:
    for name, value in values.items():
        if not value <= 1:
            raise ValueError(f"{type(law).__name__}() got {name}={value}; it takes a share of at most 1.")
