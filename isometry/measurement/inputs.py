"""Inputs: whatever a user gives to measure a network at, as checked batches on the network's device."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import Data, Split
from isometry.measurement.function import each
from isometry.networks import example_inputs, input_shape

__all__ = ["Inputs", "among", "converted", "gather", "moved", "several", "take", "twice", "width"]

Batch = Any
DRAWN = 64


@dataclass
class Inputs:
    """Batches to measure at.

    Attributes:
        batches: an iterator of batches: tensors, or tuples or dicts of all the model's inputs.
        total: how many samples there are, None where only the end tells.
        described: what they are, in words.
    """

    batches: Iterator[Batch]
    total: int | None
    described: str


def gather(
    model: nn.Module, inputs: Any, *, whole: bool, integers: bool, shuffle: bool, seed: int, drawn: int = DRAWN
) -> Inputs:
    """Return `Inputs` from a tensor, a split, an iterable of batches, or nothing.

    Args:
        model: where they go; None for `inputs` draws standard normal ones of the shape that its first layer tells.
        inputs: see `isometry.measure`.
        whole: whether a tuple or dict is one batch of all the model's inputs, not (x, y).
        integers: whether integer inputs are accepted (the Jacobian starts later in the network).
        shuffle: whether to take a tensor's samples in a random order, for only part of them may be used.
        seed: of drawing and shuffling.
        drawn: how many to draw for None.

    Raises:
        TypeError, ValueError: empty, not finite, of the wrong kind; the message shows a call that works.
    """
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    if inputs is None:
        if integers:
            raise ValueError(
                "measure() cannot draw inputs for at=; pass some, e.g. measure(model, tokens, at='embedding')."
            )
        shape = input_shape(model, "measure(model, inputs)")
        x = _checked(example_inputs(model, drawn, seed=seed), device, integers)
        return Inputs(_blocks(x), drawn, f"standard normal inputs of shape {shape}, as none were given")
    if isinstance(inputs, Data):
        inputs = inputs.test
    if isinstance(inputs, Split) or (not whole and _is_pair(inputs)):
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        x = _checked(inputs, device, integers)
        if shuffle:
            x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)]
        return Inputs(_blocks(x), len(x), f"inputs of shape {tuple(x.shape[1:])}")
    if whole and isinstance(inputs, tuple | Mapping) and _holds_tensors(inputs):
        return Inputs(iter([each(inputs, lambda part: _lent(part, device))]), None, "inputs, all of the model's")
    if isinstance(inputs, Mapping):
        raise TypeError(
            f"measure() got a dict of inputs, {', '.join(map(repr, inputs))}; say which of them is differentiated, e.g. "
            f"measure(model, inputs, wrt={next(iter(inputs), 'x')!r})."
        )
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        batches = (_entry(batch, device, whole, integers) for batch in inputs)
        return Inputs(batches, None, "inputs of an iterable")
    raise TypeError(
        f"measure() got inputs of type {type(inputs).__name__}; it takes a tensor [B, ...] or an iterable of batches, "
        "e.g. measure(model, torch.randn(64, 784))."
    )


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return iter([x])


def _is_pair(inputs: Any) -> bool:
    """Whether `inputs` is (x, y), or [x, y] as loaders give it: as many targets as inputs, and of another kind."""
    if not (isinstance(inputs, tuple | list) and len(inputs) == 2 and all(isinstance(part, Tensor) for part in inputs)):
        return False
    x, y = inputs
    if not x.ndim or not y.ndim or len(x) != len(y):
        return False
    if x.shape == y.shape and x.is_floating_point() and y.is_floating_point() and isinstance(inputs, tuple):
        raise ValueError(
            f"measure() got a tuple of two tensors of one shape {tuple(x.shape)}: (x, y), or two batches? Pass x alone, "
            "measure(model, x), or a list of batches, measure(model, [a, b])."
        )
    return not y.is_floating_point() or y.ndim < x.ndim or (isinstance(inputs, tuple) and y.shape != x.shape)


def _lent(part: Any, device: torch.device | None) -> Any:
    return part.detach().to(device) if isinstance(part, Tensor) else part


def several(model: nn.Module) -> bool:
    """Whether the forward pass of a model must be given more than one argument, or may take any number."""
    try:
        arguments = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return True
    needed = [a for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) and a.default is a.empty]
    return len(needed) > 1 or any(a.kind is a.VAR_POSITIONAL for a in arguments)


def _holds_tensors(inputs: Any) -> bool:
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    return any(isinstance(part, Tensor) for part in parts)


def _entry(batch: Any, device: torch.device | None, whole: bool, integers: bool) -> Batch:
    if whole:
        return each(batch, lambda part: _lent(part, device))
    if isinstance(batch, Mapping):
        raise TypeError(
            f"measure() got batches that are dicts, of {', '.join(map(repr, batch))}; say which entry is differentiated, "
            f"e.g. measure(model, loader, wrt={next(iter(batch), 'x')!r})."
        )
    return _checked(batch[0] if isinstance(batch, list | tuple) and batch else batch, device, integers)


def _checked(inputs: Any, device: torch.device | None, integers: bool) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"measure() got a batch of type {type(inputs).__name__}; batches are tensors x or pairs (x, y), e.g. "
            "measure(model, torch.utils.data.DataLoader(dataset, batch_size=64))."
        )
    if inputs.ndim < 2 or not inputs.numel():
        raise ValueError(
            f"measure() got inputs of shape {tuple(inputs.shape)}; it takes a non-empty batch [B, ...], e.g. "
            "measure(model, torch.randn(64, 784))."
        )
    if not inputs.is_floating_point() and not integers:
        raise TypeError(
            f"measure() got inputs of dtype {inputs.dtype}, which have no derivative. Pass floating point inputs, e.g. "
            "measure(model, inputs.float()), or start at a module behind them, e.g. measure(model, tokens, at='embedding')."
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        count = int((~torch.isfinite(inputs)).sum())
        raise ValueError(
            f"measure() got inputs with {count} NaN or infinite entries; all must be finite, e.g. "
            "measure(model, torch.nan_to_num(inputs))."
        )
    return inputs.detach().to(device) if device is not None else inputs.detach()


def width(batch: Batch, key: str | int | None = None) -> int:
    """Return how many samples a batch holds: the length of its differentiated part, else of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    if key is not None:
        try:
            return len(batch[key])
        except (KeyError, IndexError, TypeError):
            known = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"0 to {len(batch) - 1}"
            raise ValueError(
                f"measure() got wrt={key!r}; the batch holds {known}. E.g. wrt={next(iter(batch)) if isinstance(batch, Mapping) else 0!r}."
            ) from None
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(part for part in parts if isinstance(part, Tensor)))


