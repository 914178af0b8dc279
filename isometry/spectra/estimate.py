"""Estimates with their errors, and bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Bound", "Estimate", "mean_with_error", "student_quantile"]


class Bound(float):
    """A float that is a lower or an upper bound of the true value; it prints with its sign, e.g. `<=0.031`."""

    side: str

    def __new__(cls, value: float, side: str) -> Bound:
        """Create a bound; `side` is '<=' (the true value is at most `value`) or '>=' (at least)."""
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
    """A number with its standard error and confidence interval.

    Attributes:
        value: the estimate.
        sem: its standard error over the averaged units; nan for one unit.
        interval: 95 % confidence interval, (low, high).
        units: how many independent units were averaged.
    """

    value: float
    sem: float
    interval: tuple[float, float]
    units: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"


def student_quantile(count: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution for the mean of `count` units, at least 2."""
    from scipy import special  # takes a fifth of a second to import

    return float(special.stdtrit(count - 1, 0.975))


def mean_with_error(units: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Estimate:
    """Return the mean of independent `units` [B] with its standard error and Student's 95 % interval.

    Args:
        units: [B], one number per unit.
        low: [B], lower bounds of the units' true values, where `units` are estimates inside brackets.
        high: [B], upper bounds likewise. The interval then reaches from the lower end of the interval of `low` to the
            upper end of that of `high`.
    """
    count = len(units)
    value = float(units.mean())
    if count < 2:
        return Estimate(value, math.nan, (math.nan, math.nan), count)
    quantile = student_quantile(count)
    ends = [units if end is None else end for end in (low, high)]
    sems = [float(end.std()) / math.sqrt(count) for end in ends]
    interval = (float(ends[0].mean()) - quantile * sems[0], float(ends[1].mean()) + quantile * sems[1])
    return Estimate(value, float(units.std()) / math.sqrt(count), interval, count)
