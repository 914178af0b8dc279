"""Verdict: a network's JSVs against those of the dense network, in words.

When 1 is the yardstick: for linear networks, whose JSVs can all be 1 (dynamical isometry), and at initialization. A trained
non-linear network has no such point: its JSVs are where training put them, and the dense network's are the yardstick of the
networks pruned from it. A ratio of mean JSVs between 1/2 and 2 is called preserved, below 1/2 reduced and below 1/4 lost, above 2
raised and above 4 far too large. These are conventions: a factor of 2 in every derivative is what the next learning rate of
a usual grid makes up for, a factor of 4 is not. An interval that holds such a threshold decides nothing.

What it is worth: in figures/cifar_pruners.md (ResNet-56, 50 % of the filters removed, two seeds), the networks above 1/2 were
fine-tuned to 89.6 to 90.4 %, those below 1/4 to 86.9 to 89.2 %. It does not rank networks in general: with 70 % removed, L1,
at 0.22, ended above TPP, at 1.34.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from isometry.spectra import Estimate

if TYPE_CHECKING:
    import pandas as pd

    from isometry.measurement.report import Report

__all__ = ["EDGES", "describe_ratio", "worst_layers"]

EDGES = (0.25, 0.5, 2.0, 4.0)
"""Ratios at which the words change."""
_PRESERVED = "trainability preserved"
_WORDS = ("trainability lost", "trainability reduced", _PRESERVED, "JSVs raised", "JSVs far too large")
_ISOMETRIC = 0.01  # isometry gap below which every JSV is near 1: to within a tenth, in the root mean square
_MOST = 0.5  # of the logarithm of the ratio


def describe_ratio(report: Report, ratio: Estimate) -> str:
    """Return what a ratio to the dense network's mean JSV means, e.g. "0.23 of the dense network's: trainability lost".

    Args:
        report: of the network, with the ratios of its layers where they were measured.
        ratio: with its interval.
    """
    if math.isnan(ratio.value):
        return "none: the dense network's JSVs are 0"
    text = (
        f"{ratio.value:.2g} of the dense network's: "
        if ratio.value < 2
        else f"{ratio.value:.2g} times the dense network's: "
    )
    if report.spectrum.complete and report.isometry_gap < _ISOMETRIC:
        return f"{text}every JSV is near 1, dynamical isometry, which is the yardstick of linear networks"
    if ratio.units < 2:
        return f"{text}not decided with one input"
    first, last = (_WORDS[sum(end >= edge for edge in EDGES)] for end in ratio.interval)
    if first != last:
        return f"{text}{first} or {last}, not decided with these {ratio.units} inputs"
    return f"{text}{first}{_place(report, ratio.value) if first != _PRESERVED else ''}"


def _place(report: Report, ratio: float) -> str:
    """Return in which layer most of it happens, in words; nothing where no layers were compared."""
    factors = _relative_factors(report, ratio)
    total = math.log(max(ratio, 1e-300))
    if not factors or not total:
        return ""
    shares = {layer: math.log(factor) / total for layer, factor in factors}
    layer = max(shares, key=shares.__getitem__)
    if shares[layer] > _MOST:
        return f", most of it at {layer}"
    return f", the largest part of it ({shares[layer]:.0%}) at {layer}"


def worst_layers(report: Report, count: int = 3) -> str | None:
    """Return the layers across which the mean JSV changes most, and by what factor; None where there are fewer than two.

    The mean JSV of the map from a layer's input to the output, over that from its output, for layers that follow each other.
    With a reference, that factor over the reference's.
    """
    table = report.layers
    if table is None or len(table) < 2:
        return None
    if report.ratio is not None and "ratio" in table:
        factors, meaning = _relative_factors(report, report.ratio), ", over the dense network's"
    else:
        factors = _factors(list(table["layer"]), [report.mean_jsv, *table["mean_jsv"]])
        meaning = ""
    worst = sorted(factors, key=lambda factor: -abs(math.log(factor[1])))[:count]
    if not worst:
        return None
    return f"{', '.join(f'{layer} x{factor:.2g}' for layer, factor in worst)} (the factor by which each changes the mean JSV{meaning})"


def _relative_factors(report: Report, ratio: float) -> list[tuple[str, float]]:
    """Return (layer, by what its part of the network multiplies the ratio) of the layers that both networks have."""
    table: pd.DataFrame | None = report.layers
    if table is None or "ratio" not in table:
        return []
    known = table[table["ratio"].notna()]
    return _factors(list(known["layer"]), [ratio, *known["ratio"]])


def _factors(layers: Sequence[str], values: Sequence[float]) -> list[tuple[str, float]]:
    """Return (layer, value before it over value behind it); `values` begin at the input."""
    sizes = [max(value, 1e-300) for value in values]
    return [(layer, before / behind) for layer, (before, behind) in zip(layers, pairwise(sizes), strict=True)]