def take(batch: Batch, start: int, stop: int, count: int) -> Batch:
    """Return samples `start` to `stop` of a batch of `count`; what is not of that length is for all samples alike."""
    return among(batch, torch.arange(start, min(stop, count)), count)


def among(batch: Batch, samples: Tensor, count: int) -> Batch:
    """Return the samples of a batch of `count` with the given indices, which may repeat; likewise."""
    whole = len(samples) == count and bool((samples == torch.arange(count)).all())
    follows = len(samples) and bool((samples.diff() == 1).all())
    index: Any = slice(int(samples[0]), int(samples[-1]) + 1) if follows else samples

    def cut(part: Any) -> Any:
        if whole or not (isinstance(part, Tensor) and part.ndim and len(part) == count):
            return part
        return part[index if follows else samples.to(part.device)]

    return each(batch, cut)


def converted(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return a batch with its floating point tensors in `dtype`."""
    return each(batch, lambda part: part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part)


def twice(batch: Any, count: int) -> Any:
    """Return a batch of two samples: the first two, or the only one twice."""
    pair = take(batch, 0, 2, count)
    if count > 1:
        return pair

    def repeat(part: Any) -> Any:
        return torch.cat([part, part]) if isinstance(part, Tensor) and part.ndim and len(part) == 1 else part

    return each(pair, repeat)


def moved(batch: Any, wrt: str | int | None) -> Any:
    """Return a batch whose differentiated input is elsewhere."""
    if isinstance(batch, Tensor):
        return batch + 0.5 + 0.5 * batch.flip(0)
    if isinstance(batch, Mapping):
        return {k: moved(v, None) if k == wrt else v for k, v in batch.items()}
    return tuple(moved(v, None) if i == int(wrt or 0) % len(batch) else v for i, v in enumerate(batch))
