"""The training loop, as a generator of epochs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data, Split
from isometry.errors import signed
from isometry.networks.masks import refresh
from isometry.training.checkpoint import Checkpoint, TrainingState, describe_training
from isometry.training.optimizer import build_sgd, check_optimizer, with_layout_of
from isometry.training.random_state import RandomState
from isometry.training.recipe import PUBLISHED, Penalty, Recipe, Regularizer, Schedule

__all__ = ["Epoch", "train"]

_CHECK_INTERVAL = 200  # steps between checks of the loss, each of which waits for the device


@dataclass(frozen=True)
class Epoch:
    """Summary of one epoch of training.

    Attributes:
        number: from 1.
        loss: mean cross-entropy over the epoch's batches, in train mode; nan or inf where training diverged.
        accuracy: fraction of the epoch's training samples classified correctly, in train mode.
        lr: learning rate.
        steps: optimizer steps since the start of training.
        seconds: wall-clock time of the epoch.
        diverged: whether the loss or a parameter became nan or infinite; training ends with this epoch.
    """

    number: int
    loss: float
    accuracy: float
    lr: float
    steps: int
    seconds: float
    diverged: bool = False


def train(
    model: nn.Module,
    data: Data | Split | tuple[Tensor, Tensor],
    *,
    lr: float,
    epochs: int,
    batch_size: int = 100,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Schedule | None = PUBLISHED,
    nesterov: bool = False,
    epoch_steps: int | None = None,
    autocast: bool = False,
    regularizer: Regularizer | None = None,
    penalty: Penalty | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place by SGD on cross-entropy, yielding an `Epoch` after each epoch.

    The data stay in memory and are moved to the model's device and dtype once; if a `Data` has an `augment`, it is
    applied to every batch. Convolutions run in the channels-last layout. The order of the samples and everything else
    that is random (dropout, crops) follow `seed` and leave the global generator alone. The model is in train mode
    during an epoch and in eval mode between epochs and at the end. A training that diverges ends with an epoch of
    `diverged=True`, not with an error. Scales of bounded BatchNorms are trained as `parameter_groups` says.

    Args:
        model: returns logits [B, K].
        data: a `Data` (its training part is used), a `Split`, or (inputs [N, ...], targets [N]).
        lr: initial learning rate.
        epochs: the largest number of passes over the data; a `penalty` may finish earlier.
        batch_size: samples per step; the last incomplete batch of an epoch is used too.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter but the scales of bounded BatchNorms.
        schedule: multiplier of the rate by epoch, `Steps` or `Cosine`; None keeps the rate constant. The default is the
            published one, see `Steps`.
        nesterov: whether SGD uses Nesterov momentum.
        epoch_steps: end every epoch after this many steps, for schedules shorter than a pass over the data.
        autocast: run the network in bfloat16 where torch considers that safe; weights and loss stay float32.
        regularizer: a `Regularizer`, for instance `isometry.KernOrth()`.
        penalty: what a pruner adds to the loss and its gradients.
        optimizer: an optimizer of this model's parameters (see `isometry.surgery.transfer_optimizer_state`) to use
            instead of a new SGD; its own rates are multiplied by the schedule while it trains, and lr, momentum and
            weight_decay are not used.
        seed: of the order of the samples and of everything else that is random.
        checkpoint: a file that is written after every epoch and from which an interrupted training resumes: only the
            epochs not yet done are yielded. An epoch is written when the next one is requested, so that whatever the
            caller does with an epoch is finished before the epoch counts as done.

    Yields:
        `Epoch`.

    Raises:
        ValueError: empty data, inputs and targets of different length, no trainable parameter, non-positive numbers,
            an optimizer of other parameters, or a checkpoint of another training.
    """
    split = data.train if isinstance(data, Data) else Split(*data)
    augment = data.augment if isinstance(data, Data) else None
    steps = 1 if epoch_steps is None else epoch_steps
    _check(model, split, lr=lr, epochs=epochs, batch_size=batch_size, epoch_steps=steps)
    if optimizer is not None:
        check_optimizer(model, optimizer)
    recipe = Recipe(
        lr, epochs, batch_size, momentum, weight_decay, schedule, nesterov, epoch_steps, autocast, regularizer
    )
    loop = _Loop(model, split, recipe, penalty=penalty, optimizer=optimizer, augment=augment, seed=seed)
    return loop.run(None if checkpoint is None else Path(checkpoint))


def _check(model: nn.Module, split: Split, **positive: float) -> None:
    if not len(split.inputs) or len(split.inputs) != len(split.targets):
        raise ValueError(
            f"train() got {len(split.inputs)} inputs and {len(split.targets)} targets; it takes one target per input and at "
            "least one of both, e.g. train(model, isometry.data.load('digits'), lr=0.01, epochs=10)."
        )
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"train() got {name}={value}; it takes a positive number, e.g. lr=0.01, epochs=10.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("train() got a model without trainable parameters; call model.requires_grad_(True) first.")


