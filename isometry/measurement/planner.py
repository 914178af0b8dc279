"""Planner: which estimator measures the next samples, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from isometry.measurement.allocation import Prospect, Route, allocate, allocate_to_reach, between_samples, routes
from isometry.measurement.brackets import Brackets
from isometry.measurement.estimators import ControlledKrylov, Estimator, Exact, Krylov, exact_estimator
from isometry.measurement.options import Options
from isometry.measurement.preparation import PRODUCTS, Subject
from isometry.measurement.ranks import Ranks
from isometry.measurement.tally import FIRST_LOOK, Tally

__all__ = ["FEW", "Plan", "Planner"]

_EXACT_UP_TO = 128
_TOLERANCE = 0.028  # half-width of a sample's bracket
FEW = 8  # samples below which the errors of probes do not average out
_FEW_TOLERANCE = 0.01  # of these: half-width of a sample's bracket
_ACCURACY = 0.03  # and of the interval of the mean of all of them
_FEW_BY_BUDGET = 0.06  # over √budget: the same, where a budget limits it and no accuracy is asked for
_FEW_PRODUCTS = 1500  # per sample, that are spent on it unasked
_BRACKET_SHARE = 0.08  # of a tolerance, for the half-width of brackets
_BYTES = 2**29
_FEWEST_EXACT = 12  # exact samples that a budget must buy for them to be a choice
_EXACT_PILOT = 2  # samples
_LONG_PILOT = 4  # samples
_PILOT_TOLERANCE = 0.15  # over √budget: half-width of their brackets, small against the interval that the budget buys
_LONG_STEPS = 24
_PROBES = 2
_OPEN = 5  # until so much of the budget is left, plans are looked at again
_PART = {"exact": 2, "krylov": 16}  # samples between two looks at the plan


@dataclass(frozen=True, eq=False)
class Plan:
    """How the next samples are measured.

    Attributes:
        estimator: what measures them.
        is_open: whether their results decide how to go on.
        until: samples in all before that is asked.
    """

    estimator: Estimator
    is_open: bool = False
    until: int = 0


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
        exact, options = exact_estimator(self.subject), self.options
        method, budget = options.method, options.budget
        if method == "exact" or (method == "auto" and (exact.price <= _EXACT_UP_TO or self.subject.layers is not None)):
            return Plan(exact)
        if method == "auto" and budget and self.available and PRODUCTS + self.available * exact.price <= budget:
            return Plan(exact)
        if options.bracket is None and self.available is not None and self.available < FEW:
            return Plan(self._of_few(self.available, exact))
        if not options.sampled:
            return Plan(Krylov(self.subject, self.generator, _PROBES, options.bracket or _TOLERANCE, ranks=self.ranks))
        return Plan(self._exact_pilot if self._begins_exactly else self._long_pilot, is_open=True)

    def _of_few(self, samples: int, exact: Estimator) -> ControlledKrylov:
        """Return what measures few samples: to the tolerance, or as well as the budget allows.

        Where "auto" may choose, all values are taken where that would take more products than they do, if they are not many.
        """
        rtol, budget = self.options.rtol, self.options.budget
        accuracy, otherwise, most = _ACCURACY, None, exact.price
        if rtol is None and budget is None:
            most = min(most, _FEW_PRODUCTS)
        if rtol is not None:
            accuracy = rtol if samples == 1 else min(rtol, _ACCURACY)
        elif budget is not None:
            accuracy = 0.0
        tolerance = _FEW_TOLERANCE * accuracy / _ACCURACY
        if budget is not None:
            most = min(most, (budget - PRODUCTS) // samples)
            tolerance = tolerance or _FEW_BY_BUDGET / budget**0.5
        elif self.options.method == "auto" and exact.price <= _FEW_PRODUCTS:
            otherwise = exact
        return ControlledKrylov(
            self.subject, self.generator, tolerance, accuracy, samples, most, otherwise, ranks=self.ranks
        )

    @property
    def _begins_exactly(self) -> bool:
        """Whether the pilot is exact: that costs nothing where exact samples are the better choice."""
        exact = exact_estimator(self.subject)
        if not self._may_be_exact or not isinstance(exact, Exact):
            return False
        return self.options.budget is not None or _EXACT_PILOT * exact.price <= _LONG_PILOT * self._long_price

    @property
    def _may_be_exact(self) -> bool:
        """Whether exact samples are a choice: with a budget only where it buys enough of them."""
        if self.options.method == "krylov":
            return False
        price = exact_estimator(self.subject).price
        return self.options.budget is None or PRODUCTS + _FEWEST_EXACT * price <= self.options.budget

    @property
    def _exact_pilot(self) -> Exact:
        return Exact(self.subject, self.generator)

    @property
    def _long_pilot(self) -> Krylov:
        """Long runs, their brackets small against the interval that is asked for, or that the budget may buy."""
        rtol, budget = self.options.rtol, self.options.budget
        tolerance = _BRACKET_SHARE * (rtol or 1.0) if budget is None else _PILOT_TOLERANCE / budget**0.5
        return Krylov(self.subject, self.generator, _PROBES, tolerance, studied=True, ranks=self.ranks)

    @property
    def _long_price(self) -> int:
        return 2 * _PROBES * _LONG_STEPS + 2

    @property
    def _pilot_samples(self) -> int:
        """The number of samples before a first decision."""
        return _EXACT_PILOT if self._begins_exactly else _LONG_PILOT * (1 if self.options.budget is not None else 2)

    def after(self, plan: Plan, tally: Tally) -> Plan:
        """Return the plan to go on with: what the results so far suggest, once the pilot is complete."""
        pilot, budget = tally.pilot, self.options.budget
        if pilot is None or len(tally) < max(plan.until, self._pilot_samples):
            return plan
        brackets = tally.brackets or Brackets.exact(tally.sample_means)
        prospect = Prospect(brackets, len(pilot), between_samples(brackets.middle, brackets.noise))
        exact = Route(exact_estimator(self.subject).price) if self._may_be_exact else None
        mean, calibrations = float(brackets.middle.mean()), pilot.calibrations()
        short = routes(mean, calibrations)
        if budget is None:
            choices = short if exact is None else [exact, *short]
            route = allocate_to_reach(choices, prospect, (self.options.rtol or 1.0) * mean, least=FIRST_LOOK)
            return Plan(self._estimator(route), is_open=len(tally) < FIRST_LOOK)
        longest = calibrations[-1]
        price = 2 * _PROBES * longest.steps + 2
        pilots = [Route(price, longest.probe_variance / _PROBES, mean * pilot.run_half, _PROBES)]
        if exact is not None:
            pilots.append(exact)
        left, available = budget - tally.products, None if self.available is None else self.available - len(tally)
        option = allocate(prospect, left, exact=exact, short=short, pilots=pilots, available=available)
        if option.pilot is not None:
            long = replace(self._long_pilot, price=price, most_steps=longest.steps)
            return Plan(long if option.pilot.probes else self._exact_pilot, True, len(tally) + min(option.extra, 2))
        return Plan(self._estimator(option.route), is_open=_OPEN * left > budget)

    def _estimator(self, route: Route) -> Estimator:
        if route.calibration is None:
            return exact_estimator(self.subject)
        return Krylov(
            self.subject, self.generator, route.probes, 0.0, route.price,
            steps=route.calibration.steps, calibration=route.calibration, ranks=self.ranks,
        )  # fmt: skip

    def next_part(self, plan: Plan, tally: Tally) -> tuple[Plan, int]:
        """Return the plan and how many samples to measure next: within memory, budget and the next look at the interval."""
        estimator, budget = plan.estimator, self.options.budget
        most = [estimator.at_once, tally.limit, _BYTES // (4 * estimator.entries)]
        missing = max(plan.until, self._pilot_samples) - len(tally) if plan.is_open else 0
        if plan.is_open:
            most.append(missing if missing > 0 else max(_PART[estimator.method], len(tally) // 4))
        if tally.until_look is not None:
            most.append(tally.until_look)
        if budget is None:
            return plan, max(1, min(most))
        remaining = budget - tally.products
        most.append(remaining // estimator.price)
        if self.available is not None:
            most.append(self.available - len(tally))
        count = max(1, min(most))
        share = 2 if plan.is_open and len(tally) < self._pilot_samples else 1
        return replace(plan, estimator=estimator.within(remaining / share / count)), count
