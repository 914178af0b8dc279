"""Allocation: samples, probes and method that give the shortest interval for a number of products."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

__all__ = ["Allocation", "allocate"]

_FORWARD = 2.0
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Allocation:
    """How to spend products.

    Attributes:
        method: "exact" or "krylov".
        probes: probes a sample, for krylov.
        price: products a sample.
        length: steps of a probe, over those of the pilot's.
        decided: whether a pilot has informed it.
    """

    method: str
    probes: int
    price: int = 1
    decided: bool = False
    length: float = 1.0


def allocate(
    *,
    sample_variance: float,
    probe_variance: float,
    exact_price: int,
    probe_price: int,
    budget: int | None,
    allowed: tuple[str, ...] = ("exact", "krylov"),
    available: int | None = None,
    pilot: tuple[int, int] = (0, 1),
    bracket: float = 0.0,
    slope: float = 1.0,
) -> Allocation:
    """Return the allocation with the shortest interval.

    A sample costs its products and a forward pass with its graph (2 products). Its mean has the variance
    sample_variance + probe_variance / probes (exact: without the second term), and n samples give an interval of
    Student's quantile times sqrt(variance / n), to which krylov adds the half-width of its brackets. Samples that vary
    call for as many samples as the products buy, one probe each; samples that agree, or that run out, for many probes a
    sample or all of its values; and where the brackets are wider than the rest, for more steps or exact samples.

    Args:
        sample_variance: of the mean JSV between samples.
        probe_variance: of one probe within a sample.
        exact_price: products of an exact sample.
        probe_price: products of one probe.
        budget: products to spend; None compares prices for a large number of samples.
        allowed: the methods to choose from.
        available: how many samples there are, None where they can be had as needed.
        pilot: (samples, probes each) that a krylov pilot has taken; they count with its further samples, exact starts
            anew.
        bracket: half-width of the quadrature bracket of a sample's mean at `probe_price`.
        slope: of that bracket: steps times m make it m^-slope of what it was.
    """
    options = []
    if "exact" in allowed:
        options.append((Allocation("exact", 0, exact_price, decided=True), sample_variance))
    if "krylov" in allowed:
        for probes in _PROBES:
            for length in _LENGTHS if bracket else _LENGTHS[:1]:
                plan = Allocation("krylov", probes, math.ceil(probes * probe_price * length), True, length)
                options.append((plan, sample_variance + probe_variance / probes))
    total = budget if budget is not None else 1e9

    def half_width(option: tuple[Allocation, float]) -> float:
        plan, variance = option
        kept, probes = pilot if plan.method == "krylov" else (0, 1)
        samples = math.floor(total / (plan.price + _FORWARD))
        if available is not None:
            samples = min(samples, available - kept)
        count = kept + samples
        if count < 2:
            return math.inf
        spread = kept * (sample_variance + probe_variance / probes) + samples * variance
        width = (kept + samples * plan.length**-slope) / count * bracket if plan.method == "krylov" else 0.0
        return float(stats.t.ppf(0.975, count - 1)) * math.sqrt(max(spread, 1e-300)) / count + width

    best = min(options, key=half_width)
    if half_width(best) == math.inf:  # not even two samples of anything: the cheapest
        return min(options, key=lambda option: option[0].price)[0]
    return best[0]
