"""All singular values, from the input and from every layer to the output."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isometry.errors import NonFiniteError
from isometry.measurement.batch import Batch
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.jacobian import Jacobian
from isometry.measurement.layers import LayerOutputs
from isometry.measurement.preparation import Subject
from isometry.spectra import RESOLUTION, Spectrum, exact, row_singular_values, singular_values

__all__ = ["Layered"]


@dataclass(frozen=True, eq=False)
class Layered(Estimator):
    """All singular values of the map from the input, and from every layer, to the output: all from one backward pass per row.

    Attributes:
        subject: what is measured.
        layers: the layers to report on.
    """

    subject: Subject
    layers: LayerOutputs
    method = "exact"

    @property
    def price(self) -> int:
        """One product per output."""
        return self.subject.rows

    @property
    def entries(self) -> int:
        """The Jacobians with respect to the input and to all layers."""
        return self.price * self.subject.columns * 3 + self.subject.rank * self.layers.entries

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Decompose every sample's Jacobian with respect to the input and to each layer."""
        with self.layers.captured(self.subject.fast.model) as captured:
            jacobian = jacobian_of(self.subject, batch, self.subject.fast_input(batch))
        if not (captured and jacobian.outputs.requires_grad):
            return estimated(exact(jacobian), len(batch), jacobian)
        # As they are now: a checkpoint runs its part of the forward pass again during the backward pass.
        names = [name for name in self.layers.names if name in captured]
        activations = [captured[name] for name in names]
        first, *others = self._rows(jacobian, activations)
        whole = torch.stack(first, 1)
        if not bool(torch.isfinite(whole).all()):
            raise NonFiniteError("gradient")
        resolution = RESOLUTION[jacobian.dtype]
        spectra = {
            name: Spectrum.of(row_singular_values(rows).cpu(), resolution)
            for name, rows in zip(names, others, strict=True)
        }
        return replace(estimated(Spectrum.of(singular_values(whole), resolution), len(batch), jacobian), layers=spectra)

    @staticmethod
    def _rows(jacobian: Jacobian, activations: list[Tensor]) -> list[list[Tensor]]:
        """Return the m rows [B, *] of the Jacobians with respect to the inputs and to every activation, columns in any order."""
        rows: list[list[Tensor]] = [[] for _ in range(1 + len(activations))]
        for row in range(jacobian.rows):
            # A new one for every row: the gradient of the last layer may be the cotangent itself.
            cotangent = torch.zeros_like(jacobian.outputs, memory_format=torch.contiguous_format)
            cotangent.view(jacobian.batch, -1)[:, row] = 1
            for found, gradient in zip(rows, jacobian.pullback(cotangent, activations), strict=True):
                # The order of columns does not matter for singular values: as they lie in memory is fastest.
                order = sorted(range(1, gradient.ndim), key=gradient.stride, reverse=True)
                found.append(gradient.permute(0, *order).reshape(jacobian.batch, -1))
        jacobian.products += jacobian.rows
        jacobian.routes.add("loop")
        return rows
