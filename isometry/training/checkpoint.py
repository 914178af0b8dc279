"""Checkpoints: what changes while a training runs, in a file that belongs to this training only."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from isometry.data import Split
from isometry.errors import InvalidValueError
from isometry.files import read_tensors, write_tensors
from isometry.training.optimizer import with_layout_of
from isometry.training.random_state import RandomState
from isometry.training.recipe import Penalty, Recipe

__all__ = ["Checkpoint", "TrainingState", "describe_training"]

_SAMPLED = 4096  # inputs that the fingerprint of the data covers


@dataclass
class TrainingState:
    """Everything that changes while a training runs.

    Attributes:
        model: the network.
        optimizer: of its parameters.
        random: the generators.
        penalty: what a pruner adds, or None.
        epochs: how many are done.
        steps: how many optimizer steps are done.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    random: RandomState
    penalty: Penalty | None
    epochs: int = 0
    steps: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it but the two counts, as named tensors."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        tensors |= self.random.state()
        if self.penalty is not None:
            tensors |= {f"penalty.{name}": tensor for name, tensor in self.penalty.state().items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set everything but the two counts to what `tensors` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        saved = self.optimizer.state_dict()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        saved["state"] = {}
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            saved["state"].setdefault(int(index), {})[key] = with_layout_of(parameters[int(index)], value)
        self.optimizer.load_state_dict(saved)
        self.random.restore(tensors)
        if self.penalty is not None:
            self.penalty.restore(part("penalty."))


class Checkpoint:
    """A file that keeps the state of one training.

    Args:
        path: the file; its folder is made where absent.
        identity: the training that it belongs to, as `describe_training` returns it.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, state: TrainingState) -> None:
        """Replace the file by one with the present state."""
        metadata = {"training": self.identity, "done": str(state.epochs), "step": str(state.steps)}
        write_tensors(self.path, state.tensors(), metadata)

    def resume(self, state: TrainingState) -> None:
        """Set `state` to that of the file; leave it as it is where there is no file.

        Raises:
            InvalidValueError: the file cannot be read, or is of another training; the message names the settings that
                differ.
        """
        if not self.path.exists():
            return
        try:
            tensors, metadata = read_tensors(self.path)
        except ValueError as error:
            raise InvalidValueError(
                f"found a checkpoint that cannot be read: {error}. Delete it or name another: "
                "train(..., checkpoint='other.safetensors')."
            ) from error
        if metadata.get("training") != self.identity:
            theirs, ours = json.loads(metadata.get("training", "{}")), json.loads(self.identity)
            different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
            raise InvalidValueError(
                f"found the checkpoint {self.path} of another training: it differs in {', '.join(different)}. Delete it or "
                "name another: train(..., checkpoint='other.safetensors')."
            )
        state.restore(tensors)
        state.epochs, state.steps = int(metadata["done"]), int(metadata["step"])


def describe_training(
    state: TrainingState,
    recipe: Recipe,
    data: Split,
    *,
    rates: Sequence[float],
    augment: Callable[[Tensor], Tensor] | None,
    seed: int,
) -> str:
    """Return what makes a training this one, as JSON: settings, starting weights, data, optimizer and penalty.

    Args:
        state: before the first step.
        recipe: the settings.
        data: inputs [N, ...] and targets [N].
        rates: the initial learning rate of every group of the optimizer.
        augment: the random change of every batch.
        seed: of the random numbers.
    """
    settings = {name: value for name, value in asdict(recipe).items() if value is not None}
    if recipe.regularizer is not None:
        settings["regularizer"] = repr(recipe.regularizer)
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in state.optimizer.param_groups
    ]
    count = len(data.inputs)
    return json.dumps(
        {
            **settings,
            "seed": seed,
            "samples": count,
            "data": _fingerprint([data.targets, data.inputs[:: max(1, count // _SAMPLED)]]),
            "augment": None if augment is None else _without_address(repr(augment)),
            "weights": _fingerprint(state.model.state_dict().values()),
            "optimizer": [type(state.optimizer).__name__, list(rates), groups],
            "penalty": None if state.penalty is None else state.penalty.identity(),
        },
        default=repr,
    )


def _without_address(text: str) -> str:
    """Return the repr of an object without its memory address, so that it is the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return the CRC-32 checksum of the tensors' bytes."""
    checksum = 0
    for tensor in tensors:
        content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        checksum = zlib.crc32(content, checksum)
    return f"{checksum:08x}"
