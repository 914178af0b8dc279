"""What a user gives to measure a network at, read as checked batches on the network's device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from isometry.data import Batches, Data, Folder, Split
from isometry.data.nests import tensors_in
from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.measurement.batch import Batch, map_entries
from isometry.networks import find_inputs, required_inputs

__all__ = ["MOST", "Inputs", "has_length", "read_inputs", "takes_several_inputs"]

MOST = 1024
"""Samples of an iterable without a length, which may have no end, that are measured where nothing else ends it."""
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Inputs:
    """Batches to measure at.

    Attributes:
        batches: an iterator of batches, read once.
        total: the number of samples; None where only the end tells.
        description: what they are, in words.
        is_stream: whether they come in an order of their own, which may not be random.
        most: the number of samples at which to stop where nothing else ends the measurement; None where they have an end.
        at: name of the module where derivatives start, where that was found with the inputs.
        notes: what was done to them while they were read, in words.
    """

    batches: Iterator[Batch]
    total: int | None
    description: str
    is_stream: bool = False
    most: int | None = None
    at: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader:
    """How entries of the user's inputs become batches.

    Attributes:
        device: of the network; None where it has no tensors.
        key: which of several inputs is differentiated.
        whole: whether a tuple or dict is one batch of all of the model's inputs, rather than (x, y).
        integers: whether integer inputs are accepted, as the Jacobian starts later in the network.
        dtype: half precision of the network, to which floating point inputs are converted; None leaves them as they are.
        notes: takes what was done, in words.
    """

    device: torch.device | None
    key: str | int | None
    whole: bool
    integers: bool
    dtype: torch.dtype | None
    notes: list[str]

    def read(self, batch: Any) -> Batch:
        """Return the batch of one entry of an iterable."""
        if self.whole:
            return Batch.of(map_entries(batch, self._on_device), self.key)
        if isinstance(batch, Mapping):
            raise InvalidTypeError(
                f"got batches that are dicts, of {', '.join(map(repr, batch))}; say which entry is differentiated, e.g. "
                f"measure(model, loader, wrt={next(iter(batch), 'x')!r})."
            )
        return Batch.of(self.checked(batch[0] if isinstance(batch, list | tuple) and batch else batch))

    def checked(self, inputs: Any) -> Tensor:
        """Return one input tensor on the network's device, detached."""
        if isinstance(inputs, Mapping | tuple | list) and tensors_in(inputs):
            key = next(iter(inputs)) if isinstance(inputs, Mapping) else 0
            raise InvalidTypeError(
                f"got a batch whose inputs are a {type(inputs).__name__} of several; say which one is differentiated, e.g. "
                f"measure(model, isometry.data.Batches(loader), wrt={key!r})."
            )
        if not isinstance(inputs, Tensor):
            raise InvalidTypeError(
                f"got a batch of type {type(inputs).__name__}; batches are tensors x or pairs (x, y), e.g. "
                "measure(model, torch.utils.data.DataLoader(dataset, batch_size=64))."
            )
        if inputs.ndim < 2 or not inputs.numel():
            raise InvalidValueError(
                f"got inputs of shape {tuple(inputs.shape)}; it takes a non-empty batch [B, ...], e.g. "
                "measure(model, torch.randn(64, 784))."
            )
        if inputs.is_meta or inputs.layout != torch.strided:
            kind = "on the meta device" if inputs.is_meta else f"of layout {inputs.layout}"
            raise InvalidTypeError(
                f"got inputs {kind}; it takes a dense tensor with values, e.g. measure(model, {'x' if inputs.is_meta else 'x.to_dense()'})."
            )
        if not inputs.is_floating_point() and not self.integers:
            raise InvalidTypeError(
                f"got inputs of dtype {inputs.dtype}, which have no derivative. Pass floating point inputs, e.g. "
                "measure(model, inputs.float()), or start after the embedding, e.g. measure(model, tokens, at='embedding')."
            )
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            count = int((~torch.isfinite(inputs)).sum())
            raise InvalidValueError(
                f"got inputs with {count} NaN or infinite entries; all must be finite, e.g. "
                "measure(model, torch.nan_to_num(inputs))."
            )
        return self._on_device(inputs)

    def _on_device(self, part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if self.dtype is not None and part.is_floating_point() and part.dtype != self.dtype:
            note = f"inputs converted from {_short(part.dtype)} to {_short(self.dtype)}, the model's precision"
            if note not in self.notes:
                self.notes.append(note)
            part = part.to(self.dtype)
        return part.detach() if self.device is None else part.detach().to(self.device)


def read_inputs(
    model: nn.Module,
    inputs: Any,
    *,
    key: str | int | None = None,
    whole: bool = False,
    integers: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    count: int = 64,
) -> Inputs:
    """Return `Inputs` from a tensor, a split, an iterable of batches, or nothing.

    Args:
        model: what they are for; where `inputs` is None, those that `networks.find_inputs` finds are drawn.
        inputs: see `isometry.measure`.
        key: which of several inputs is differentiated.
        whole: whether a tuple or dict is one batch of all of the model's inputs, rather than (x, y).
        integers: whether integer inputs are accepted (the Jacobian starts later in the network).
        shuffle: whether to take samples in random order, as perhaps only some of them will be used: those of a tensor,
            of a list of batches, and of a map-style data set, by index.
        seed: of drawing and shuffling.
        count: how many inputs to draw where None were passed.

    Raises:
        TypeError, ValueError: empty, not finite, of the wrong kind; the message shows a call that works.
    """
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    notes: list[str] = []
    reader = _Reader(device, key, whole, integers, dtype if dtype in _HALF else None, notes)
    if inputs is None:
        return _drawn(model, count, seed, integers)
    if isinstance(inputs, Data | Folder):
        inputs = inputs.test
    if isinstance(inputs, Batches):
        named = inputs.inputs is not None or inputs.targets is not None
        inputs = (pair.inputs for pair in inputs) if named or whole else inputs.source
    if isinstance(inputs, Split) or (not whole and _is_pair(inputs)):
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        x = reader.checked(inputs)
        if shuffle:
            x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)]
        return Inputs(iter([Batch.of(x)]), len(x), f"inputs of shape {tuple(x.shape[1:])}", notes=notes)
    if whole and isinstance(inputs, tuple | Mapping) and _holds_tensors(inputs):
        batch = reader.read(inputs)
        return Inputs(iter([batch]), len(batch), "inputs, all of the model's", notes=notes)
    if isinstance(inputs, Mapping):
        raise InvalidTypeError(
            f"got a dict of inputs, {', '.join(map(repr, inputs))}; say which of them is differentiated, e.g. "
            f"measure(model, inputs, wrt={next(iter(inputs), 'x')!r})."
        )
    if shuffle and (drawn := _in_random_order(inputs, seed)) is not None:
        loader, total = drawn
        return Inputs(map(reader.read, loader), total, "inputs of a data set, drawn at random", notes=notes)
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        most = None if has_length(inputs) else MOST
        return Inputs(
            map(reader.read, inputs),
            None if whole else _total(inputs),
            "inputs of an iterable",
            True,
            most,
            notes=notes,
        )
    raise InvalidTypeError(
        f"got inputs of type {type(inputs).__name__}; it takes a tensor [B, ...] or an iterable of batches, e.g. "
        "measure(model, torch.randn(64, 784))."
    )


