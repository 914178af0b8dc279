"""Checkpoints: what changes while a training runs, in a file that belongs to this training only."""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from isometry.data import Split
from isometry.errors import InvalidValueError
from isometry.files import read_tensors, remove_leftovers, write_tensors
from isometry.training.optimizer import with_layout_of
from isometry.training.random_state import RandomState
from isometry.training.recipe import Penalty, Recipe

__all__ = ["Checkpoint", "TrainingState", "checkpoint_files", "describe_training", "remove_damaged"]

_WAY_OUT = "Delete it or name another: train(..., checkpoint='other.safetensors')."

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
    """A file that keeps the state of one training, and beside it the one before, `<name>.previous`.

    Args:
        path: the file; its folder is made where absent.
        identity: the training that it belongs to, as `describe_training` returns it.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, state: TrainingState) -> None:
        """Replace the file by one with the present state; what it was becomes the previous one."""
        metadata = {"training": self.identity, "done": str(state.epochs), "step": str(state.steps)}
        if self.path.exists():
            os.replace(*checkpoint_files(self.path))
        write_tensors(self.path, state.tensors(), metadata)

    def resume(self, state: TrainingState) -> None:
        """Set `state` to that of the file, or of the previous one where the file is damaged or missing.

        Leaves `state` as it is where there is neither.

        Raises:
            InvalidValueError: no file can be read, or they are of another training; the message names the settings that
                differ.
        """
        if self.path.parent.is_dir():
            remove_leftovers(self.path.parent)
        errors: list[str] = []
        for path in checkpoint_files(self.path):
            try:
                tensors, metadata = _read(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                errors.append(str(error))
                continue
            self._check(path, metadata)
            try:
                state.restore(tensors)
            except (RuntimeError, KeyError, IndexError, ValueError) as error:
                raise InvalidValueError(
                    f"found the checkpoint {path}, which does not fit the model ({error}). {_WAY_OUT}"
                ) from error
            state.epochs, state.steps = int(metadata["done"]), int(metadata["step"])
            if errors:
                text = f"train() goes on from {path}, after epoch {state.epochs}, because {errors[0]}."
                warnings.warn(text, stacklevel=2)
                self.path.unlink()  # or the next save would put it in the place of the one that is whole
            return
        if errors:
            raise InvalidValueError(f"found a checkpoint that cannot be read: {'; '.join(errors)}. {_WAY_OUT}")

    def _check(self, path: Path, metadata: dict[str, str]) -> None:
        """Raise an error that names `path` unless it is of this training, and no further than that goes."""
        theirs, ours = json.loads(metadata["training"]), json.loads(self.identity)
        if metadata["training"] != self.identity:
            different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
            raise InvalidValueError(
                f"found the checkpoint {path} of another training: it differs in {', '.join(different)}. {_WAY_OUT}"
            )
        if int(metadata["done"]) > ours["epochs"]:
            raise InvalidValueError(
                f"found the checkpoint {path} after epoch {metadata['done']} of a training of {ours['epochs']}. {_WAY_OUT}"
            )


def checkpoint_files(path: Path) -> tuple[Path, Path]:
    """Return the two files of a checkpoint, the newer one first."""
    return path, path.with_name(path.name + ".previous")


def remove_damaged(path: Path) -> int:
    """Delete those of a checkpoint's two files that cannot be read, with a warning; return the epochs done in what is left."""
    done = 0
    for file in checkpoint_files(path):
        try:
            done = max(done, int(_read(file)[1]["done"]))
        except FileNotFoundError:
            continue
        except ValueError as error:
            warnings.warn(f"{error}. It is deleted, and what it held is computed again.", stacklevel=2)
            file.unlink()
    return done


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a checkpoint; raise a ValueError that names the file where it is none."""
    tensors, metadata = read_tensors(path)
    try:
        json.loads(metadata["training"])
        whole = int(metadata["done"]) >= 0 and int(metadata["step"]) >= 0
    except (KeyError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} is no checkpoint of a training: its header lacks the training, its epochs or its steps"
        )
    return tensors, metadata


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
