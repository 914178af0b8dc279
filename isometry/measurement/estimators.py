"""Estimators: from a batch of samples to their singular values, or to brackets of their means.

A new estimator is one class here: it says what a sample costs and estimates a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.jacobian import Jacobian, NonFiniteError, is_out_of_memory
from isometry.measurement.layers import LayerOutputs
from isometry.measurement.preparation import Bottleneck, Subject
from isometry.measurement.report import Brackets
from isometry.spectra import Bidiagonal, Spectrum, bidiagonalize, exact, probes, singular_values

__all__ = [
    "BottleneckBypassedError",
    "EstimatedBatch",
    "Estimator",
    "Exact",
    "Krylov",
    "Layered",
    "ThroughBottleneck",
    "exact_estimator",
]

_STEPS = 96
_AT_ONCE = 64  # more samples at once make no pass faster
_PROBED_AT_ONCE = 16  # the slowest of them sets the steps of all


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
        run: the bidiagonalization, for planning.
    """

    spectrum: Spectrum
    forwards: int
    products: int
    routes: frozenset[str]
    brackets: Brackets | None = None
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    run: Bidiagonal | None = None


class BottleneckBypassedError(Exception):
    """Something reaches the output past the bottleneck, at samples other than those it was found at."""


class Estimator(ABC):
    """How the spectra of a batch of samples are found."""

    subject: Subject
    method: ClassVar[str]
    """What a report calls it."""
    at_once: ClassVar[int] = _AT_ONCE
    """The largest useful number of samples in a batch."""

    @property
    @abstractmethod
    def price(self) -> int:
        """Products per sample."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """Tensor entries that one sample needs in memory, approximately."""

    @abstractmethod
    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Estimate the spectra of a batch's samples."""


def _jacobian(subject: Subject, batch: Batch, x: Tensor, expected: int = 0) -> Jacobian:
    return Jacobian(
        subject.fast.bound_to(batch),
        x,
        expected=expected,
        select=lambda samples: subject.fast.bound_to(batch.select(samples)),
    )


def _estimated(spectrum: Spectrum, samples: int, *jacobians: Jacobian) -> EstimatedBatch:
    """Return the spectrum, moved to the CPU, with what the Jacobians cost."""
    return EstimatedBatch(
        Spectrum(spectrum.values.cpu(), spectrum.weights.cpu(), spectrum.complete),
        forwards=samples * len(jacobians),
        products=sum(round(jacobian.products * samples) for jacobian in jacobians),
        routes=frozenset(route for jacobian in jacobians for route in jacobian.routes),
    )


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
        jacobian = _jacobian(self.subject, batch, self.subject.fast_input(batch))
        return _estimated(exact(jacobian), len(batch), jacobian)


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
            jacobian = _jacobian(self.subject, batch, self.subject.fast_input(batch))
        if not (captured and jacobian.outputs.requires_grad):
            return _estimated(exact(jacobian), len(batch), jacobian)
        # As they are now: a checkpoint runs its part of the forward pass again during the backward pass.
        names = [name for name in self.layers.names if name in captured]
        activations = [captured[name] for name in names]
        whole, *parts = self._rows(jacobian, activations)
        if not bool(torch.isfinite(whole).all()):
            raise NonFiniteError("gradient")
        spectra = {name: Spectrum.of(singular_values(part).cpu()) for name, part in zip(names, parts, strict=True)}
        return replace(_estimated(Spectrum.of(singular_values(whole)), len(batch), jacobian), layers=spectra)

    @staticmethod
    def _rows(jacobian: Jacobian, activations: list[Tensor]) -> list[Tensor]:
        """Return the Jacobians [B, m, *] with respect to the inputs and to every activation, columns in any order."""
        matrices = [
            torch.empty(jacobian.batch, jacobian.rows, width, dtype=jacobian.dtype, device=jacobian.device)
            for width in (jacobian.columns, *(activation[0].numel() for activation in activations))
        ]
        cotangent = torch.zeros_like(jacobian.outputs, memory_format=torch.contiguous_format)
        for row in range(jacobian.rows):
            cotangent.view(jacobian.batch, -1)[:, row] = 1
            for matrix, gradient in zip(matrices, jacobian.pullback(cotangent, activations), strict=True):
                # The order of columns does not matter for singular values: as they lie in memory is fastest.
                order = sorted(range(1, gradient.ndim), key=gradient.stride, reverse=True)
                matrix[:, row] = gradient.permute(0, *order).reshape(jacobian.batch, -1)
            cotangent.view(jacobian.batch, -1)[:, row] = 0
        jacobian.products += jacobian.rows
        jacobian.routes.add("loop")
        return matrices


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
            whole = _jacobian(self.subject, batch, x)
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
        return _estimated(Spectrum.of(padded), len(batch), trunk, head, whole)


def exact_estimator(subject: Subject) -> Estimator:
    """Return the estimator of all singular values that suits the subject."""
    if subject.layers is not None:
        return Layered(subject, subject.layers)
    if subject.bottleneck is not None:
        return ThroughBottleneck(subject, subject.bottleneck)
    return Exact(subject)


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
    """

    subject: Subject
    generator: torch.Generator
    count: int
    tolerance: float
    price: int = 1
    steps: int = 24
    method = "krylov"
    at_once = _PROBED_AT_ONCE

    @property
    def entries(self) -> int:
        """The two bases of every probe."""
        return self.count * 2 * self.steps * self.subject.columns

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Bracket the mean of every sample's singular values."""
        x = self.subject.fast_input(batch)
        jacobian = _jacobian(self.subject, batch, x, expected=self.count * self.steps)
        start = probes(len(x), self.count, jacobian.rank, self.generator, x)
        run = bidiagonalize(jacobian, start, steps=_STEPS, rtol=self.tolerance)
        lower, upper = run.bracket()
        middle = (lower + upper) / 2
        variance = middle.var(1) / self.count if self.count > 1 else torch.full_like(middle[:, 0], math.nan)
        brackets = Brackets(lower.mean(1).cpu(), upper.mean(1).cpu(), variance.cpu(), float(run.largest()[1].max()))
        return replace(_estimated(run.spectrum(), len(batch), jacobian), brackets=brackets, run=run)
