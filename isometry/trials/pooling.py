"""An effect seen in several studies, pooled over studies that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Pooled", "pool"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """The mean of an effect over studies that differ.

    Attributes:
        mean: over a population of studies like these.
        low, high: its 95 % confidence interval.
        tau: standard deviation of the effect between studies; nan for one.
        studies: their number.
    """

    mean: float
    low: float
    high: float
    tau: float
    studies: int

    def text(self, digits: int, *, scale: float = 1.0, limits: tuple[float, float] = (-1.0, 1.0)) -> str:
        """Return "mean [low, high]", cut at the limits of what the effect can be; the mean alone of one study, "" of none.

        Args:
            digits: after the point.
            scale: 100 for percent.
            limits: the smallest and the largest possible effect, before scaling.
        """
        if np.isnan(self.mean):
            return ""
        mean, low, high = (f"{scale * x:.{digits}f}" for x in (self.mean, *np.clip((self.low, self.high), *limits)))
        return mean if np.isnan(self.low) else f"{mean} [{low}, {high}]"


def pool(effects: Array, variances: Array) -> Pooled:
    """Return the random-effects mean of effects [K] with sampling variances [K]; nan are left out.

    All studies count the same: weights 1 / (v + tau²) would favor shares and correlations near the ends of what they can be,
    where these vary least. tau² is the variance between effects less the mean of v (Hedges & Olkin, Statistical Methods for
    Meta-Analysis, 1985, chapter 9); the interval is Student's with K - 1 degrees of freedom, nan for one study.
    """
    known = np.isfinite(effects) & np.isfinite(variances)
    effects, variances = effects[known], variances[known]
    count = len(effects)
    if not count:
        return Pooled(np.nan, np.nan, np.nan, np.nan, 0)
    mean = float(effects.mean())
    if count == 1:
        return Pooled(mean, np.nan, np.nan, np.nan, 1)
    spread = float(effects.var(ddof=1))
    half = float(stats.t.ppf(0.975, count - 1)) * (spread / count) ** 0.5
    return Pooled(mean, mean - half, mean + half, max(0.0, spread - float(variances.mean())) ** 0.5, count)
