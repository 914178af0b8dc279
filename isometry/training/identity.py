"""What makes a training this one, and which training the weights of a model are of."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from isometry.data import Batches, Split
from isometry.data.nests import count_samples, map_tensors, tensors_in
from isometry.training.objective import describe_callable
from isometry.training.recipe import Penalty, Recipe

__all__ = ["Left", "describe_training", "fingerprint", "note_what_is_left", "warn_of_first_epoch", "what_is_left"]

_SAMPLED = 4096  # inputs that the fingerprint of the data covers


def describe_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: Penalty | None,
    recipe: Recipe,
    data: Split | Batches,
    *,
    rates: Sequence[float],
    augment: Callable[[Tensor], Tensor] | None,
    seed: int,
) -> str:
    """Return what makes a training this one, as JSON: settings, starting weights, data, optimizer and penalty.

    Args:
        model: before the first step.
        optimizer: of its parameters, before the first step.
        penalty: what a pruner adds, or None.
        recipe: the settings.
        data: inputs [N, ...] and targets [N], of which the fingerprint is taken; or batches, which are known by their loader.
        rates: the initial learning rate of every group of the optimizer.
        augment: the random change of every batch.
        seed: of the random numbers.
    """
    plain = replace(recipe, loss=None, metric=None)  # a metric does not change the training
    settings = {name: value for name, value in asdict(plain).items() if value is not None}
    if recipe.regularizer is not None:
        settings["regularizer"] = repr(recipe.regularizer)
    if recipe.loss is not None:
        settings["loss"] = describe_callable(recipe.loss)
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    return json.dumps(
        {
            **settings,
            "seed": seed,
            **_describe_data(data),
            "augment": None if augment is None else _without_address(repr(augment)),
            "weights": fingerprint(model.state_dict().values()),
            "optimizer": [type(optimizer).__name__, list(rates), groups],
            "penalty": None if penalty is None else penalty.identity(),
        },
        default=repr,
    )


def _describe_data(data: Split | Batches) -> dict[str, object]:
    """Return how many samples or batches there are, and which: a fingerprint of tensors, or what a loader says of itself."""
    if isinstance(data, Batches):
        return {"samples": data.length, "data": str(data)}
    count = count_samples(data.inputs)
    sampled = map_tensors(data.inputs, lambda tensor: tensor[:: max(1, count // _SAMPLED)])
    return {"samples": count, "data": fingerprint([*tensors_in(data.targets), *tensors_in(sampled)])}


def _without_address(text: str) -> str:
    """Return the repr of an object without its memory address, so that it is the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


class Left(NamedTuple):
    """What a training left in a model when it ended, or was interrupted.

    Attributes:
        path: of its checkpoint.
        began: fingerprint of the weights with which it began.
        weights: fingerprint of those that it left.
    """

    path: Path
    began: str
    weights: str

    def is_in(self, model: nn.Module) -> bool:
        """Whether a model still has these weights."""
        return self.weights == fingerprint(model.state_dict().values())


_left: WeakKeyDictionary[nn.Module, Left] = WeakKeyDictionary()


def note_what_is_left(model: nn.Module, path: Path, identity: str) -> None:
    """Remember which training the present weights of a model are of, so that it goes on when it is called again."""
    with contextlib.suppress(RuntimeError):  # of a device that failed, whose own error is on its way
        _left[model] = Left(path, json.loads(identity)["weights"], fingerprint(model.state_dict().values()))


def what_is_left(model: nn.Module) -> Left | None:
    """Return what the last training of this model in this process left, None where there was none."""
    return _left.get(model)


def warn_of_first_epoch(model: nn.Module, path: Path) -> None:
    """Warn where a training begins with the weights that an interruption left before there was a checkpoint at `path`."""
    left = _left.get(model)
    if left is not None and left.path == path and left.weights != left.began and left.is_in(model):
        warnings.warn(
            f"train() begins with the weights that an interrupted first epoch left in this network: {path} was not written "
            "before. To begin with fresh weights, build the network again.",
            stacklevel=2,
        )


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return the CRC-32 checksum of the tensors' bytes."""
    checksum = 0
    for tensor in tensors:
        content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        checksum = zlib.crc32(content, checksum)
    return f"{checksum:08x}"
