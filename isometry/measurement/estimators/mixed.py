"""The mean from low precision, and from both precisions where the one is to correct the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from isometry.errors import NonFiniteError, is_out_of_memory
from isometry.measurement.batch import Batch
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator
from isometry.measurement.estimators.exact import Exact
from isometry.measurement.function import NetworkFunction
from isometry.measurement.levels import LOW_PRECISION, Levels
from isometry.measurement.preparation import Subject

__all__ = ["LowPrecision", "TwoPrecisions"]


@dataclass(frozen=True, eq=False)
class LowPrecision(Estimator):
    """All singular values of Jacobians computed in low precision; in full precision where that fails.

    Attributes:
        subject: what is measured.
        low: the function that is differentiated, in low precision.
    """

    subject: Subject
    low: NetworkFunction
    method = "mixed"

    @property
    def price(self) -> int:
        """The rank."""
        return self.subject.rank

    @property
    def at_once(self) -> int:
        """Twice as many as in full precision, which take the same memory."""
        return 2 * Exact(self.subject).at_once

    @property
    def entries(self) -> int:
        """As in full precision, for where that is needed."""
        return Exact(self.subject).entries

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Decompose every sample's Jacobian."""
        return self._in_low_precision(batch) or Exact(self.subject).estimate(batch)

    def _in_low_precision(self, batch: Batch) -> EstimatedBatch | None:
        """Return what low precision finds; None where the network or its derivatives do not work in it."""
        try:
            found = Exact(replace(self.subject, fast=self.low)).estimate(batch.to(LOW_PRECISION))
        except (RuntimeError, NotImplementedError, TypeError, NonFiniteError) as error:
            if is_out_of_memory(error):
                raise
            return None
        # Outputs are compared with others in full precision elsewhere.
        return replace(found, outputs=None, levels=Levels.of(coarse=found.spectrum.sample_means))


@dataclass(frozen=True, eq=False)
class TwoPrecisions(LowPrecision):
    """All singular values, and what low precision would have found, with the time of both."""

    @property
    def price(self) -> int:
        """The rank, twice."""
        return 2 * self.subject.rank

    @property
    def at_once(self) -> int:
        """As in full precision."""
        return Exact(self.subject).at_once

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Decompose every sample's Jacobian in both precisions; without levels where low precision does not work."""
        start = time.perf_counter()
        fine = Exact(self.subject).estimate(batch)
        between = time.perf_counter()
        coarse = self._in_low_precision(batch)
        if coarse is None:
            return fine
        cost = (time.perf_counter() - between) / (between - start)
        levels = Levels.of(coarse=coarse.spectrum.sample_means, fine=fine.spectrum.sample_means, cost=cost)
        return replace(
            fine, levels=levels, forwards=fine.forwards + coarse.forwards, products=fine.products + coarse.products
        )
