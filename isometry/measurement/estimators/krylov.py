"""Brackets of the mean by Golub-Kahan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.preparation import Subject
from isometry.measurement.ranks import Ranks
from isometry.spectra import bidiagonalize, probes

__all__ = ["Krylov"]

_AT_ONCE = 16  # the slowest of them sets the steps of all


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
        ranks: the processes that estimate shares of the same batch; they stop together.
    """

    subject: Subject
    generator: torch.Generator
    count: int
    tolerance: float
    price: int = 1
    steps: int = 24
    most_steps: int = 96
    ranks: Ranks = field(default_factory=Ranks)
    method = "krylov"

    @property
    def at_once(self) -> int:
        """As the slowest of them sets the steps of all, few samples."""
        return _AT_ONCE

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
        run = bidiagonalize(
            jacobian,
            start,
            steps=self.most_steps,
            rtol=self.tolerance,
            keep_basis=True,
            agree=self.ranks.all_agree,
        )
        correction = run.correction()
        lower, upper = (end + correction for end in run.bracket())
        middle = (lower + upper) / 2
        variance = middle.var(1) / self.count if self.count > 1 else torch.full_like(middle[:, 0], math.nan)
        brackets = Brackets(lower.mean(1).cpu(), upper.mean(1).cpu(), variance.cpu(), float(run.largest()[1].max()))
        return replace(estimated(run.spectrum(), len(batch), jacobian), brackets=brackets, run=run)
