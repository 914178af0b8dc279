"""Batches of (inputs, targets): the one form in which networks are trained, pruned, repaired and evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from isometry.data.nests import count_samples, describe, map_tensors, named_tensors, tensors_in
from isometry.errors import InvalidTypeError, InvalidValueError, join_names

__all__ = ["Batches", "Pair", "Split"]

Key = str | int
_TARGETS = ("labels", "label", "targets", "target", "y")
_LOADER = "torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)"
_SAMPLERS = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


class Pair(NamedTuple):
    """One batch.

    Attributes:
        inputs: a tensor [B, ...]; or several, a tuple of the model's positional arguments or a dict of its keyword ones.
        targets: what the loss compares the outputs with; None where there are none.
    """

    inputs: Any
    targets: Any

    def split(self, size: int, order: Tensor | None = None) -> Iterator[Pair]:
        """Yield batches of `size` samples, in the order of their indices [N]; None means as they are."""
        starts = range(0, count_samples(self.inputs), size)
        for index in order.split(size) if order is not None else (slice(start, start + size) for start in starts):
            yield Pair(*(map_tensors(part, lambda tensor, index=index: tensor[index]) for part in self))  # type: ignore[misc]


class Split(NamedTuple):
    """Part of a data set, in memory.

    Attributes:
        inputs: [N, C, H, W] float32, normalized; of data of your own, any tensor [N, ...], or a tuple or dict of them.
        targets: [N] int64, the classes; of data of your own, whatever the loss takes.
    """

    inputs: Tensor
    targets: Tensor

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Pair]:
        """Yield batches of `size` samples, in the order of their indices [N]; None means as they are."""
        return Pair(*self).split(size, order)

    def count_batches(self, size: int) -> int:
        """Return how many batches of `size` samples there are, the last one perhaps smaller."""
        return -(-count_samples(self.inputs) // size)


@dataclass(frozen=True, eq=False, repr=False)
class Batches:
    """Batches of (inputs, targets) from an iterable, a DataLoader for instance, which is read anew in every epoch.

    Without `inputs` and `targets`, a batch is read as loaders give it: x, or (x, y), or (x1, x2, ..., y) with the targets
    last, or a dict, whose targets are called labels, label, targets, target or y. Several inputs become the model's
    arguments, those of a dict by name. x may itself be a tuple or dict of tensors.

        Batches(loader, inputs="image", targets="depth")      # of a dict, or positions of a tuple
        Batches(loader, inputs=("left", "right"))             # two positional arguments of the model
        Batches(loader, inputs=0, targets=0)                  # an autoencoder: the targets are the inputs

    Attributes:
        source: gives the batches; their order and augmentation are its own.
        inputs: the entry of a batch that is the input, or a tuple of entries, the model's positional arguments.
        targets: the entry that is the target, or a tuple of entries.

    Raises:
        TypeError: no iterable of batches: single samples, or something else.
        ValueError: while being read: no batches or fewer than its length says, empty ones, entries that are missing, or
            that change from batch to batch.
    """

    source: Iterable[Any]
    inputs: Key | tuple[Key, ...] | None = None
    targets: Key | tuple[Key, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Dataset) or not isinstance(self.source, Iterable) or isinstance(self.source, str):
            raise InvalidTypeError(
                f"got data of type {type(self.source).__name__}; it takes tensors (inputs, targets), an isometry.data.Data, or "
                f"an iterable of batches, e.g. data={_LOADER}."
            )

    def __iter__(self) -> Iterator[Pair]:
        """Yield the batches of one epoch, checked."""
        first: list[Any] | None = None
        count = 0
        for count, entry in enumerate(self.source, 1):
            pair = self.read(entry)
            first = first or _layout(pair)
            if _layout(pair) != first:
                raise InvalidValueError(
                    f"got batches that change: the first one has {_listed(first)}, batch {count} has "
                    f"{_listed(_layout(pair))}. Every batch of a loader must have the same entries, e.g. (x, y)."
                )
            yield pair
        length = self.length
        if not count:
            raise InvalidValueError(
                "got an iterable that gives no batches: it is empty, or an iterator that was read before. Pass a list of "
                f"batches or a loader, e.g. data={_LOADER}."
            )
        if length is not None and count < length:
            raise InvalidValueError(
                f"got a loader that ended after {count} of the {length} batches that its len() promises. Correct its length "
                "or its data set, or pass the batches as a list, e.g. data=list(loader)."
            )

    @property
    def length(self) -> int | None:
        """How many batches an epoch has; None where only the end tells."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    @property
    def is_read_once(self) -> bool:
        """Whether the source is an iterator: a second epoch finds nothing in it."""
        return isinstance(self.source, Iterator)

    @property
    def is_restorable(self) -> bool:
        """Whether torch's generators, global ones and those of `generators`, are all that the batches depend on.

        This holds for a list, and for a DataLoader of a map-style data set with torch's own samplers and without
        persistent workers, as long as the data set draws its random numbers from torch.
        """
        loader: Any = self.source
        if not isinstance(loader, DataLoader):
            return isinstance(loader, list | tuple)
        batch_sampler = loader.batch_sampler
        sampler = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
        plain = type(sampler) in _SAMPLERS and type(batch_sampler) in (BatchSampler, type(None))
        return plain and not isinstance(loader.dataset, IterableDataset) and not loader.persistent_workers

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators of a DataLoader and its samplers by name, each once."""
        loader: Any = self.source if isinstance(self.source, DataLoader) else None
        batch_sampler = getattr(loader, "batch_sampler", None)
        owners = {
            "loader": loader,
            "sampler": getattr(loader, "sampler", None),
            "batch_sampler": batch_sampler,
            "inner_sampler": getattr(batch_sampler, "sampler", None),
        }
        found: dict[str, torch.Generator] = {}
        for name, owner in owners.items():
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and all(generator is not other for other in found.values()):
                found[name] = generator
        return found

    def first(self) -> Pair:
        """Return the first batch; the loader's generators are put back, so that later epochs do not change."""
        if self.is_read_once:
            raise InvalidTypeError(
                f"got data that can be read only once ({type(self.source).__name__}); it is needed several times. Pass a "
                f"list of batches or a loader, e.g. data={_LOADER}."
            )
        states = [(generator, generator.get_state()) for generator in self.generators().values()]
        try:
            return next(iter(self))
        finally:
            for generator, state in states:
                generator.set_state(state)

    def __repr__(self) -> str:
        """Say what the batches come from, the same in another process."""
        loader: Any = self.source
        text = f"{type(loader).__name__}, {self.length} batches"
        if isinstance(loader, DataLoader):
            sized = not isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "__len__")
            text += f" of {type(loader.dataset).__name__}"
            text += f", {len(loader.dataset)} samples by {loader.batch_size}" if sized else ""  # type: ignore[arg-type]
            text += f", {type(loader.sampler).__name__}"
        named = "".join(
            f", {key}={value!r}" for key in ("inputs", "targets") if (value := getattr(self, key)) is not None
        )
        return f"Batches({text}{named})"

    def read(self, batch: Any) -> Pair:
        """Return inputs and targets of one batch as the loader gives it."""
        named = isinstance(batch, Mapping)
        entries = dict(batch) if named else dict(enumerate(batch if isinstance(batch, tuple | list) else (batch,)))
        targets = self.targets if self.targets is not None else self._default_targets(entries, named)
        excluded = _as_tuple(targets)
        keys = self.inputs if self.inputs is not None else tuple(key for key in entries if key not in excluded)
        for key in (*_as_tuple(keys), *excluded):
            if key not in entries:
                raise InvalidValueError(
                    f"got batches with the entries {join_names([repr(key) for key in entries])}, without {key!r}; name those "
                    f"there are, e.g. isometry.data.Batches(loader, inputs={next(iter(entries), 0)!r})."
                )
        chosen: Any = {key: entries[key] for key in _as_tuple(keys)}
        if len(chosen) == 1:
            chosen = next(iter(chosen.values()))
        elif not named or self.inputs is not None:
            chosen = tuple(chosen.values())
        picked = [entries[key] for key in excluded]
        return _checked(chosen, picked[0] if len(picked) == 1 else tuple(picked) or None)

    def _default_targets(self, entries: Mapping[Any, Any], named: bool) -> Key | tuple[Key, ...]:
        """Return the entry that holds the targets: the last of several that are not inputs, or that of a usual name."""
        used = _as_tuple(self.inputs)
        rest = [key for key in entries if key not in used]
        if not named:
            return rest[-1] if len(rest) > (not used) else ()
        known = [key for key in rest if key in _TARGETS]
        if len(known) > 1:
            raise InvalidValueError(
                f"got dict batches with {join_names([repr(key) for key in known])}; say which of them the targets are, e.g. "
                f"isometry.data.Batches(loader, targets={known[0]!r})."
            )
        return known[0] if known else ()


