"""What a user calls data, read as a `Split` in memory or as `Batches`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from isometry.data.batches import Batches, Split
from isometry.data.datasets import Data
from isometry.data.images import Folder
from isometry.data.nests import count_samples, describe, first_samples, tensors_in
from isometry.errors import InvalidTypeError, InvalidValueError

__all__ = ["first_inputs", "is_pair", "read_data"]


def read_data(data: Any, *, part: str = "train", batch_size: int = 64, shuffle: bool = False) -> Split | Batches:
    """Return data as a `Split` where they are in memory, else as `Batches`.

    In memory are a `Data` or a `Split`, a tensor [N, ...], a pair (inputs, targets), in which the inputs may be a tuple or
    dict of tensors, and a dict of tensors. Everything else is an iterable of batches, a list of pairs for instance, or a
    map-style `torch.utils.data.Dataset`, which is read in batches.

    Args:
        data: see above; of a `Data` or `Folder`, the part is taken.
        part: "train" or "test".
        batch_size: samples per batch of a `Dataset`.
        shuffle: whether a `Dataset` is read in random order, anew in every epoch, by torch's global generator.

    Raises:
        InvalidTypeError, InvalidValueError: no data; inputs and targets of different length.
    """
    if isinstance(data, Data | Folder):
        data = getattr(data, part)
    if isinstance(data, Batches):
        return data
    if isinstance(data, Tensor):
        return Split(data, None)  # type: ignore[arg-type]
    if isinstance(data, Split):
        return _checked(*data)
    if isinstance(data, Mapping) and tensors_in(data):
        return _checked(*Batches([data]).read(data))
    if is_pair(data):
        inputs, targets = data
        return _checked(tuple(inputs) if isinstance(inputs, list) else inputs, targets)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        return Batches(DataLoader(data, batch_size, shuffle=shuffle and len(data) > 0))
    return Batches(data)


def first_inputs(batches: Batches, samples: int) -> Iterator[Any]:
    """Yield the inputs of batches until there are `samples` of them; no batch is read after that."""
    for inputs, _ in batches:
        yield first_samples(inputs, samples)
        samples -= count_samples(inputs)
        if samples <= 0:
            return


def is_pair(data: Any) -> bool:
    """Whether data are (inputs, targets), or [inputs, targets] as a loader gives one batch, rather than two batches.

    A list of two tensors is a pair where there are as many targets as inputs, and of another kind: integers, or of fewer
    dimensions. A tuple of two tensors is a pair always, and so is one of a tensor and a nest of tensors.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, targets = data
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        return any(isinstance(part, Tensor) for part in data) and all(map(tensors_in, data))
    if isinstance(data, tuple):
        return True
    same = inputs.ndim > 0 < targets.ndim and len(inputs) == len(targets)
    return same and (not targets.is_floating_point() or targets.ndim < inputs.ndim)


def _checked(inputs: Any, targets: Any) -> Split:
    """Return a split, in which every tensor has one entry per sample."""
    if not tensors_in(inputs):
        raise InvalidTypeError(
            f"got inputs of type {type(inputs).__name__}; it takes tensors (inputs, targets), or an iterable of batches, "
            "e.g. data=torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)."
        )
    count = count_samples(inputs)
    lengths = {len(t) if t.ndim else 0 for t in tensors_in((inputs, targets))}
    if lengths != {count}:
        targets_count = [len(t) for t in tensors_in(targets) if t.ndim]
        found = f"{count} inputs and {targets_count[0]} targets" if targets_count else describe((inputs, targets))
        raise InvalidValueError(
            f"got {found}; it takes one target per input and at least one of both, e.g. "
            "data=isometry.data.load('digits')."
        )
    return Split(inputs, targets)
