"""Nests: tensors in tuples, lists and dicts, as networks take and return them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError, is_out_of_memory, join_names

__all__ = [
    "Outline",
    "channels_last",
    "concatenate",
    "count_samples",
    "describe",
    "failures_explained",
    "first_samples",
    "map_tensors",
    "named_tensors",
    "outline",
    "tensors_in",
]


def named_tensors(values: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) of a nest of tensors."""
    if isinstance(values, Tensor):
        yield prefix, values
    elif isinstance(values, Mapping | tuple | list):
        for key, part in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from named_tensors(part, f"{prefix}[{key!r}]" if prefix else str(key))


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors of a nest of tuples, lists and dicts."""
    return [tensor for _, tensor in named_tensors(values)]


def map_tensors(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of tuples, lists and dicts with `change` applied to every tensor; lists become tuples."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {key: map_tensors(part, change) for key, part in values.items()}
    return tuple(map_tensors(part, change) for part in values) if isinstance(values, tuple | list) else values


def count_samples(inputs: Any) -> int:
    """Return the number of samples of a batch's inputs, the length of their first tensor."""
    first = tensors_in(inputs)[0]
    return len(first) if first.ndim else 0


def first_samples(inputs: Any, count: int) -> Any:
    """Return the first samples of a batch's inputs; tensors that all samples share stay as they are."""
    samples = count_samples(inputs)
    return map_tensors(inputs, lambda tensor: tensor[:count] if tensor.ndim and len(tensor) == samples else tensor)


def concatenate(parts: Sequence[Any]) -> Any:
    """Return the batches' inputs as those of one batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    return tuple(concatenate(entries) for entries in zip(*parts, strict=True)) if isinstance(first, tuple) else first


def channels_last(inputs: Any) -> Any:
    """Return inputs with images [B, C, H, W] in the channels-last layout."""
    return map_tensors(inputs, lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)


def describe(values: Any) -> str:
    """Return the shapes and dtypes of the tensors of a batch, in words."""
    if not tensors_in(values):
        return f"{type(values).__name__}"
    return join_names(
        [f"{name + ': ' if name else ''}shape {tuple(t.shape)}, {t.dtype}" for name, t in named_tensors(values)]
    )


class Outline(NamedTuple):
    """What is kept of the first batch, to compare with where a later one does not fit.

    Attributes:
        shapes: of one sample of every tensor.
        text: the shapes and dtypes in words.
    """

    shapes: list[tuple[int, ...]]
    text: str


def outline(inputs: Any) -> Outline:
    """Return the outline of a batch's inputs."""
    return Outline([tuple(tensor.shape[1:]) for tensor in tensors_in(inputs)], describe(inputs))


@contextlib.contextmanager
def failures_explained(inputs: Any, first: Outline) -> Iterator[None]:
    """Raise an error that says so where the network fails at other entries or shapes than it takes.

    Args:
        inputs: of this batch.
        first: of the first one, which the network took.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        if outline(inputs).shapes != first.shapes and not is_out_of_memory(error):
            raise InvalidValueError(
                f"got batches whose shapes change: the first one has {first.text}, a later one {describe(inputs)}, which the "
                f"network does not take ({error}). Crop or pad the samples to one shape, e.g. in the loader's collate_fn."
            ) from error
        if isinstance(error, TypeError):
            raise InvalidTypeError(
                f"got a network that cannot be called with the inputs of a batch, {describe(inputs)} ({error}). Say which "
                "entries of a batch are its inputs, in their order, e.g. isometry.data.Batches(loader, inputs=(0, 1))."
            ) from error
        raise
