"""All singular values through a bottleneck."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from isometry.errors import is_out_of_memory
from isometry.measurement.batch import Batch
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.jacobian import Jacobian
from isometry.measurement.preparation import Bottleneck, Subject
from isometry.spectra import RESOLUTION, Spectrum, probes, singular_values

__all__ = ["BottleneckBypassedError", "ThroughBottleneck"]


class BottleneckBypassedError(Exception):
    """Something reaches the output past the bottleneck, at samples other than those it was found at."""


@dataclass(frozen=True, eq=False)
class ThroughBottleneck(Estimator):
    """All singular values of J = (bottleneck to output) (input to bottleneck), with as many products as it is wide.

    Attributes:
        subject: what is measured.
        bottleneck: that of its network.
    """

    subject: Subject
    bottleneck: Bottleneck
    method = "exact"

    @property
    def price(self) -> int:
        """The bottleneck's width, and one product to check."""
        return self.bottleneck.width + 1

    @property
    def entries(self) -> int:
        """The two Jacobians and what their decomposition needs."""
        return self.price * self.subject.columns * 3

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Decompose the product of the two Jacobians.

        Raises:
            BottleneckBypassedError: one product with the whole network's Jᵀ shows that the product is not J: at other
                samples than the first ones, another branch may be open.
        """
        function, x = self.subject.fast, self.subject.fast_input(batch)
        try:
            trunk = Jacobian(function.up_to(self.bottleneck.name, batch), x)
            rest = replace(function, at=self.bottleneck.name)
            head = Jacobian(rest.bound_to(batch), rest.differentiated_input(batch))
            # [B, w, m] by w products, the head being taller than wide; its R factor carries the singular values.
            rows, columns = head.dense().double(), trunk.dense().double()
            whole = jacobian_of(self.subject, batch, x)
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise BottleneckBypassedError(self.bottleneck.name) from error
        u = probes(len(x), 1, self.subject.rows, torch.Generator().manual_seed(0), x)
        direct, composed = whole.rmatvec(u).double(), u.double() @ rows.mT @ columns
        if bool(((direct - composed).norm(dim=-1) > 1e-3 * direct.norm(dim=-1) + 1e-12).any()):
            raise BottleneckBypassedError(self.bottleneck.name)
        values = singular_values(torch.linalg.qr(rows.mT, mode="r").R @ columns)
        padded = values.new_zeros(len(x), self.subject.rank)
        padded[:, : values.shape[1]] = values[:, : self.subject.rank]
        return estimated(Spectrum.of(padded, RESOLUTION[whole.dtype]), len(batch), trunk, head, whole)
