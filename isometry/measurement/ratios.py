"""Ratios of a network's JSVs to those of its reference, paired sample by sample."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isometry.measurement.verdict import describe_ratio
from isometry.spectra import Estimate, mean_with_error, normal_quantile

if TYPE_CHECKING:
    from isometry.measurement.report import Report

__all__ = ["bounds_of", "paired_ratio", "ratio_estimates", "ratio_statistics", "sample_ratios", "with_reference"]

_Bounds = tuple[Tensor, Tensor]


def paired_ratio(
    means: Tensor,
    reference: Tensor,
    bounds: _Bounds | None = None,
    reference_bounds: _Bounds | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return R = mean(m) / mean(d) with its interval, for numbers m and d of the same samples.

    The interval is that of the mean of m_i - R d_i over mean(d), around R: linear in the errors of both means (the delta
    method), so that what samples have in common cancels. It does not reach below 0.

    Args:
        means: m [B], at least 0.
        reference: d [B], at least 0.
        bounds: lower and upper bounds [B] of every m, where they are known by brackets.
        reference_bounds: of every d.
        confidence: of the interval.
    """
    base = float(reference.mean())
    if base == 0:
        return Estimate(math.nan, math.nan, (math.nan, math.nan), len(means))
    ratio = float(means.mean()) / base
    low, high = bounds or (means, means)
    reference_low, reference_high = reference_bounds or (reference, reference)
    found = mean_with_error(
        ratio + (means - ratio * reference) / base,
        ratio + (low - ratio * reference_high) / base,
        ratio + (high - ratio * reference_low) / base,
        confidence=confidence,
    )
    ends = (max(found.interval[0], 0.0), found.interval[1]) if len(means) > 1 else found.interval
    return replace(found, value=ratio, interval=ends)


def sample_ratios(report: Report, reference: Report) -> Tensor:
    """Return every sample's own ratio of mean JSVs [B]; infinite or nan where the reference's is 0."""
    return report.sample_means / reference.sample_means


def ratio_estimates(report: Report, reference: Report, confidence: float = 0.95) -> dict[str, Estimate]:
    """Return the `ratio` of two reports' mean JSVs at the same samples, and the mean of the samples' own, `sample_ratio`.

    The second is nan where a sample of the reference has JSVs of 0.
    """
    bounds, reference_bounds = bounds_of(report, confidence), bounds_of(reference, confidence)
    ratio = paired_ratio(report.sample_means, reference.sample_means, bounds, reference_bounds, confidence=confidence)
    (low, high), (reference_low, reference_high) = bounds, reference_bounds
    if not bool((reference_low > 0).all()):
        return {"ratio": ratio, "sample_ratio": Estimate(math.nan, math.nan, (math.nan, math.nan), len(low))}
    by_sample = mean_with_error(
        sample_ratios(report, reference), low / reference_high, high / reference_low, confidence=confidence
    )
    return {"ratio": ratio, "sample_ratio": by_sample}


def ratio_statistics(report: Report, reference: Report, confidence: float = 0.95) -> dict[str, Any]:
    """Return the ratios with the ends of their intervals, and the verdict, by name, as columns of a table."""
    estimates = ratio_estimates(report, reference, confidence)
    columns: dict[str, Any] = {}
    for name, estimate in estimates.items():
        columns |= {name: estimate.value, f"{name}_low": estimate.interval[0], f"{name}_high": estimate.interval[1]}
    return columns | {"verdict": describe_ratio(report, estimates["ratio"])}


def bounds_of(report: Report, confidence: float = 0.95) -> _Bounds:
    """Return bounds [B] of every sample's mean, which hold what calibration says with this confidence."""
    if report.brackets is None:
        return report.sample_means, report.sample_means
    found = report.brackets
    shared = found.shared * normal_quantile(confidence) / normal_quantile()
    return found.lower - shared, found.upper + shared


def with_reference(report: Report, reference: Report) -> Report:
    """Return a report with that of its reference at the same samples, and the ratios of layers that both have.

    The table of layers gains `reference` (its mean JSV), `ratio`, `ratio_low` and `ratio_high`. A layer's ratio is that of
    the sums of singular values: the map from a layer narrower than the output has fewer of them, and those missing count as 0.
    """
    table = report.layers
    if table is None or reference.layers is None:
        return replace(report, reference=reference)
    widths = dict(zip(reference.layers["layer"], reference.layers["width"], strict=True))
    means = dict(zip(reference.layers["layer"], reference.layers["mean_jsv"], strict=True))
    rows = [
        _layer_ratio(report, reference, name, _values(report, width), _values(reference, widths.get(name, 0)))
        for name, width in zip(table["layer"], table["width"], strict=True)
    ]
    columns: dict[str, Any] = {"reference": [means.get(name, math.nan) for name in table["layer"]]}
    columns["ratio"] = [row.value for row in rows]
    columns["ratio_low"], columns["ratio_high"] = ([row.interval[end] for row in rows] for end in (0, 1))
    return replace(report, reference=reference, layers=table.assign(**columns))


def _values(report: Report, width: int) -> int:
    """Return how many singular values the map from a layer of that width to the output has."""
    return int(min(width, report.outputs if report.outputs is not None else width))


def _layer_ratio(report: Report, reference: Report, name: str, values: int, reference_values: int) -> Estimate:
    means, others = (report.layer_means or {}).get(name), (reference.layer_means or {}).get(name)
    if means is None or others is None or len(means) != len(others):
        return Estimate(math.nan, math.nan, (math.nan, math.nan), 0)
    return paired_ratio(means * values, others * reference_values)
