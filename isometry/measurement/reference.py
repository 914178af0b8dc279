"""Reference: the dense network that another one is judged by, measured at the same samples."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.measurement.batch import Batch
from isometry.measurement.function import NetworkFunction
from isometry.measurement.inputs import Inputs
from isometry.measurement.options import check_model
from isometry.measurement.preparation import count_outputs
from isometry.networks import placed
from isometry.networks.modules import unwrap

__all__ = ["Remembered", "check_outputs", "check_reference", "of_reference"]


def check_reference(reference: Any, at: str | None) -> nn.Module:
    """Return the network inside its wrappers, or refuse what is none."""
    if not isinstance(reference, nn.Module):
        raise InvalidTypeError(
            f"got reference= a {type(reference).__name__}; it takes the dense network itself, which is measured at the same "
            "inputs, e.g. measure(pruned, x, reference=dense). For several networks at the same inputs: "
            "compare({'dense': dense, 'pruned': pruned}, x)."
        )
    with of_reference():
        check_model(reference, at)
    return unwrap(reference)


@contextlib.contextmanager
def of_reference() -> Iterator[None]:
    """Say of errors that they are the reference's."""
    try:
        yield
    except (InvalidValueError, InvalidTypeError) as error:
        raise type(error)(f"cannot measure the reference: {error}") from error.__cause__


class Remembered:
    """Inputs that are kept as they are read, to be measured at once more.

    Attributes:
        inputs: to be read once.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._seen: list[Batch] = []
        self._batches = iter(inputs.batches)
        self._start = next(self._batches, None)
        self.inputs = replace(inputs, batches=self._remember())

    def _remember(self) -> Iterator[Batch]:
        for batch in itertools.chain([] if self._start is None else [self._start], self._batches):
            self._seen.append(batch)
            yield batch

    def pairs(self, *networks: nn.Module) -> list[Batch]:
        """Return two samples for each of the networks; nothing where there are no inputs."""
        return [] if self._start is None else [_for_network(self._start.pair(), network) for network in networks]

    def first(self, samples: int, network: nn.Module) -> Inputs:
        """Return the first samples that were read, for another network."""
        batches = []
        left = samples
        for batch in self._seen:
            batches.append(_for_network(batch.part(0, min(left, len(batch))), network))
            left -= len(batches[-1])
            if not left:
                break
        return Inputs(iter(batches), samples, self.inputs.description)


def _for_network(batch: Batch, network: nn.Module) -> Batch:
    return batch.map(lambda part: placed(part, network) if isinstance(part, Tensor) else part)


def check_outputs(function: NetworkFunction, reference: NetworkFunction, inputs: Remembered) -> None:
    """Refuse a reference that does not take the inputs, or has another number of outputs, before anything is measured."""
    for own, others in zip(inputs.pairs(function.model), inputs.pairs(reference.model), strict=True):
        with function.differentiable():
            outputs = count_outputs(function, own)
            with of_reference():
                expected = count_outputs(reference, others)
        if outputs != expected:
            raise InvalidValueError(
                f"got a reference with {expected} outputs for a network with {outputs}; mean JSVs of different numbers of "
                "outputs are not comparable. Pass the network that this one was pruned from, e.g. "
                "measure(pruned, x, reference=dense)."
            )
