"""All singular values from the whole Jacobian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.calibration import LENGTHS, Pilot
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.preparation import Subject
from isometry.spectra import Matrices, bidiagonalize, exact, probes, singular_vectors

__all__ = ["Exact"]

_PROBES = 8


@dataclass(frozen=True, eq=False)
class Exact(Estimator):
    """All singular values, by as many products per sample as the smaller side has entries.

    Attributes:
        subject: what is measured.
        study: generator of probes, to find out what short runs from them would have found, which takes no further products;
            None finds the values only.
    """

    subject: Subject
    study: torch.Generator | None = None
    method = "exact"

    @property
    def price(self) -> int:
        """The rank."""
        return self.subject.rank

    @property
    def entries(self) -> int:
        """The Jacobian and what its decomposition needs."""
        return self.price * self.subject.columns * 3

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Decompose every sample's Jacobian."""
        jacobian = jacobian_of(self.subject, batch, self.subject.fast_input(batch))
        if self.study is None:
            return estimated(exact(jacobian), len(batch), jacobian)
        matrices = jacobian.dense()
        return replace(
            estimated(exact(Matrices(matrices)), len(batch), jacobian), pilot=_study(matrices, self.study, batch)
        )


def _study(matrices: Tensor, generator: torch.Generator, batch: Batch) -> Pilot:
    """Return what runs on explicit `matrices` [B, r, n], r <= n, find, and what they should."""
    values, vectors = singular_vectors(matrices)
    whole = probes(batch.whole or len(values), _PROBES, values.shape[1], generator, values)
    start = whole[batch.first : batch.first + len(values)]
    limit = ((start @ vectors).square() * values.unsqueeze(1)).sum(-1)
    same = Matrices(vectors * values.unsqueeze(1))  # [B, r, r], as good as [B, r, n] from the smaller side
    return Pilot.of(bidiagonalize(same, start, steps=LENGTHS[-1], keep_basis=True), limit)