def _drawn(model: nn.Module, count: int, seed: int, at_is_given: bool) -> Inputs:
    """Return inputs of the kind that the model is found to take."""
    spec = find_inputs(model)
    if spec.vocabulary is not None and spec.embedding is None and not at_is_given:
        raise InvalidValueError(
            f"found that the model takes {spec}, but not where it embeds them. Say where derivatives are to start, e.g. "
            "measure(model, tokens, at='embedding')."
        )
    description = f"{spec}, as none were given"
    if spec.reason:
        description += f" ({spec.reason})"
    at = None if at_is_given or spec.vocabulary is None else spec.embedding
    if at is not None:
        description += f"; derivatives start at {at}"
    return Inputs(iter([Batch.of(spec.draw(model, count, seed))]), count, description, at=at)


def has_length(inputs: Any) -> bool:
    """Whether an iterable says how long it is, and therefore ends."""
    try:
        len(inputs)
    except (TypeError, NotImplementedError, AttributeError):
        return False
    return True


def _in_random_order(inputs: Any, seed: int) -> tuple[Iterable[Any], int | None] | None:
    """Return (batches, number of samples) in random order of whatever can be read by index; None for a stream."""
    generator = torch.Generator().manual_seed(seed)
    tensors = _listed(inputs)
    if tensors and all(tensor.shape[1:] == tensors[0].shape[1:] for tensor in tensors):
        samples = torch.cat(tensors)
        return samples[torch.randperm(len(samples), generator=generator).to(samples.device)].split(64), len(samples)
    dataset: Any = inputs
    options: dict[str, Any] = {"batch_size": 64}
    if isinstance(inputs, DataLoader):
        if inputs.batch_size is None:  # a batch sampler of the user's, or no batches at all
            return None
        dataset = inputs.dataset
        options = {"batch_size": inputs.batch_size, "collate_fn": inputs.collate_fn, "num_workers": inputs.num_workers}
    if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    order = torch.randperm(len(dataset), generator=generator).tolist()
    return DataLoader(dataset, sampler=order, **options), len(dataset)


def _total(inputs: Iterable[Any]) -> int | None:
    """Return the number of samples of a list of batches; None of what cannot be looked at without reading it."""
    tensors = _listed(inputs)
    return sum(map(len, tensors)) if tensors else None


def _listed(inputs: Any) -> list[Tensor]:
    """Return the inputs of a list of batches; nothing where it is something else."""
    firsts = [_first(batch) for batch in inputs] if isinstance(inputs, list | tuple) else []
    return firsts if all(isinstance(x, Tensor) and x.ndim for x in firsts) else []


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) and batch else batch


def _is_pair(inputs: Any) -> bool:
    """Whether `inputs` is (x, y), or [x, y] as loaders give it: as many targets as inputs, and of another kind."""
    if not (isinstance(inputs, tuple | list) and len(inputs) == 2 and all(isinstance(part, Tensor) for part in inputs)):
        return False
    x, y = inputs
    if not x.ndim or not y.ndim or len(x) != len(y):
        return False
    if x.shape == y.shape and x.is_floating_point() and y.is_floating_point() and isinstance(inputs, tuple):
        raise InvalidValueError(
            f"got a tuple of two tensors of one shape {tuple(x.shape)}: (x, y), or two batches? Pass x alone, "
            "measure(model, x), or a list of batches, measure(model, [a, b])."
        )
    return not y.is_floating_point() or y.ndim < x.ndim or (isinstance(inputs, tuple) and y.shape != x.shape)


def _holds_tensors(inputs: Any) -> bool:
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    return any(isinstance(part, Tensor) for part in parts)


def takes_several_inputs(model: nn.Module) -> bool:
    """Whether the forward pass of a model needs more than one argument, or accepts any number."""
    needed = required_inputs(model)
    return needed is None or len(needed) > 1


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
