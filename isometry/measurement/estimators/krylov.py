"""Brackets of the mean by Golub-Kahan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.calibration import Calibration, Pilot
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.preparation import Subject
from isometry.measurement.ranks import Ranks
from isometry.spectra import bidiagonalize, probes

__all__ = ["Krylov"]

_AT_ONCE = 16  # the slowest of them sets the steps of all
_AT_ONCE_SHORT = 64


@dataclass(frozen=True, eq=False)
class Krylov(Estimator):
    """Brackets of every sample's mean by Golub-Kahan from random probes.

    Attributes:
        subject: what is measured.
        generator: of the probes.
        count: probes per sample.
        tolerance: half-width of the bracket, as a share of its middle, at which a run stops.
        price: products per sample, as far as known.
        steps: expected number of steps per probe.
        most_steps: largest number of steps per probe.
        calibration: what corrects short runs, all of which then take the calibration's steps; None runs to the tolerance.
        studied: whether to find out, too, what shorter runs would have found.
        ranks: the processes that estimate shares of the same batch; they stop together.
    """

    subject: Subject
    generator: torch.Generator
    count: int
    tolerance: float
    price: int = 1
    steps: int = 24
    most_steps: int = 96
    calibration: Calibration | None = None
    studied: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    method = "krylov"

    @property
    def at_once(self) -> int:
        """As the slowest of them sets the steps of all, few samples, unless all take the same."""
        return _AT_ONCE if self.calibration is None else _AT_ONCE_SHORT

    @property
    def entries(self) -> int:
        """The two bases of every probe."""
        return self.count * 2 * self.steps * self.subject.columns

    def within(self, products: float) -> Krylov:
        """Return the estimator with fewer steps where `products` per sample do not suffice for them and for the check of J against Jᵀ; at least 2 steps."""
        return replace(self, most_steps=max(2, min(self.most_steps, int((products - 2) / (2 * self.count)))))

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Bracket the mean of every sample's singular values."""
        x = self.subject.fast_input(batch)
        jacobian = jacobian_of(self.subject, batch, x, expected=self.count * self.steps)
        whole = probes(batch.whole or len(x), self.count, jacobian.rank, self.generator, x)
        start = whole[batch.first : batch.first + len(x)]
        short = self.calibration
        run = bidiagonalize(
            jacobian,
            start,
            steps=self.most_steps if short is None else min(short.steps, self.most_steps),
            rtol=self.tolerance if short is None else 0.0,
            keep_basis=True,
            agree=self.ranks.all_agree,
        )
        lower, upper = run.narrowed() if short is None else run.bracket()
        shared = torch.zeros_like(lower[:, 0])
        if short is not None:
            middle = short.factor * (lower + upper) / 2
            lower, upper = (1 - short.half) * middle, (1 + short.half) * middle
            shared = short.error * middle.mean(1)
        correction = run.correction()
        lower, upper = lower + correction, upper + correction
        middle = (lower + upper) / 2
        variance = middle.var(1) / self.count if self.count > 1 else torch.full_like(middle[:, 0], math.nan)
        residual = float(run.largest()[1].max())
        ends = (lower.mean(1).cpu(), upper.mean(1).cpu(), variance.cpu())
        probes_each, steps_each = (torch.full_like(ends[0], each) for each in (self.count, run.alpha.shape[-1]))
        brackets = Brackets(*ends, residual, shared.cpu(), probes_each, steps_each)
        pilot = Pilot.of(run) if self.studied else None
        return replace(estimated(run.spectrum(), len(batch), jacobian), brackets=brackets, pilot=pilot)