class _Loop:
    """One training: the state that it changes, and the settings and data that it reads."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        recipe: Recipe,
        *,
        penalty: Penalty | None,
        optimizer: torch.optim.Optimizer | None,
        augment: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        first = next(p for p in model.parameters() if p.requires_grad)
        dtype = first.dtype if split.inputs.is_floating_point() else None
        self.data = Split(split.inputs.to(first.device, dtype), split.targets.to(first.device))
        self.recipe, self.augment, self.seed = recipe, augment, seed
        self.channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = optimizer or build_sgd(model, recipe)
        for p, entries in optimizer.state.items():
            entries |= {key: with_layout_of(p, value) for key, value in entries.items()}
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.state = TrainingState(model, optimizer, RandomState(seed, first.device), penalty)

    def run(self, path: Path | None) -> Iterator[Epoch]:
        """Yield the epochs not yet done; keep a checkpoint at `path`."""
        state, diverged = self.state, False
        checkpoint = None if path is None else self.resumed(path)
        try:
            while state.epochs < self.recipe.epochs and not diverged and not self.finished():
                epoch = self.epoch(state.epochs + 1)
                diverged = epoch.diverged
                yield epoch
                state.epochs += 1
                if checkpoint is not None and not diverged:
                    checkpoint.save(state)
        finally:
            self.multiply_rates(1.0)
            state.model.eval()

    @signed("train")
    def resumed(self, path: Path) -> Checkpoint:
        """Return this training's checkpoint at `path`, after setting the state to what it holds."""
        identity = describe_training(
            self.state, self.recipe, self.data, rates=self.rates, augment=self.augment, seed=self.seed
        )
        checkpoint = Checkpoint(path, identity)
        checkpoint.resume(self.state)
        return checkpoint

    def finished(self) -> bool:
        """Whether the penalty ends training before the next step."""
        return self.state.penalty is not None and self.state.penalty.finished(self.state.steps)

    def multiply_rates(self, multiplier: float) -> None:
        """Set the rate of every group of the optimizer to its initial rate times `multiplier`."""
        for group, rate in zip(self.state.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier

    def epoch(self, number: int) -> Epoch:
        """Train for one epoch."""
        start = time.perf_counter()
        recipe, state, (inputs, targets) = self.recipe, self.state, self.data
        multiplier = recipe.schedule(number, recipe.epochs) if recipe.schedule else 1.0
        self.multiply_rates(multiplier)
        order = state.random.permutation(len(inputs)).to(inputs.device)
        loss_sum, correct = (torch.zeros((), device=inputs.device) for _ in range(2))
        seen = 0
        state.model.train()
        with state.random.active():
            for batch in order.split(recipe.batch_size)[: recipe.epoch_steps]:
                if self.finished():
                    break
                logits, loss = self.step(inputs[batch], targets[batch])
                loss_sum += loss * len(batch)
                correct += (logits.argmax(1) == targets[batch]).sum()
                seen += len(batch)
                state.steps += 1
                if state.steps % _CHECK_INTERVAL == 0 and not math.isfinite(float(loss_sum)):
                    break
        state.model.eval()
        refresh(state.model)  # the masked weights that the last step left; a graph on them would forbid copies
        # The loss of the last step does not show what that step did to the parameters.
        finite = all(bool(torch.isfinite(p).all()) for p in state.model.parameters() if p.requires_grad)
        diverged = not finite or not math.isfinite(float(loss_sum))
        mean_loss, accuracy, seconds = float(loss_sum) / seen, float(correct) / seen, time.perf_counter() - start
        return Epoch(number, mean_loss, accuracy, self.rates[0] * multiplier, state.steps, seconds, diverged)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on inputs [B, ...] and targets [B]; return logits [B, K] and cross-entropy."""
        recipe, model, optimizer, penalty = self.recipe, self.state.model, self.state.optimizer, self.state.penalty
        number = self.state.steps
        if self.augment is not None:
            inputs = self.augment(inputs)
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=recipe.autocast):
            logits = model(inputs)
        loss = total = F.cross_entropy(logits.float() if recipe.autocast else logits, targets)
        if recipe.regularizer is not None:
            total = total + recipe.regularizer.loss(model)
        if penalty is not None and (extra := penalty.loss(number)) is not None:
            total = total + extra
        optimizer.zero_grad()
        total.backward()
        if penalty is not None:
            penalty.gradients(number)
        optimizer.step()
        if penalty is not None:
            penalty.project(number)
        if recipe.regularizer is not None:
            recipe.regularizer.project(model)
        return logits.detach(), loss.detach()