def _as_tuple(keys: Any) -> tuple[Any, ...]:
    return () if keys is None else keys if isinstance(keys, tuple) else (keys,)


def _checked(inputs: Any, targets: Any) -> Pair:
    """Return a batch with lists made tuples; raise an error where it holds no samples, or other things than tensors."""
    tensors = tensors_in(inputs)
    if not tensors:
        raise InvalidTypeError(
            f"got a batch whose inputs are of type {type(inputs).__name__}, without tensors; batches are x, (x, y) or dicts "
            f"of tensors. Let a loader make batches of samples, e.g. data={_LOADER}."
        )
    count = count_samples(inputs)
    if not count:
        raise InvalidValueError(
            f"got an empty batch, with {describe(inputs)}; every batch must hold at least one sample."
        )
    if isinstance(targets, Tensor) and (not targets.ndim or len(targets) != count):
        raise InvalidValueError(
            f"got a batch of {count} samples with {describe(targets)} as targets; it takes one target per sample, e.g. a "
            f"batch of {_LOADER}."
        )
    return Pair(tuple(inputs) if isinstance(inputs, list) else inputs, targets)


def _layout(pair: Pair) -> list[Any]:
    """Return the names, dimensions and kinds of a batch's tensors: what must not change from batch to batch."""
    return [(name, tensor.ndim, tensor.is_floating_point()) for name, tensor in named_tensors(pair._asdict())]


def _listed(layout: list[Any]) -> str:
    kinds = [f"{name} of {ndim} dimensions, {'float' if real else 'integer'}" for name, ndim, real in layout]
    return join_names(kinds)
