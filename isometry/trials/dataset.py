"""Where a trial's data come from: a set by name, or tensors of the user's."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isometry import data as sets
from isometry import networks
from isometry.data import Batches, Data, Folder, Split
from isometry.data.nests import concatenate, count_samples, first_samples
from isometry.data.reading import first_inputs as read_first_inputs
from isometry.errors import InvalidValueError
from isometry.files import read_tensors, write_tensors
from isometry.trials.digests import data_digest
from isometry.trials.seeding import seeded

__all__ = ["MEASURED", "Own", "load_named", "read_data"]

MEASURED = 64
"""How many training inputs the networks of trials are measured at."""

_PARTS = ("train", "validation", "test")


@functools.lru_cache(maxsize=1)
def load_named(dataset: str, validation: int, network: str, weights: str) -> Data:
    """Return a data set by its name, normalized as the weights of that name need it."""
    known = networks.PRETRAINED.get((network, weights))
    return sets.load(dataset, validation=validation, normalization=known.normalization if known else None)


@dataclass(frozen=True, eq=False)
class Own:
    """Data of the user's: tensors, or loaders.

    Tensors go to worker processes by a file, which is written once.

    Attributes:
        data: the parts that trials train on and are evaluated on; `Split`s or `Batches`.
        folder: where that file is written.
    """

    data: Data
    folder: Path | None = None

    @property
    def name(self) -> str:
        """In tables and in the names of folders."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.data.name) or "data"

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the tensors, or of what can be known of loaders."""
        with seeded(0):
            return data_digest(self.data)

    @property
    def settings(self) -> dict[str, str]:
        """What decides the data, as JSON types."""
        return {"name": self.data.name, "digest": self.digest}

    @functools.cached_property
    def _states(self) -> list[tuple[torch.Generator, Tensor]]:
        every: tuple[Any, ...] = (self.data.train, self.data.test)
        parts = [part for part in every if isinstance(part, Batches)]
        return [(generator, generator.get_state()) for part in parts for generator in part.generators().values()]

    def restarted(self) -> Data:
        """Return the data, with the generators of loaders as they were at first: no trial depends on those before."""
        for generator, state in self._states:
            generator.set_state(state)
        return self.data

    @functools.cached_property
    def first_inputs(self) -> Any:
        """The first inputs of training, as many as networks are measured at: of loaders always the same ones."""
        with seeded(0):
            return _first_inputs(self.restarted(), MEASURED)

    def release(self) -> None:
        """Put the generators of loaders back, and delete the file."""
        self.restarted()
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    @property
    def file(self) -> Path | None:
        """The file by which tensors go to worker processes; None for loaders, which are pickled."""
        splits = all(isinstance(part, Split) and _is_flat(part) for part in (self.data.train, self.data.test))
        return self.folder / f".{self.name}-{self.digest}.safetensors" if splits and self.folder is not None else None

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but tensors, which are written to the file."""
        kept = {"folder": self.folder, "digest": self.digest, "first_inputs": self.first_inputs}
        if self.file is None:
            return {**kept, "data": self.restarted()}
        if not self.file.exists():
            parts = {f"{part}.{key}": t for part in _PARTS for key, t in getattr(self.data, part)._asdict().items()}
            write_tensors(self.file, parts, {})
        rest = {name: value for name, value in vars(self.data).items() if name not in _PARTS}
        return {**kept, "file": str(self.file), "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        if "rest" in state:
            settings: dict[str, Any] = {**state.pop("rest"), **_read_parts(state.pop("file"))}
            state["data"] = Data(**settings)
        vars(self).update(state)


@functools.lru_cache(maxsize=1)
def _read_parts(file: str) -> dict[str, Split]:
    tensors, _ = read_tensors(file)
    return {part: Split(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in _PARTS}


def _is_flat(part: Split) -> bool:
    return isinstance(part.inputs, Tensor) and isinstance(part.targets, Tensor)


def _first_inputs(data: Data, count: int) -> Any:
    """Return the first inputs of the training part [count, ...], of loaders from as many batches as that takes."""
    if isinstance(data.train, Split):
        return first_samples(data.train.inputs, count)
    return concatenate(list(read_first_inputs(data.train, count)))


def read_data(data: Any, test: Any = None) -> str | Data:
    """Return the data that trials work with: a name, or parts.

    Args:
        data: a name that `data.load` knows, or what `train` takes: what is trained on.
        test: what networks are evaluated on; None takes the test part of a `Data` or `Folder`, and otherwise the training data
            themselves.

    Raises:
        ValueError: an unknown name, inputs and targets that do not fit each other, or an iterator.
        TypeError: something else.
    """
    if isinstance(data, str):
        if data not in sets.names():
            raise InvalidValueError(f"got the data {data!r}; it takes {', '.join(sets.names())}, {_EXAMPLE}")
        if test is not None:
            raise InvalidValueError(
                f"got test= with the data {data!r}, which have a test part; leave it out, {_EXAMPLE}"
            )
        return data
    if isinstance(data, Data):
        return data if test is None else replace(data, test=_read_part(test))
    if isinstance(data, Folder):
        evaluated: Any = data.test if test is None else _read_part(test)
        return _whole("folder", data.train, evaluated, len(data.classes), data.input_shape)
    train = _read_part(data)
    example = _first_inputs(_whole("", train, train, 0, ()), 1) if isinstance(train, Split) else train.first().inputs
    shape = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    classes = _count_classes(train.targets) if isinstance(train, Split) else 0
    kind = "tensors" if isinstance(train, Split) else type(train.source).__name__
    return _whole(kind, train, train if test is None else _read_part(test), classes, shape)


_EXAMPLE = "or (inputs, targets), e.g. sweep(model, {'L1': isometry.L1()}, [0.5], (x, y), test=(x_test, y_test), finetune=recipe)."


def _whole(name: str, train: Any, test: Any, classes: int, shape: tuple[int, ...]) -> Data:
    return Data(name, train, Split(torch.empty(0), torch.empty(0)), test, classes, shape)


def _read_part(data: Any) -> Any:
    """Return a part as `train` reads it; it must be readable more than once, and not empty."""
    part = sets.read_data(data)
    if isinstance(part, Batches):
        part.first()
    elif not count_samples(part.inputs):
        raise InvalidValueError(f"got data without samples; it takes a name, a Data, a loader, {_EXAMPLE}")
    return part


def _count_classes(targets: Any) -> int:
    """Return the number of classes; 0 where the targets are no classes."""
    whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dtype != torch.bool
    return int(targets.max()) + 1 if whole and targets.ndim == 1 else 0
