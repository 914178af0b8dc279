"""Confidence intervals of a mean from few and perhaps skewed units."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = [
    "bracketed_half_width",
    "bracketed_quantile",
    "choose_rule",
    "confidence_interval",
    "confidence_of_ends",
    "misses_evenly",
    "normal_quantile",
    "skewness",
    "student_quantile",
]

_SKEWED = 0.1
"""Variance of the logarithms above which positive units miss the mean of lognormal ones much more often on one side than on the other."""

_COX_BELOW = 8
"""With fewer units than this, positive units are always taken on the log scale: skewness cannot be seen in so few."""


@lru_cache(maxsize=10_000)
def student_quantile(count: int, confidence: float = 0.95) -> float:
    """Return Student's two-sided quantile for the mean of `count` units, at least 2: 12.7 for 2 units at 95 %."""
    from scipy import special  # takes a fifth of a second to import

    return float(special.stdtrit(count - 1, (1 + confidence) / 2))


def normal_quantile(confidence: float = 0.95) -> float:
    """Return the normal distribution's two-sided quantile: 1.96 at 95 %."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def bracketed_half_width(deviation: Tensor, half: Tensor) -> Tensor:
    """Return the half-width of the 95 % interval around the middle of a bracket whose ends are normal estimates: h + C s.

    Args:
        deviation: s, the standard deviation of the error that both ends have, of any shape.
        half: h, half the distance of the ends' means, of the same shape; taken as 0 where rounding makes it negative.
    """
    half, deviation = half.double().clamp_min(0), deviation.double()
    return half + bracketed_quantile(half / deviation.clamp_min(1e-300)) * deviation


def bracketed_quantile(ratio: Tensor) -> Tensor:
    """Return how many standard deviations C around a bracket hold the truth in 95 % of all cases, wherever in it the truth lies.

    Phi(C + 2h / s) - Phi(-C) = 0.95: C falls from 1.96 where h is 0 to 1.645 where h is large, as the truth can then be missed
    on one side only.

    Source: Imbens & Manski, Econometrica 72 (2004), 1845-1857.

    Args:
        ratio: h / s, half the length of the bracket over the standard deviation of its ends, float64, of any shape.
    """
    quantile = torch.full_like(ratio, 1.645)
    for _ in range(6):  # Newton's method, from below the root of a concave function
        missing = 0.95 - torch.special.ndtr(quantile + 2 * ratio) + torch.special.ndtr(-quantile)
        quantile = quantile + missing / (_density(quantile + 2 * ratio) + _density(quantile))
    return quantile


def confidence_of_ends(ratio: float, count: int, confidence: float = 0.95) -> float:
    """Return how confident the two-sided intervals of a bracket's ends must be for the whole to hold the truth with `confidence`.

    The whole reaches from the lower end of the one to the upper end of the other, and holds the truth wherever in the bracket it
    lies: `bracketed_quantile` with Student's distribution. It falls from `confidence` for a bracket without length to
    2 confidence - 1 for a long one.

    Args:
        ratio: half the length of the bracket over the standard error of its ends.
        count: how many units the standard error is estimated from, at least 2.
        confidence: wanted.
    """
    from scipy import special  # takes a fifth of a second to import

    lowest, highest = max(2 * confidence - 1, 0.0), confidence
    if not ratio > 0:
        return highest
    for _ in range(30):
        middle = (lowest + highest) / 2
        near = student_quantile(count, middle)
        if (1 - middle) / 2 + float(special.stdtr(count - 1, -near - 2 * ratio)) > 1 - confidence:
            lowest = middle
        else:
            highest = middle
    return highest


def _density(x: Tensor) -> Tensor:
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def skewness(units: Tensor) -> float:
    """Return the third standardized moment of `units` [B]; 0 where all are equal."""
    centered = units - units.mean()
    variance = float(centered.square().mean())
    return float(centered.pow(3).mean()) / variance**1.5 if variance > 0 else 0.0


def confidence_interval(units: Tensor, *, confidence: float = 0.95, rule: str | None = None) -> tuple[float, float]:
    """Return a confidence interval of the mean of the population that `units` [B] were drawn from.

    Args:
        units: [B], at least 2.
        confidence: of the interval.
        rule: "student", "cox" or "hall"; None chooses by `choose_rule`.
    """
    low, high = float(units.min()), float(units.max())
    if low == high:
        return low, high
    intervals = {"student": _student, "cox": _cox, "hall": _hall}
    return intervals[rule or choose_rule(units)](units.double(), student_quantile(len(units), confidence))


def choose_rule(units: Tensor) -> str:
    """Return the interval that suits `units` [B].

    - "cox", Student's interval on the log scale: positive units, and either fewer than 8 of them, or such that a
      lognormal distribution is likelier than a normal one and the logarithms are not skewed.
    - "hall", Student's interval corrected for skewness: other skewed units.
    - "student": all others.

    Skewed means a sample skewness of more than two standard errors, 2 sqrt(6 / B).
    """
    count, limit = len(units), 2 * math.sqrt(6 / len(units))
    if bool((units > 0).all()):
        if count < _COX_BELOW:
            return "cox"
        logs = units.double().log()
        # Log-likelihoods of the two fits, up to what both share.
        lognormal = -count * math.log(float(logs.std()) or 1e-300) - float(logs.sum())
        normal = -count * math.log(float(units.double().std()) or 1e-300)
        if lognormal > normal and abs(skewness(logs)) <= limit:
            return "cox"
    return "hall" if count >= _COX_BELOW and abs(skewness(units.double())) > limit else "student"


def misses_evenly(units: Tensor, rule: str) -> bool:
    """Whether intervals by a rule of `choose_rule` miss about as often on either side, as those of units that are not skewed do."""
    return rule == "student" or (rule == "cox" and float(units.double().log().var()) <= _SKEWED)


def _student(units: Tensor, quantile: float) -> tuple[float, float]:
    """Mean ± t s / sqrt(B)."""
    mean, reach = float(units.mean()), quantile * float(units.std()) / math.sqrt(len(units))
    return mean - reach, mean + reach


def _cox(units: Tensor, quantile: float) -> tuple[float, float]:
    """exp(m + v/2 ± t sqrt(v/B + v²/(2(B-1)))), m and v being mean and variance of the logarithms.

    Source: Cox's method with Student's quantile, in Zhou & Gao, Statistics in Medicine 16 (1997), 783-790.
    """
    logs = units.log()
    mean, variance, count = float(logs.mean()), float(logs.var()), len(units)
    reach = quantile * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    center = mean + variance / 2
    return math.exp(center - reach), math.exp(min(center + reach, 700.0))


def _hall(units: Tensor, quantile: float) -> tuple[float, float]:
    """Student's interval through the cubic transformation that takes the skewness g out of the statistic.

    T(W) = W + g W²/3 + g² W³/27 + g/(6B), W = (mean - mu) / s, is inverted at ± t / sqrt(B).

    Source: Hall, Journal of the Royal Statistical Society B 54 (1992), 221-228.
    """
    count, g = len(units), skewness(units)
    if abs(g) < 1e-9:
        return _student(units, quantile)
    mean, deviation = float(units.mean()), float(units.std())

    def inverse(t: float) -> float:
        inside = 1 + g * (t / math.sqrt(count) - g / (6 * count))
        return 3 / g * (math.copysign(abs(inside) ** (1 / 3), inside) - 1)

    return mean - deviation * inverse(quantile), mean - deviation * inverse(-quantile)
