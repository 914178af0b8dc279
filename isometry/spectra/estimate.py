"""Estimates: numbers that carry their error, and numbers known from one side only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

__all__ = ["Bound", "Estimate", "mean_with_error"]


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
