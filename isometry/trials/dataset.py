"""Where a trial's data come from: a set by name, or tensors of the user's."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isometry import data as sets
from isometry import networks
from isometry.data import Data, Split
from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.files import read_tensors, write_tensors
from isometry.trials.digests import data_digest

__all__ = ["Tensors", "load_named", "read_data"]

_PARTS = ("train", "validation", "test")


@functools.lru_cache(maxsize=1)
def load_named(dataset: str, validation: int, network: str, weights: str) -> Data:
    """Return a data set by its name, normalized as the weights of that name need it."""
    known = networks.PRETRAINED.get((network, weights))
    return sets.load(dataset, validation=validation, normalization=known.normalization if known else None)


@dataclass(frozen=True, eq=False)
class Tensors:
    """Data of the user's.

    They go to worker processes by a file, which is written once.

    Attributes:
        data: the parts that trials train on and are evaluated on.
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
        """The digest of the tensors."""
        return data_digest(self.data)

    @property
    def settings(self) -> dict[str, str]:
        """What decides the data, as JSON types."""
        return {"name": self.data.name, "digest": self.digest}

    @property
    def file(self) -> Path | None:
        """The file by which they go to worker processes."""
        return None if self.folder is None else self.folder / f".{self.name}-{self.digest}.safetensors"

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the tensors, which are written to the file."""
        if self.file is None:
            return dict(vars(self))
        if not self.file.exists():
            parts = {f"{part}.{key}": t for part in _PARTS for key, t in getattr(self.data, part)._asdict().items()}
            write_tensors(self.file, parts, {})
        rest = {name: value for name, value in vars(self.data).items() if name not in _PARTS}
        return {"folder": self.folder, "digest": self.digest, "file": str(self.file), "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        if "rest" in state:
            settings: dict[str, Any] = {**state["rest"], **_read_parts(state["file"])}
            data = Data(**settings)
            state = {"data": data, "folder": state["folder"], "digest": state["digest"]}
        vars(self).update(state)


@functools.lru_cache(maxsize=1)
def _read_parts(file: str) -> dict[str, Split]:
    tensors, _ = read_tensors(file)
    return {part: Split(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in _PARTS}


def read_data(data: Any, test: Any = None) -> str | Data:
    """Return the data that trials work with: a name, or tensors in parts.

    Args:
        data: a name that `data.load` knows, a `Data`, a `Split`, or (inputs [N, ...], targets [N]), what is trained on.
        test: (inputs, targets) that networks are evaluated on; None takes the test part of a `Data`, and otherwise the training
            data themselves.

    Raises:
        ValueError: an unknown name, or inputs and targets that do not fit each other.
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
        if test is None:
            return data
        return Data(data.name, data.train, data.validation, _read_split(test, "test="), data.classes, data.input_shape, data.augment)  # fmt: skip
    train = _read_split(data, "the data")
    evaluated = train if test is None else _read_split(test, "test=")
    classes = int(train.targets.max()) + 1 if _are_classes(train.targets) else 0
    empty = Split(train.inputs[:0], train.targets[:0])
    return Data("tensors", train, empty, evaluated, classes, tuple(train.inputs.shape[1:]))


_EXAMPLE = "or (inputs, targets), e.g. sweep(model, {'L1': isometry.L1()}, [0.5], (x, y), test=(x_test, y_test), finetune=recipe)."


def _are_classes(targets: Tensor) -> bool:
    return not targets.is_floating_point() and targets.dtype != torch.bool and targets.ndim == 1


def _read_split(data: Any, name: str) -> Split:
    if isinstance(data, Mapping) or not isinstance(data, tuple | list):
        raise InvalidTypeError(
            f"got {type(data).__name__} as {name}; it takes a name, a Data, {_EXAMPLE} A loader is read into tensors by "
            "tuple(map(torch.cat, zip(*loader)))."
        )
    if len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        kinds = ", ".join(type(part).__name__ for part in data[:5])
        raise InvalidTypeError(f"got {name} of {len(data)} entries ({kinds}); it takes a name, a Data, {_EXAMPLE}")
    inputs, targets = data
    if not len(inputs) or len(inputs) != len(targets):
        raise InvalidValueError(
            f"got {len(inputs)} inputs and {len(targets)} targets as {name}; it takes one target per input and at least one of "
            f"both, {_EXAMPLE}"
        )
    return Split(inputs, targets)
