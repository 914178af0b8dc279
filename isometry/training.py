"""One training loop, as a generator of epochs; evaluation; schedules of the learning rate."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data, Split

__all__ = ["Epoch", "Evaluation", "Penalty", "Recipe", "Steps", "evaluate", "train"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to.

    Attributes:
        number: from 1.
        loss: mean cross-entropy over the epoch's batches, in train mode; nan or inf where training diverged.
        accuracy: share of the epoch's training samples classified correctly, in train mode.
        lr: learning rate.
        steps: optimiser steps since the start of training.
        seconds: wall-clock time of the epoch.
        diverged: whether the loss left the finite numbers; training ends with this epoch.
    """

    number: int
    loss: float
    accuracy: float
    lr: float
    steps: int
    seconds: float
    diverged: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Loss (mean cross-entropy), accuracy (share in [0, 1]) and number of samples, in eval mode."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class Steps:
    """Step schedule: the rate is multiplied by `factor` at each milestone, a share of the epochs in [0, 1].

    The default is the papers' MNIST recipe: 90 epochs, x0.1 after 30 and after 60.
    """

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the initial rate in `epoch` (from 1) of `epochs`."""
        return self.factor ** sum(epoch > round(share * epochs) for share in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """How to train: the numbers of `train`, in one value that a table or a file can hold."""

    lr: float
    epochs: int
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Steps | None = Steps()


class Penalty(Protocol):
    """What pruners and regularisers add to plain training. Steps count from 0."""

    def loss(self, step: int) -> Tensor | None:
        """Return a scalar to add to the loss, or None."""

    def gradients(self, step: int) -> None:
        """Add to the parameters' gradients in place, after the backward pass."""

    def project(self, step: int) -> None:
        """Change the parameters in place after the optimiser's step."""

    def finished(self, step: int) -> bool:
        """Whether training should end before this step."""

    def state(self) -> dict[str, Tensor]:
        """Return what the penalty must remember over an interruption."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""


def train(
    model: nn.Module,
    data: Data | Split | tuple[Tensor, Tensor],
    *,
    lr: float,
    epochs: int,
    batch_size: int = 100,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Steps | None = Steps(),
    penalty: Penalty | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place by SGD on cross-entropy, yielding an `Epoch` after each epoch.

    The data stay in memory and move to the model's device once. The shuffling and whatever the net draws at random
    (dropout) follow `seed` and leave the global generator alone. The model is in train mode while an epoch runs and
    in eval mode between epochs; it ends in eval mode. Training that leaves the finite numbers ends with an epoch of
    `diverged=True`, not with an error.

    Args:
        model: returns logits [B, K].
        data: a `Data` (its training part is used), a `Split`, or (inputs [N, ...], targets [N]).
        lr: initial learning rate.
        epochs: at most so many passes over the data; a `penalty` may finish earlier.
        batch_size: samples a step; the last incomplete batch of an epoch is used too.
        momentum: of SGD, without Nesterov's correction.
        weight_decay: of SGD, on every parameter.
        schedule: multiplier of `lr` by epoch; None keeps it constant.
        penalty: added to the loss and its gradients.
        seed: of the shuffling and of the net's own randomness.
        checkpoint: a file that is written after every epoch and from which an interrupted training goes on: only the
            epochs not yet done are yielded. An epoch is written when the next one is asked for, so that what the
            caller does with an epoch is done before it counts as done.

    Yields:
        `Epoch`.

    Raises:
        ValueError: empty data, inputs and targets of different length, no trainable parameter, non-positive numbers,
            or a checkpoint of another training.
    """
    split = data.train if isinstance(data, Data) else Split(*data)
    _check(model, split, lr=lr, epochs=epochs, batch_size=batch_size)
    loop = _Loop(model, split, Recipe(lr, epochs, batch_size, momentum, weight_decay, schedule), penalty, seed)
    return loop.run(None if checkpoint is None else Path(checkpoint))


def _check(model: nn.Module, split: Split, **positive: float) -> None:
    if not len(split.inputs) or len(split.inputs) != len(split.targets):
        raise ValueError(
            f"train() got {len(split.inputs)} inputs and {len(split.targets)} targets; it takes as many of one as of "
            "the other and at least one, e.g. train(model, isometry.data.load('digits'), lr=0.01, epochs=10)."
        )
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"train() got {name}={value}; it takes a positive number, e.g. lr=0.01, epochs=10.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("train() got a model without trainable parameters; call model.requires_grad_(True) first.")


