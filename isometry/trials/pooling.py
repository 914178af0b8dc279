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
        tau: standard deviation of the effect between studies.
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

    Weights 1 / (v + tau²), tau² by moments (DerSimonian & Laird, Controlled Clinical Trials 1986, Eq. 8); the interval with
    Student's t of K - 1 degrees of freedom and the weighted residual variance (Hartung & Knapp, Statistics in Medicine 2001),
    nan for one study.
    """
    known = np.isfinite(effects) & np.isfinite(variances)
    effects, variances = effects[known], np.maximum(variances[known], 1e-9)
    count = len(effects)
    if not count:
        return Pooled(np.nan, np.nan, np.nan, np.nan, 0)
    fixed = 1 / variances
    spread = float(fixed @ (effects - fixed @ effects / fixed.sum()) ** 2)
    excess = (spread - (count - 1)) / (fixed.sum() - (fixed**2).sum() / fixed.sum()) if count > 1 else 0.0
    tau2 = max(0.0, float(excess))
    weights = 1 / (variances + tau2)
    mean = float(weights @ effects / weights.sum())
    half = float("nan")
    if count > 1:
        error = np.sqrt(weights @ (effects - mean) ** 2 / ((count - 1) * weights.sum()))
        half = float(stats.t.ppf(0.975, count - 1) * error)
    return Pooled(mean, mean - half, mean + half, tau2**0.5, count)
