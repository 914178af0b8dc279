"""Planner: which estimator measures the next samples, and how many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from isometry.measurement.estimators import EstimatedBatch, Estimator, Krylov, exact_estimator
from isometry.measurement.options import Options
from isometry.measurement.preparation import Subject
from isometry.measurement.ranks import Ranks
from isometry.measurement.tally import Tally
from isometry.spectra import student_quantile

__all__ = ["Allocation", "Plan", "Planner", "allocate"]

_EXACT_UP_TO = 128
_TOLERANCE = 0.028  # half-width of a sample's bracket
_BYTES = 2**29
_FORWARD = 2.0  # products that a forward pass with its graph costs
_PROBES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
_PILOT_SAMPLES = 8
_PILOT_PROBES = (2, 4)  # at least and at most
_PILOT_LOOK = 32  # samples of a pilot without a budget: those before the first look at the interval
_PROBE_PRICE = 24  # products of a probe, approximately
_FEWEST_EXACT = 8  # exact samples that make an interval
_VARIANCE_FLOOR = 0.05  # of the variance seen between samples, at least so much is theirs and not their probes'
_BRACKET_SHARE = 0.08  # of a tolerance, for the half-width of brackets


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
        repeats_pilot: whether the pilot's samples are to be measured again.
    """

    estimator: Estimator
    is_pilot: bool = False
    repeats_pilot: bool = False


@dataclass(frozen=True, eq=False)
class Planner:
    """Chooses estimators and part sizes.

    Attributes:
        subject: what is measured.
        options: of the measurement.
        available: the number of samples there are; None where that is not known.
        generator: of probes.
        ranks: the processes that measure together.
    """

    subject: Subject
    options: Options
    available: int | None
    generator: torch.Generator = field(default_factory=torch.Generator)
    ranks: Ranks = field(default_factory=Ranks)

    def first(self) -> Plan:
        """Return the plan to begin with."""
        exact = exact_estimator(self.subject)
        method = self.options.method
        if method == "exact" or (method == "auto" and (exact.price <= _EXACT_UP_TO or self.subject.layers is not None)):
            return Plan(exact)
        tolerance = self.options.bracket or _TOLERANCE
        if self.options.rtol is not None:
            tolerance = min(tolerance, _BRACKET_SHARE * self.options.rtol)
        pilot = Krylov(self.subject, self.generator, self._pilot_probes, tolerance, ranks=self.ranks)
        return Plan(pilot, is_pilot=self.options.sampled)

    def after(self, plan: Plan, estimated: EstimatedBatch, tally: Tally) -> Plan:
        """Return the plan to go on with after a batch: what the pilot's results suggest once it is complete, else the same."""
        if not plan.is_pilot or len(tally) < max(2, self._pilot_samples):
            return plan
        assert tally.brackets is not None
        assert estimated.run is not None
        probe_variance = float(tally.brackets.probe_variance.nanmean()) * self._pilot_probes
        variance = float(tally.sample_means.var())
        run, budget = estimated.run, self.options.budget
        half, earlier = (
            float((upper - lower).mean()) / 2
            for lower, upper in (run.bracket(), run.first(run.alpha.shape[-1] // 2).bracket())
        )
        slope = min(max(math.log2(earlier / half), 0.5), 4.0) if half > 0 else 1.0
        allocation = allocate(
            # Few samples cannot tell a small variance between them from none.
            sample_variance=max(variance - probe_variance / self._pilot_probes, _VARIANCE_FLOOR * variance),
            probe_variance=probe_variance,
            exact_price=exact_estimator(self.subject).price,
            probe_price=run.products,
            budget=None if budget is None else budget - tally.products,
            allowed=self._candidates(tally),
            available=self.available if budget is not None else None,
            pilot=(len(tally), self._pilot_probes),
            bracket=0.0 if budget is None else half,
            slope=slope,
        )
        if allocation.method == "exact":
            return Plan(exact_estimator(self.subject), repeats_pilot=True)
        assert isinstance(plan.estimator, Krylov)
        tolerance = plan.estimator.tolerance * allocation.length**-slope
        further = replace(plan.estimator, count=allocation.probes, tolerance=tolerance, price=allocation.price)
        return Plan(replace(further, most_steps=Krylov.most_steps))

    def _candidates(self, tally: Tally) -> tuple[str, ...]:
        """Return the methods to choose from: exact only where it gives enough samples for an interval."""
        if self.options.method == "krylov":
            return ("krylov",)
        if self.options.budget is None:
            return ("exact", "krylov")
        affordable = (self.options.budget - tally.products) / exact_estimator(self.subject).price
        fewest = _FEWEST_EXACT if self.available is None else min(_FEWEST_EXACT, self.available)
        return ("exact", "krylov") if affordable >= fewest else ("krylov",)

    @property
    def _pilot_samples(self) -> int:
        """The number of samples before a decision: the first look's; of a budget, as many as a quarter buys."""
        if self.options.budget is None:
            return _PILOT_LOOK
        return min(_PILOT_SAMPLES, max(2, self.options.budget // (4 * 2 * _PROBE_PRICE)))

    @property
    def _pilot_probes(self) -> int:
        """Probes per sample of the pilot: more where they cost little of the budget, to tell samples and probes apart."""
        least, most = _PILOT_PROBES
        if self.options.budget is None:
            return least
        return min(most, max(least, self.options.budget // (5 * _PILOT_SAMPLES * _PROBE_PRICE)))

    def next_part(self, plan: Plan, tally: Tally) -> tuple[Plan, int]:
        """Return the plan and how many samples to measure next: within memory, budget and the next look at the interval."""
        estimator, budget = plan.estimator, self.options.budget
        most = [estimator.at_once, tally.limit, _BYTES // (4 * estimator.entries)]
        if plan.is_pilot or not self.options.sampled:
            most.append(_PILOT_SAMPLES if isinstance(estimator, Krylov) else estimator.at_once)
        if plan.is_pilot:
            most.append(self._pilot_samples - len(tally))
        if tally.until_look is not None:
            most.append(tally.until_look)
        if budget is None:
            return plan, max(1, min(most))
        remaining = budget - tally.products
        if not plan.is_pilot:
            most.append(remaining // estimator.price)
        count = max(1, min(most))
        return replace(plan, estimator=estimator.within(remaining / (2 if plan.is_pilot else 1) / count)), count