class _Loop:
    """The state of one training: model, optimiser, place in the data."""

    def __init__(self, model: nn.Module, split: Split, recipe: Recipe, penalty: Penalty | None, seed: int) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        device = parameters[0].device
        self.model, self.recipe, self.penalty = model, recipe, penalty
        self.inputs, self.targets = split.inputs.to(device), split.targets.to(device)
        # The fused kernel is one pass over the parameters; where it does not exist torch's default does.
        fused = device.type in ("cpu", "cuda") and all(p.dtype == torch.float32 for p in parameters)
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=fused or None,
        )
        self.order = torch.Generator().manual_seed(seed)
        self.noise = _Noise(seed, device)
        self.step = self.done = 0
        self.identity = json.dumps({**asdict(recipe), "seed": seed, "samples": len(split.inputs)})

    def run(self, checkpoint: Path | None) -> Iterator[Epoch]:
        if checkpoint is not None and checkpoint.exists():
            self.resume(checkpoint)
        diverged = False
        while self.done < self.recipe.epochs and not diverged:
            if self.penalty is not None and self.penalty.finished(self.step):
                break
            epoch = self.epoch(self.done + 1)
            diverged = epoch.diverged
            yield epoch
            self.done += 1
            if checkpoint is not None:
                self.save(checkpoint)
        self.model.eval()

    def epoch(self, number: int) -> Epoch:
        start = time.perf_counter()
        recipe = self.recipe
        rate = recipe.lr * (recipe.schedule(number, recipe.epochs) if recipe.schedule else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(len(self.inputs), generator=self.order).to(self.inputs.device)
        loss_sum, correct = (torch.zeros((), device=self.inputs.device) for _ in range(2))
        seen, diverged = 0, False
        self.model.train()
        with self.noise:
            for batch in order.split(recipe.batch_size):
                if self.penalty is not None and self.penalty.finished(self.step):
                    break
                logits, loss = self.update(batch)
                loss_sum += loss * len(batch)
                correct += (logits.argmax(1) == self.targets[batch]).sum()
                seen += len(batch)
                self.step += 1
                if self.step % 200 == 0 and not math.isfinite(float(loss_sum)):
                    break
        self.model.eval()
        diverged = not math.isfinite(float(loss_sum))
        return Epoch(
            number,
            float(loss_sum) / seen,
            float(correct) / seen,
            rate,
            self.step,
            time.perf_counter() - start,
            diverged,
        )

    def update(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.inputs[batch])
        loss = total = F.cross_entropy(logits, self.targets[batch])
        if self.penalty is not None and (extra := self.penalty.loss(self.step)) is not None:
            total = loss + extra
        self.optimizer.zero_grad()
        total.backward()
        if self.penalty is not None:
            self.penalty.gradients(self.step)
        self.optimizer.step()
        if self.penalty is not None:
            self.penalty.project(self.step)
        return logits.detach(), loss.detach()

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{index}"] = state["momentum_buffer"]
        tensors["order"] = self.order.get_state()
        tensors |= {f"noise.{name}": state for name, state in self.noise.states.items()}
        if self.penalty is not None:
            tensors |= {f"penalty.{name}": tensor for name, tensor in self.penalty.state().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # Tied parameters share memory, which the format does not allow: each name gets a copy of its own.
        save_file(
            {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
            partial,
            {"training": self.identity, "done": str(self.done), "step": str(self.step)},
        )
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if meta.get("training") != self.identity:
            raise ValueError(
                f"train() found the checkpoint {path} of another training ({meta.get('training')}, this one is "
                f"{self.identity}). Delete it or name another: train(..., checkpoint='other.safetensors')."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        state = self.optimizer.state_dict()
        state["state"] = {int(index): {"momentum_buffer": buffer} for index, buffer in part("momentum.").items()}
        self.optimizer.load_state_dict(state)
        self.order.set_state(tensors["order"])
        self.noise.states = part("noise.")
        if self.penalty is not None:
            self.penalty.restore(part("penalty."))
        self.done, self.step = int(meta["done"]), int(meta["step"])


class _Noise(contextlib.AbstractContextManager["_Noise"]):
    """The global generators' states of this training, swapped in while it runs and out again afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else None
        with self._fork():
            torch.manual_seed(seed)
            self.states = self._read()

    def _fork(self) -> contextlib.AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device] if self.device else [])

    def _read(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device else {})

    def __enter__(self) -> _Noise:
        self.outside = self._fork()
        self.outside.__enter__()
        torch.set_rng_state(self.states["cpu"])
        if self.device:
            torch.cuda.set_rng_state(self.states["cuda"], self.device)
        return self

    def __exit__(self, *error: object) -> None:
        self.states = self._read()
        self.outside.__exit__(None, None, None)


@torch.no_grad()
def evaluate(model: nn.Module, data: Split | tuple[Tensor, Tensor], batch_size: int = 2000) -> Evaluation:
    """Return loss and accuracy of `model` on a split, in eval mode; every module's own mode is restored.

    Args:
        model: returns logits [B, K].
        data: inputs [N, ...] and targets [N].
        batch_size: samples a forward pass; it changes memory, not the result.

    Raises:
        ValueError: the split is empty.
    """
    split = Split(*data)
    if not len(split.inputs):
        raise ValueError("evaluate() got an empty split; it takes one with samples, e.g. evaluate(model, data.test).")
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), split.inputs.device)
    loss = correct = 0.0
    try:
        model.eval()
        for x, y in zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True):
            logits = model(x.to(device)).float()
            loss += float(F.cross_entropy(logits, y.to(device), reduction="sum"))
            correct += float((logits.argmax(1) == y.to(device)).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Evaluation(loss / len(split.inputs), correct / len(split.inputs), len(split.inputs))
