"""All singular values from the whole Jacobian."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.measurement.batch import Batch
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.preparation import Subject
from isometry.spectra import exact

__all__ = ["Exact"]


@dataclass(frozen=True, eq=False)
class Exact(Estimator):
    """All singular values, by as many products per sample as the smaller side has entries."""

    subject: Subject
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
        return estimated(exact(jacobian), len(batch), jacobian)
