"""Planner: which estimator measures the next samples, and how many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from isometry.measurement.estimators import EstimatedBatch, Estimator, Krylov, exact_estimator
from isometry.measurement.options import Options
from isometry.measurement.preparation import Subject
from isometry.measurement.tally import Tally
from isometry.spectra import student_quantile

__all__ = ["Allocation", "Plan", "Planner", "allocate"]

_EXACT_UP_TO = 128
_TOLERANCE = 0.03  # half-width of a sample's bracket
_BYTES = 2**29
_BETWEEN_LOOKS = 16  # samples between two looks at the interval, where a tolerance is to be reached
_FORWARD = 2.0  # products that a forward pass with its graph costs
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
_PILOT_SAMPLES, _PILOT_PROBES = 8, 2
_PILOT_PRICE = 4 * 24  # products per sample, approximately: two probes of 24 steps; a pilot may spend half of a budget


@dataclass(frozen=True)
class Allocation:
    """How to spend products.

    Attributes:
        method: "exact" or "krylov".
        probes: probes per sample, for krylov.
        price: products per sample.
        length: steps of a probe, relative to those of the pilot.
    """

    method: str
    probes: int
    price: int
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
        options.append((Allocation("exact", 0, exact_price), sample_variance))
    if "krylov" in allowed:
        for probes in _PROBES:
            for length in _LENGTHS if bracket else _LENGTHS[:1]:
                option = Allocation("krylov", probes, math.ceil(probes * probe_price * length), length)
                options.append((option, sample_variance + probe_variance / probes))
    total = budget if budget is not None else 1e9

    def half_width(option: tuple[Allocation, float]) -> float:
        allocation, variance = option
        kept, probes = pilot if allocation.method == "krylov" else (0, 1)
        samples = math.floor(total / (allocation.price + _FORWARD))
        if available is not None:
            samples = min(samples, available - kept)
        count = kept + samples
        if count < 2:
            return math.inf
        spread = kept * (sample_variance + probe_variance / probes) + samples * variance
        width = (kept + samples * allocation.length**-slope) / count * bracket if allocation.method == "krylov" else 0.0
        return student_quantile(count) * math.sqrt(max(spread, 1e-300)) / count + width

    best = min(options, key=half_width)
    if half_width(best) == math.inf:  # not even two samples of anything: the cheapest
        return min(options, key=lambda option: option[0].price)[0]
    return best[0]


@dataclass(frozen=True, eq=False)
class Plan:
    """How the next samples are measured.

    Attributes:
        estimator: what measures them.
        is_pilot: whether their results decide how to go on.
        candidates: the methods that the decision may choose from.
        repeats_pilot: whether the pilot's samples are to be measured again.
    """

    estimator: Estimator
    is_pilot: bool = False
    candidates: tuple[str, ...] = ("exact", "krylov")
    repeats_pilot: bool = False


@dataclass(frozen=True, eq=False)
class Planner:
    """Chooses estimators and part sizes.

    Attributes:
        subject: what is measured.
        options: of the measurement.
        available: the number of samples there are; None where that is not known.
        generator: of probes.
    """

    subject: Subject
    options: Options
    available: int | None
    generator: torch.Generator = field(default_factory=torch.Generator)

    def first(self) -> Plan:
        """Return the plan to begin with."""
        exact = exact_estimator(self.subject)
        method = self.options.method
        if method == "exact" or (method == "auto" and (exact.price <= _EXACT_UP_TO or self.subject.layers is not None)):
            return Plan(exact)
        pilot = Krylov(self.subject, self.generator, _PILOT_PROBES, self._tolerance)
        candidates = ("exact", "krylov") if method == "auto" else ("krylov",)
        return Plan(pilot, is_pilot=self.options.sampled, candidates=candidates)

    def after(self, plan: Plan, estimated: EstimatedBatch, tally: Tally) -> Plan:
        """Return the plan to go on with after a batch: what the pilot's results suggest, else the same."""
        if not plan.is_pilot:
            return plan
        if len(tally) < 2:
            return replace(plan, candidates=("krylov",))
        assert tally.brackets is not None
        assert estimated.run is not None
        probe_variance = float(tally.brackets.probe_variance.nanmean()) * _PILOT_PROBES
        probe_variance = probe_variance if math.isfinite(probe_variance) else 0.0
        run = estimated.run
        half, earlier = (
            float((upper - lower).mean()) / 2
            for lower, upper in (run.bracket(), run.first(run.alpha.shape[-1] // 2).bracket())
        )
        slope = min(max(math.log2(earlier / half), 0.5), 4.0) if half > 0 else 1.0
        budget = self.options.budget
        allocation = allocate(
            sample_variance=max(float(tally.sample_means.var()) - probe_variance / _PILOT_PROBES, 0.0),
            probe_variance=probe_variance,
            exact_price=exact_estimator(self.subject).price,
            probe_price=run.products,
            budget=None if budget is None else budget - tally.products,
            allowed=plan.candidates,
            available=self.available if budget is not None else None,
            pilot=(len(tally), _PILOT_PROBES),
            bracket=0.0 if budget is None else half,
            slope=slope,
        )
        if allocation.method == "exact":
            return Plan(exact_estimator(self.subject), repeats_pilot=True)
        tolerance = self._tolerance * allocation.length**-slope
        return Plan(Krylov(self.subject, self.generator, allocation.probes, tolerance, allocation.price))

    def part_size(self, plan: Plan, tally: Tally) -> int:
        """Return the number of samples to measure next: as many as are quick, fit into memory and the budget allows."""
        estimator, budget = plan.estimator, self.options.budget
        most = estimator.at_once if self.options.rtol is None else min(estimator.at_once, _BETWEEN_LOOKS)
        if plan.is_pilot:
            most = _PILOT_SAMPLES
        if plan.is_pilot and budget is not None:
            most = min(most, max(2, budget // (2 * _PILOT_PRICE)))
        elif budget is not None:
            most = min(most, max(1, (budget - tally.products) // estimator.price))
        return max(1, min(most, tally.limit, _BYTES // (4 * estimator.entries)))

    @property
    def _tolerance(self) -> float:
        rtol = self.options.rtol
        return _TOLERANCE if rtol is None else min(_TOLERANCE, 0.15 * rtol)
