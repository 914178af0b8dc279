"""Estimates with their errors, and bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from isometry.spectra.intervals import (
    choose_rule,
    confidence_interval,
    confidence_of_ends,
    misses_evenly,
    normal_quantile,
)

__all__ = ["Bound", "Estimate", "mean_with_error"]


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
        interval: confidence interval, (low, high); 95 % unless asked otherwise.
        units: how many independent units were averaged.
        rule: how the interval was found, "student", "cox" or "hall"; see `intervals.choose_rule`.
    """

    value: float
    sem: float
    interval: tuple[float, float]
    units: int
    rule: str = "student"

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"


def mean_with_error(
    units: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    shared: float = 0.0,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean of independent `units` [B] with its standard error and confidence interval.

    The interval is Student's, or one that allows for skewness, chosen by `intervals.choose_rule`.

    Args:
        units: [B], one number per unit.
        low: [B], lower bounds of the units' true values, where `units` are estimates inside brackets.
        high: [B], upper bounds likewise. The interval then reaches from the lower end of an interval of `low` to the
            upper end of one of `high`. Their confidence is what makes the whole hold (see `intervals.confidence_of_ends`); for
            skewed units, which are missed on one side much more often, the full one.
        shared: half-width of the 95 % interval of an error that all units have in common; it joins that of the mean in squares.
        confidence: of the interval.
    """
    count = len(units)
    value = float(units.mean())
    if count < 2:
        return Estimate(value, math.nan, (math.nan, math.nan), count)
    rule, sem = choose_rule(units), float(units.std()) / math.sqrt(count)
    evenly = misses_evenly(units, rule)
    low, high = units if low is None else low, units if high is None else high
    if rule == "cox" and not bool((low > 0).all()):
        rule = "student"
    half = float((high - low).mean()) / 2
    ratio = half / max(math.hypot(sem, shared / normal_quantile()), 1e-300)
    each = confidence_of_ends(ratio, count, confidence) if evenly else confidence
    ends = (
        confidence_interval(low, confidence=each, rule=rule)[0],
        confidence_interval(high, confidence=each, rule=rule)[1],
    )
    if shared > 0:
        reach = shared * normal_quantile(each) / normal_quantile()
        means = float(low.mean()), float(high.mean())
        ends = means[0] - math.hypot(means[0] - ends[0], reach), means[1] + math.hypot(ends[1] - means[1], reach)
    return Estimate(value, sem, ends, count, rule)
