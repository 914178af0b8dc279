"""Batch: a network's inputs for some samples, one tensor of which is differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isometry.errors import InvalidValueError

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a network for `len(batch)` samples.

    Tensors whose first dimension is that number are treated as one entry per sample; all others are shared by all
    samples.

    Attributes:
        values: a tensor [B, ...], or a tuple or dict of all of the model's inputs.
        samples: B.
        key: which of several inputs is differentiated; None for a tensor, or where a module's output is differentiated.
        whole: the number of samples of the batch that this is a share of, where random numbers are drawn for all of them;
            None where it is no share.
        first: the number of its first sample there.
    """

    values: Any
    samples: int
    key: str | int | None = None
    whole: int | None = None
    first: int = 0

    @classmethod
    def of(cls, values: Any, key: str | int | None = None) -> Batch:
        """Return the batch of `values`: as many samples as the differentiated entry has, else the first tensor.

        Raises:
            ValueError: no samples, or a key that the values do not have.
        """
        samples = len(_differentiated(values, key))
        if not samples:
            raise InvalidValueError("got an empty batch; every batch must hold at least one sample.")
        return cls(values, samples, key)

    def __len__(self) -> int:
        """The number of samples."""
        return self.samples

    @property
    def differentiated(self) -> Tensor:
        """The differentiated entry [B, ...]; the first tensor where there is no key."""
        return _differentiated(self.values, self.key)

    def with_differentiated(self, tensor: Tensor) -> Any:
        """Return the values with `tensor` in the place of the differentiated entry."""
        if self.key is None:
            return tensor
        if isinstance(self.values, Mapping):
            return {**self.values, self.key: tensor}
        parts: Any = list(self.values)
        parts[self.key] = tensor
        return tuple(parts)

    def map(self, change: Callable[[Any], Any], samples: int | None = None) -> Batch:
        """Return the batch with every entry changed; `samples` is their number afterwards where it differs."""
        return Batch(map_entries(self.values, change), self.samples if samples is None else samples, self.key)

    def select(self, samples: Tensor) -> Batch:
        """Return the samples with the given indices [b], which may repeat."""
        whole = len(samples) == self.samples and bool((samples == torch.arange(self.samples)).all())
        if whole:
            return self
        contiguous = len(samples) and bool((samples.diff() == 1).all())
        index: Any = slice(int(samples[0]), int(samples[-1]) + 1) if contiguous else samples

        def entries_of(part: Tensor) -> Tensor:
            return part[index if contiguous else samples.to(part.device)]

        return self.map_samples(entries_of, len(samples))

    def map_samples(self, change: Callable[[Tensor], Tensor], samples: int | None = None) -> Batch:
        """Return the batch with only those entries changed that hold one entry per sample."""
        return self.map(lambda part: change(part) if self._is_per_sample(part) else part, samples)

    def part(self, start: int, stop: int) -> Batch:
        """Return samples `start` to `stop`, at most to the end."""
        return self.select(torch.arange(start, min(stop, self.samples)))

    def share(self, start: int, stop: int) -> Batch:
        """Return samples `start` to `stop` as a share of this batch."""
        return replace(self.part(start, stop), whole=self.samples, first=start)

    def pair(self) -> Batch:
        """Return a batch of two samples: the first two, or the only one twice."""
        if self.samples > 1:
            return self.part(0, 2)
        return self.map_samples(lambda part: torch.cat([part, part]), 2)

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch with its floating point tensors in `dtype`."""
        return self.map(lambda part: part.to(dtype) if _is_floating(part) else part)

    def shifted(self) -> Batch:
        """Return the batch with its differentiated entry at another place."""
        x = self.differentiated
        return Batch(self.with_differentiated(x + 0.5 + 0.5 * x.flip(0)), self.samples, self.key)

    def with_second_sample_moved(self) -> Batch:
        """Return a pair whose second sample is another one, the first unchanged."""

        def move(part: Tensor) -> Tensor:
            if part.ndim < 2 and not part.is_floating_point():
                return part
            second = part[1] + 1 + part[1].abs() if part.is_floating_point() else part[1].flip(0)
            return torch.stack([part[0], second])

        return self.map_samples(move)

    def _is_per_sample(self, part: Any) -> bool:
        return isinstance(part, Tensor) and part.ndim > 0 and len(part) == self.samples


def map_entries(values: Any, change: Callable[[Any], Any]) -> Any:
    """Return `values` (a tensor, or a tuple or dict of all inputs) with `change` applied to every entry."""
    if isinstance(values, Mapping):
        return {key: change(part) for key, part in values.items()}
    return tuple(map(change, values)) if isinstance(values, tuple | list) else change(values)


def _is_floating(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _differentiated(values: Any, key: str | int | None) -> Tensor:
    if key is None:
        parts = [values] if isinstance(values, Tensor) else values.values() if isinstance(values, Mapping) else values
        return next(part for part in parts if isinstance(part, Tensor))
    try:
        entry = values[key]
        len(entry)
    except (KeyError, IndexError, TypeError):
        known = ", ".join(map(repr, values)) if isinstance(values, Mapping) else f"0 to {len(values) - 1}"
        example = next(iter(values)) if isinstance(values, Mapping) else 0
        raise InvalidValueError(f"got wrt={key!r}; the batch holds {known}. E.g. wrt={example!r}.") from None
    return entry
