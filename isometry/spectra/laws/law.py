"""Distributions of singular values, with the statistics that follow from density and atoms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isometry.spectra.spectrum import Spectrum

__all__ = ["Array", "Curved", "Discrete", "Law", "check_fraction", "check_positive"]

Array = NDArray[np.float64]


class Law(ABC):
    """A distribution of singular values: atoms plus a density between two edges."""

    @property
    @abstractmethod
    def edges(self) -> tuple[float, float]:
        """The smallest and largest singular value of the continuous part."""

    @property
    def atoms(self) -> dict[float, float]:
        """{singular value: its share}, for values that a positive share of all values equals exactly."""
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
        """Singular values between the edges, dense near both, and the mass of the continuous part below each."""
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
        # The density can be singular at the edges: the quadrature's small error there is corrected by the known total.
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
        """Return the mean of lambda^k = s^(2k), atoms included; by quadrature of the distribution function."""
        grid, mass = self._grid
        middle = (grid[1:] + grid[:-1]) / 2
        total = float((middle ** (2 * k) * np.diff(mass)).sum())
        return total + sum(share * place ** (2 * k) for place, share in self.atoms.items())

    @property
    def mean_jsv(self) -> float:
        """The mean singular value."""
        return self.moment(0.5)

    def distance(self, spectrum: Spectrum) -> float:
        """Return the Kolmogorov-Smirnov distance to a measured spectrum: the largest difference of the two cdfs, in [0, 1]."""
        values, order = spectrum.values.flatten().sort()
        steps = (spectrum.weights.flatten()[order].cumsum(0) / len(spectrum)).numpy()
        snapped = values.numpy().copy()
        # Values that differ from an atom by rounding errors count as equal to it.
        for place in self.atoms:
            snapped[np.abs(snapped - place) < (1e-5 if place else 1e-8) * snapped.max()] = place
        above, below = steps, np.concatenate([[0.0], steps[:-1]])
        theory = self.cdf(snapped)
        left = theory - sum(share * (snapped == place) for place, share in self.atoms.items())
        last = np.append(np.diff(snapped) > 0, True)
        first = np.append(True, np.diff(snapped) > 0)
        return float(max(np.abs(theory - above)[last].max(), np.abs(left - below)[first].max()))


class Curved(Law):
    """A law whose density is a curve (log lambda, log rho), over many decades.

    Many singular values of deep products lie decades below the mean: at L = 16 Gaussian layers a tenth of the values is
    below 1e-9 of the largest. The mass is therefore integrated in log lambda.
    """

    @property
    @abstractmethod
    def _scale(self) -> float:
        """The lambda that corresponds to 1 on the curve."""

    @property
    @abstractmethod
    def _curve(self) -> tuple[Array, Array]:
        """(log lambda, log rho) at scale 1, in order of increasing lambda."""

    def density(self, squares: Array) -> Array:
        """Return the density of lambda, interpolated on the curve."""
        x, y = self._curve
        return np.exp(np.interp(np.log(squares / self._scale), x, y, left=-np.inf, right=-np.inf)) / self._scale

    @cached_property
    def _grid(self) -> tuple[Array, Array]:
        if self.edges[0] == self.edges[1]:
            return super()._grid
        x, y = self._curve
        mass_per_log = np.exp(x + y)
        mass = np.concatenate([[0.0], np.cumsum(np.diff(x) * (mass_per_log[1:] + mass_per_log[:-1]) / 2)])
        return np.exp((x + math.log(self._scale)) / 2), mass * (1 - sum(self.atoms.values())) / mass[-1]


class Discrete(Law):
    """A law without continuous part: all values are atoms."""

    @property
    @abstractmethod
    def atoms(self) -> dict[float, float]:
        """{singular value: its share}."""

    @property
    def edges(self) -> tuple[float, float]:
        """The smallest and the largest atom."""
        return min(self.atoms), max(self.atoms)

    def density(self, squares: Array) -> Array:
        """Return zeros: there is no continuous part."""
        return np.zeros_like(squares)

    def cdf(self, s: Array | float) -> Array:
        """Return the share of singular values at or below s."""
        places, shares = map(np.array, zip(*sorted(self.atoms.items()), strict=True))
        return np.concatenate([[0.0], shares.cumsum()])[np.searchsorted(places, np.asarray(s, float), side="right")]

    def moment(self, k: float) -> float:
        """Return the mean of lambda^k = s^(2k)."""
        return math.fsum(share * place ** (2 * k) for place, share in self.atoms.items())


def check_positive(law: Law, example: str, **values: float) -> None:
    """Raise a ValueError that names the first value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{type(law).__name__}() got {name}={value}; it takes a positive number, e.g. {example}.")


def check_fraction(law: Law, example: str, **values: float) -> None:
    """Raise a ValueError that names the first value that is not in (0, 1]."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{type(law).__name__}() got {name}={value}; it takes a number in (0, 1], e.g. {example}.")
