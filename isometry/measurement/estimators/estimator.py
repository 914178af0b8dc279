"""The interface of an estimator: from a batch of samples to their singular values, or to brackets of their means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.calibration import Pilot
from isometry.measurement.jacobian import Jacobian
from isometry.measurement.preparation import Subject
from isometry.spectra import Spectrum

__all__ = ["EstimatedBatch", "Estimator", "estimated", "jacobian_of"]

_AT_ONCE = 64
_SMALL = 2**18  # entries of a batch below which a pass is mostly overhead


@dataclass(frozen=True, eq=False)
class EstimatedBatch:
    """What an estimator found at a batch.

    Attributes:
        spectrum: the singular values [B, k], on the CPU; quadrature nodes of a stochastic estimator.
        forwards: forward passes of one sample each.
        products: products of one sample's J or Jᵀ with a vector.
        routes: how derivatives were computed; empty where the network is constant in its input.
        brackets: of every sample's mean, for stochastic estimators.
        layers: {layer: spectrum of the map from its output to the network's output}.
        pilot: what the samples say about short runs on others, where that was asked for.
        outputs: [B, ...], of the network at the batch; None where they were not computed as a whole.
    """

    spectrum: Spectrum
    forwards: int
    products: int
    routes: frozenset[str]
    brackets: Brackets | None = None
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    pilot: Pilot | None = None
    outputs: Tensor | None = None

    @classmethod
    def join(cls, shares: Sequence[EstimatedBatch]) -> EstimatedBatch:
        """Return what was found at a batch from what was found at its shares, in order."""
        if len(shares) == 1:
            return shares[0]
        first = shares[0]
        brackets = [share.brackets for share in shares if share.brackets is not None]
        pilots = [share.pilot for share in shares if share.pilot is not None]
        outputs = [share.outputs.cpu() for share in shares if share.outputs is not None]
        return cls(
            Spectrum.pool(share.spectrum for share in shares),
            forwards=sum(share.forwards for share in shares),
            products=sum(share.products for share in shares),
            routes=frozenset[str]().union(*(share.routes for share in shares)),
            brackets=Brackets.pool(brackets) if brackets else None,
            layers={name: Spectrum.pool(share.layers[name] for share in shares) for name in first.layers},
            pilot=Pilot.pool(pilots) if pilots else None,
            outputs=torch.cat(outputs) if len(outputs) == len(shares) else None,
        )

    def on_cpu(self) -> EstimatedBatch:
        """Return it with its outputs on the CPU, where all the rest is."""
        return self if self.outputs is None else replace(self, outputs=self.outputs.cpu())


class Estimator(ABC):
    """How the spectra of a batch of samples are found."""

    subject: Subject
    method: ClassVar[str]
    """What a report calls it."""

    @property
    @abstractmethod
    def price(self) -> int:
        """Products per sample."""

    @property
    def at_once(self) -> int:
        """The largest useful number of samples in a batch: more of a small network, whose passes are short."""
        return max(_AT_ONCE, _SMALL // self.entries)

    @property
    @abstractmethod
    def entries(self) -> int:
        """Tensor entries that one sample needs in memory, approximately."""

    def within(self, products: float) -> Estimator:
        """Return the estimator for samples that may cost at most `products` each, as far as it can be limited."""
        return self

    @abstractmethod
    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Estimate the spectra of a batch's samples."""


def jacobian_of(subject: Subject, batch: Batch, x: Tensor, expected: int = 0) -> Jacobian:
    """Return the Jacobians of the subject at a batch whose differentiated input is `x`; `expected` products J v will follow."""
    return Jacobian(
        subject.fast.bound_to(batch),
        x,
        expected=expected,
        select=lambda samples: subject.fast.bound_to(batch.select(samples)),
    )


def estimated(spectrum: Spectrum, samples: int, *jacobians: Jacobian) -> EstimatedBatch:
    """Return the spectrum, moved to the CPU, with what the Jacobians cost; the last one is that of the whole network."""
    return EstimatedBatch(
        Spectrum(spectrum.values.cpu(), spectrum.weights.cpu(), spectrum.complete, spectrum.resolution),
        forwards=samples * len(jacobians),
        products=sum(round(jacobian.products * samples) for jacobian in jacobians),
        routes=frozenset(route for jacobian in jacobians for route in jacobian.routes),
        outputs=jacobians[-1].outputs.detach(),
    )
