"""Summary: a report as lines of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from isometry.measurement.ratios import sample_ratios
from isometry.measurement.verdict import worst_layers
from isometry.spectra import Estimate

if TYPE_CHECKING:
    from isometry.measurement.report import Report

__all__ = ["summarize"]

_ROUTES = {
    "batched": "a backward pass for some outputs together",
    "loop": "a backward pass for each output",
    "replicated": "a backward pass over copies of the samples",
    "one by one": "a backward pass for each sample and output",
    "differences": "finite differences",
    "linearize": "forward mode, traced once",
    "double vjp": "a backward pass, differentiated",
    "jvp": "forward mode",
    "Jᵀ alone": "J differs from it, by rounding errors or a wrong derivative",
}


def summarize(report: Report) -> list[tuple[str, str]]:
    """Return the printed lines of a report, (what, text) each."""
    count, values = report.spectrum.values.shape
    kind = "values" if report.spectrum.complete else "nodes"
    estimates = {name: _with_interval(estimate) for name, estimate in report.estimates.items()}
    rows = [("mean JSV", estimates["mean_jsv"] if count > 1 else _of_one(report))]
    if report.reference is not None:
        dense, ratios = report.reference.mean_jsv, sample_ratios(report, report.reference)
        rows += [
            ("ratio", f"{estimates['ratio']}, to the dense network's mean JSV of {dense:.4g}"),
            (
                "ratio by sample",
                f"{estimates['sample_ratio']}, from {float(ratios.min()):.3g} to {float(ratios.max()):.3g}",
            ),
            ("verdict", str(report.verdict)),
        ]
    if report.brackets is not None:
        parts = (f"{name} {value:.2g}" for name, value in report.components.items())
        rows.append(("its errors", f"{', '.join(parts)} (two standard errors, two half-widths)"))
    conditions = f"{report.median_condition_number:.4g} (median), {report.condition_number:.4g} (mean)"
    rows += [("std", estimates["std_jsv"]), ("smallest, largest", f"{report.min_jsv:.4g}, {report.max_jsv:.4g}")]
    if report.brackets is not None:
        rows.append(("largest within", f"{report.brackets.largest_residual:.2g} of a singular value"))
    return [
        *rows,
        ("condition number", conditions),
        ("isometry gap", f"{estimates['isometry_gap']}, the mean of (s - 1)²"),
        *([("worst layers", worst)] if (worst := worst_layers(report)) else []),
        ("spectrum", f"{count} samples x {values} {kind}, {report.method}"),
        ("inputs", report.inputs),
        (
            "cost",
            f"{report.cost.products} products with J or Jᵀ, {report.cost.forwards} forwards, {report.cost.seconds:.2g} s",
        ),
        *(("note", _explained(note)) for note in report.notes),
    ]


def _of_one(report: Report) -> str:
    """Return the mean JSV of a report of one sample, with what is known of its error."""
    if not report.estimation_error:
        return f"{report.mean_jsv:.4g}   one sample: error unknown"
    return f"{report.mean_jsv:.4g}   give or take {report.estimation_error:.2%}; one sample: error over inputs unknown"


def _explained(note: str) -> str:
    """Return a note with what routes of differentiation are, briefly."""
    kind, _, routes = note.partition("derivatives by ")
    if kind or not routes:
        return note
    return f"derivatives by {', '.join(f'{route} ({_ROUTES[route]})' for route in routes.split(', '))}"


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.4g}" + ("" if math.isnan(low) else f"   95 % interval [{low:.4g}, {high:.4g}]")
