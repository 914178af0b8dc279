"""Checkpoints: what changes while a training runs, in a file that belongs to this training only."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from isometry.errors import InvalidValueError
from isometry.files import make_folder, read_tensors, remove_leftovers, write_tensors
from isometry.networks.preservation import restoring
from isometry.training.identity import fingerprint, what_is_left
from isometry.training.layout import with_layout_of
from isometry.training.random_state import RandomState
from isometry.training.recipe import Penalty

__all__ = ["Checkpoint", "TrainingState", "checkpoint_files", "locked", "remove_damaged"]

_WAY_OUT = "Delete it or name another: train(..., checkpoint='other.safetensors')."


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

    def resume(self, state: TrainingState) -> bool:
        """Set `state` to that of the file, or of the previous one where the file is damaged or missing.

        Leaves `state` as it is, and returns False, where there is neither. The present weights are those with which the
        training began, or those that its interruption left in the same model, or those of the file.

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
            recognized = self._recognize(state.model, tensors, metadata)
            self._check(path, metadata)
            if recognized and int(metadata["done"]) == json.loads(self.identity)["epochs"]:
                warnings.warn(
                    f"train() found all {metadata['done']} epochs done in {path}, and this network is the one that they gave: "
                    "nothing is trained. To train on from here, name another file: train(..., checkpoint='other.safetensors').",
                    stacklevel=2,
                )
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
            return True
        if errors:
            raise InvalidValueError(f"found a checkpoint that cannot be read: {'; '.join(errors)}. {_WAY_OUT}")
        return False

    def _recognize(self, model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
        """Whether the present weights are later ones of the file's training; then its weights of the start become ours."""
        theirs, ours = json.loads(metadata["training"]), json.loads(self.identity)
        stored = [tensors.get(f"model.{name}") for name in model.state_dict()]
        reached = {fingerprint(tensor for tensor in stored if tensor is not None)}
        if (left := what_is_left(model)) is not None and left.began == theirs.get("weights"):
            reached.add(left.weights)
        if ours["weights"] not in reached or ours["weights"] == theirs.get("weights"):
            return False
        self.identity = json.dumps({**ours, "weights": theirs.get("weights")})
        return True

    def _check(self, path: Path, metadata: dict[str, str]) -> None:
        """Raise an error that names `path` unless it is of this training, and no further than that goes."""
        theirs, ours = json.loads(metadata["training"]), json.loads(self.identity)
        different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if different == ["weights"]:
            raise InvalidValueError(
                f"found the checkpoint {path} of this training, but begun with other weights. To go on with it, build the "
                "network with the weights that it had then, e.g. networks.build(name, seed=0), and call train() again: the "
                "epochs that are done are read from the file. To begin a new training, name another file: "
                "train(..., checkpoint='other.safetensors')."
            )
        if different:
            raise InvalidValueError(
                f"found the checkpoint {path} of another training: it differs in {', '.join(different)}. {_WAY_OUT}"
            )
        if int(metadata["done"]) > ours["epochs"]:
            raise InvalidValueError(
                f"found the checkpoint {path} after epoch {metadata['done']} of a training of {ours['epochs']}. {_WAY_OUT}"
            )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint, `<name>.lock`; an error says so where another training holds it."""
    make_folder(path.parent)
    lock = FileLock(f"{path}.lock", thread_local=False)
    with restoring(lock.release):
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError) as error:
            if not Path(lock.lock_file).exists():
                raise InvalidValueError(
                    f"cannot write the checkpoint {path}, in whose folder no file can be made. Name another one, e.g. "
                    "train(..., checkpoint='runs/training.safetensors')."
                ) from error
            raise InvalidValueError(
                f"found the checkpoint {path} in use by another training that is running. Wait until it ends, or name "
                "another: train(..., checkpoint='other.safetensors')."
            ) from None
        yield


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
