"""Report: the Jacobian spectrum of a network, what follows from it, and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isometry.measurement import ratios, serialization
from isometry.measurement.brackets import Brackets
from isometry.measurement.cost import Cost
from isometry.measurement.summary import summarize
from isometry.measurement.verdict import describe_ratio
from isometry.spectra import Estimate, Spectrum, mean_with_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report"]


@dataclass(frozen=True, eq=False)
class Report:
    """The Jacobian spectrum of a network and what follows from it.

    J is d output / d input of one sample; it has r = min(outputs, inputs) singular values, the JSVs.

    Attributes:
        spectrum: the JSVs [B, r] with weights; quadrature nodes where `method` is "krylov".
        method: "exact" or "krylov".
        cost: what that took.
        inputs: which inputs, in words.
        layers: a table with one row per layer, or None.
        notes: how it was done: routes of differentiation, folding, bottlenecks, why sampling ended.
        brackets: the quadrature bounds of a krylov measurement, else None.
        outputs: the number of outputs per sample.
        layer_means: {layer: [B], every sample's mean JSV of the map from it to the output}.
        reference: the report of the dense network at the same samples, or None.
    """

    spectrum: Spectrum
    method: str
    cost: Cost
    inputs: str
    layers: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    brackets: Brackets | None = None
    outputs: int | None = None
    layer_means: Mapping[str, Tensor] | None = None
    reference: Report | None = None

    @property
    def sample_means(self) -> Tensor:
        """[B]: every sample's mean JSV; the middle of its bracket where it is known by one."""
        if self.brackets is None:
            return self.spectrum.sample_means
        return self.brackets.middle

    @property
    def estimate(self) -> Estimate:
        """The mean JSV with its error; the sample is the unit, so that probe errors are part of the spread."""
        if self.brackets is None:
            return mean_with_error(self.sample_means)
        return self.brackets.estimate

    @property
    def mean_jsv(self) -> float:
        """The mean over samples of the mean of the r JSVs; 1 at dynamical isometry."""
        return self.estimate.value

    @property
    def sem(self) -> float:
        """Standard error of the mean JSV over samples, probe errors included; nan for one sample."""
        return self.estimate.sem

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean JSV over inputs like these; (nan, nan) for one sample.

        It allows for the samples drawn, for their skewness, and for the probes and brackets of a krylov measurement. The
        bracket of a sample alone holds for its probes, not for its mean.
        """
        return self.estimate.interval

    @property
    def components(self) -> dict[str, float]:
        """The parts of the error: standard errors of `samples` and `probes`, half-widths of `calibration` and `quadrature`.

        Calibration is the error of correcting short runs by long ones or by exact samples, with 95 % confidence; quadrature
        the half-width of the brackets.
        """
        if self.brackets is None:
            return {"samples": self.sem, "probes": 0.0, "calibration": 0.0, "quadrature": 0.0}
        parts = self.brackets.components
        between = math.sqrt(max(self.sem**2 - parts["probes"] ** 2, 0.0)) if parts["probes"] >= 0 else self.sem
        return {"samples": between, **parts}

    @property
    def estimation_error(self) -> float:
        """How far the mean JSV may lie from that of all singular values of these samples: 95 %, as a share of it.

        Unlike `interval` it says nothing of other inputs, and it is known for one sample, too. 0 for exact values.
        """
        return self.brackets.error / self.mean_jsv if self.brackets is not None and self.mean_jsv else 0.0

    @property
    def std_jsv(self) -> float:
        """Standard deviation over the pool of all samples' JSVs."""
        return self.spectrum.std

    @property
    def max_jsv(self) -> float:
        """The largest JSV of the pool; a `Bound` (>=) from a krylov measurement."""
        return self.spectrum.max

    @property
    def min_jsv(self) -> float:
        """The smallest JSV of the pool; a `Bound` (<=) from a krylov measurement."""
        return self.spectrum.min

    @property
    def condition_number(self) -> float:
        """The mean over samples of largest over smallest JSV; a `Bound` (>=) from a krylov measurement."""
        return self.spectrum.condition_number

    @property
    def isometry_gap(self) -> float:
        """The mean of (s - 1)² over the pool; 0 exactly at dynamical isometry."""
        return self.spectrum.isometry_gap

    @property
    def median_condition_number(self) -> float:
        """The median over samples of largest over smallest JSV; a `Bound` (>=) from a krylov measurement."""
        return self.spectrum.median_condition_number

    @property
    def singular_samples(self) -> int:
        """The number of samples with a JSV of 0, to within the precision; 0 from a krylov measurement, which cannot tell."""
        return self.spectrum.singular_samples

    @property
    def ratio(self) -> float | None:
        """The mean JSV over the reference's; None without a reference."""
        return None if self.reference is None else self.estimates["ratio"].value

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of `ratio`, paired sample by sample; None without a reference."""
        return None if self.reference is None else self.estimates["ratio"].interval

    @property
    def sample_ratios(self) -> Tensor | None:
        """[B]: every sample's mean JSV over the reference's; None without a reference.

        Their mean with its interval is `estimates["sample_ratio"]`.
        """
        return None if self.reference is None else ratios.sample_ratios(self, self.reference)

    @property
    def verdict(self) -> str | None:
        """What `ratio` means, in words, by the thresholds of `isometry.measurement.verdict`; None without a reference."""
        return None if self.reference is None else describe_ratio(self, self.estimates["ratio"])

    @property
    def estimates(self) -> dict[str, Estimate]:
        """{statistic: its value with its 95 % interval over samples}.

        The mean JSV, isometry gap and condition number are means over samples; the standard deviation's interval is that of
        its jackknife pseudo-values. The condition number's is (nan, nan) where a sample is singular, or only bounds are known.
        With a reference there are also the `ratio` of the mean JSVs, and `sample_ratio`, the mean of the samples' own ratios.
        """
        conditions = self.spectrum.condition_numbers
        known = self.spectrum.complete and bool(torch.isfinite(conditions).all())
        unknown = Estimate(self.condition_number, math.nan, (math.nan, math.nan), len(self.spectrum))
        return {
            "mean_jsv": self.estimate,
            "std_jsv": self._jackknifed_std(),
            "condition_number": mean_with_error(conditions) if known else unknown,
            "isometry_gap": mean_with_error(self.spectrum.isometry_gaps),
            **({} if self.reference is None else ratios.ratio_estimates(self, self.reference)),
        }

    def _jackknifed_std(self) -> Estimate:
        count = len(self.spectrum)
        first, second = self.spectrum.moments(1), self.spectrum.moments(2)
        if count < 2:
            return Estimate(self.std_jsv, math.nan, (math.nan, math.nan), count)
        without = [(moment.sum() - moment) / (count - 1) for moment in (first, second)]
        others = (without[1] - without[0].square()).clamp_min(0).sqrt()
        pseudo = mean_with_error(count * self.std_jsv - (count - 1) * others)
        return replace(pseudo, value=self.std_jsv)

    def statistics(self) -> dict[str, Any]:
        """Return the numbers of the report by name.

        Columns that end in `_is` say what a number is: "=", or the bound ">=" or "<=" of a stochastic measurement.
        """
        estimates = self.estimates
        ends = {
            f"{name}_{end}": estimates[name].interval[index]
            for name in ("std_jsv", "condition_number", "isometry_gap")
            for index, end in enumerate(("low", "high"))
        }
        bounds = {"max_jsv": self.max_jsv, "min_jsv": self.min_jsv, "condition_number": self.condition_number}
        return {
            "mean_jsv": self.mean_jsv,
            **(ratios.ratio_statistics(self, self.reference) if self.reference is not None else {}),
            "sem": self.sem,
            "interval_low": self.interval[0],
            "interval_high": self.interval[1],
            "std_jsv": self.std_jsv,
            **{name: float(value) for name, value in bounds.items()},
            "isometry_gap": self.isometry_gap,
            "condition_number_median": float(self.median_condition_number),
            "singular_samples": self.singular_samples,
            **ends,
            **{f"{name}_is": getattr(value, "side", "=") for name, value in bounds.items()},
            "samples": len(self.spectrum),
            "jsvs": self.spectrum.values.shape[1],
            "method": self.method,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the statistics as a table of one row, ready for `pandas.concat`.

        Bounds are plain numbers there, with their signs in columns that end in `_is`.
        """
        import pandas as pd

        return pd.DataFrame([self.statistics()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, in types that standard JSON knows; see `serialization.to_dict`."""
        return serialization.to_dict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` described.

        Raises:
            ValueError: the content is not that of a report.
        """
        return cls(**serialization.from_dict(content, cls))

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {text}" for name, text in summarize(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{text.replace('<', '&lt;')}</td></tr>"
            for name, text in summarize(self)
        )
        return f"<table>{rows}</table>"
