"""The training loop, as a generator of epochs."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import Batches, Data, Split, read_data
from isometry.data.nests import channels_last, count_samples
from isometry.errors import interrupt_explained, signed
from isometry.networks.checks import check_values
from isometry.networks.masks import refresh
from isometry.training.capture import CapturedGradients, Result
from isometry.training.checkpoint import Checkpoint, TrainingState, locked
from isometry.training.checks import check_settings
from isometry.training.deadline import OutOfTimeError, is_over
from isometry.training.epoch import Epoch
from isometry.training.evaluation import like_outputs
from isometry.training.identity import describe_training, note_what_is_left, warn_of_first_epoch
from isometry.training.layout import channels_last_weights
from isometry.training.objective import Loss, Metric, Objective, Totals
from isometry.training.optimizer import build_sgd, check_optimizer
from isometry.training.random_state import RandomState
from isometry.training.recipe import PUBLISHED, Penalty, Recipe, Regularizer, Schedule
from isometry.training.source import Source

__all__ = ["train"]

_CHECK_INTERVAL = 200  # steps between checks of the loss, each of which waits for the device


@signed("train")
def train(
    model: nn.Module,
    data: Any,
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
    loss: Loss | None = None,
    metric: Metric | None = None,
    penalty: Penalty | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Generator[Epoch, None, None]:
    """Train `model` in place by SGD on cross-entropy, or another loss, yielding an `Epoch` after each epoch.

    Tensors stay in memory and are moved to the model's device and dtype once; if a `Data` has an `augment`, it is applied to
    every batch. Of an iterable of batches, an epoch is one pass: order, size and augmentation of the batches are its own.
    Convolutions run in the channels-last layout, and between epochs the weights have their own layout again. Everything that
    is random (the order of tensors, that of a DataLoader without a generator of its own, dropout, crops) follows `seed` and
    leaves the global generator alone. The model is in train mode during an epoch and in eval mode between epochs and at the
    end. A training that diverges ends with an epoch of `diverged=True`, not with an error. Scales of bounded BatchNorms are
    trained as `parameter_groups` says.

    Args:
        model: returns logits [B, K] or, for dense targets, [B, K, ...]; anything where a loss is passed. A batch of several
            inputs, a tuple or a dict, is passed as positional or keyword arguments.
        data: a `Data` or `Folder` (its training part is used), a `Split`, (inputs [N, ...], targets [N]), an iterable of
            batches such as a DataLoader, see `isometry.data.Batches`, or a `torch.utils.data.Dataset` with a length.
        lr: initial learning rate.
        epochs: the largest number of passes over the data; a `penalty` may finish earlier.
        batch_size: samples per step, of tensors and data sets; the last incomplete batch of an epoch is used too.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter but the scales of bounded BatchNorms.
        schedule: multiplier of the rate by epoch, `Steps` or `Cosine`; None keeps the rate constant. The default is the
            published one, see `Steps`.
        nesterov: whether SGD uses Nesterov momentum.
        epoch_steps: end every epoch after this many steps, for schedules shorter than a pass over the data, and for loaders
            without an end.
        autocast: run the network in bfloat16 where torch considers that safe; weights and loss stay float32.
        regularizer: a `Regularizer`, for instance `isometry.KernOrth()`.
        loss: any callable (outputs, targets) -> scalar, the mean over a batch; None means cross-entropy of classes [B], or
            [B, ...], which refuses what is no classification. `metric` is called likewise, and only looked at.
        metric: any callable (outputs, targets) -> number, reported as `Epoch.metric`.
        penalty: what a pruner adds to the loss and its gradients.
        optimizer: an optimizer of this model's parameters (see `isometry.surgery.transfer_optimizer_state`) to use
            instead of a new SGD; its own rates are multiplied by the schedule while it trains, and lr, momentum and
            weight_decay are not used.
        seed: of the order of the samples and of everything else that is random.
        checkpoint: a file that is written after every epoch and from which an interrupted training resumes: only the
            epochs not yet done are yielded. An epoch is written when the next one is requested, so that whatever the
            caller does with an epoch is finished before the epoch counts as done. Calling `train` again resumes with a
            model built anew, and with the one that the interruption left. The order of a DataLoader is restored with its
            generators; a warning says where a loader's order cannot be. While it trains, `<checkpoint>.lock` is locked.

    Yields:
        `Epoch`.

    Raises:
        ValueError, TypeError: empty data, inputs and targets of different length, no trainable parameter, non-positive
            numbers, an optimizer of other parameters, a checkpoint of another training, or in use by one; cross-entropy of
            what is no classification; a loss that fails, is no scalar or not differentiable; an iterator for several epochs;
            a loader that is empty, ends early or changes its entries or shapes.
    """
    check_values(model, "train(model, data, lr=0.01, epochs=10)")
    batches = read_data(data, batch_size=batch_size, shuffle=True)
    augment = data.augment if isinstance(data, Data) else None
    check_settings(
        model, batches, lr=lr, epochs=epochs, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay,
        epoch_steps=epoch_steps, seed=seed, schedule=schedule, regularizer=regularizer,
    )  # fmt: skip
    if optimizer is not None:
        check_optimizer(model, optimizer)
    recipe = Recipe(
        lr,
        epochs,
        batch_size,
        momentum,
        weight_decay,
        schedule,
        nesterov,
        epoch_steps,
        autocast,
        regularizer,
        loss,
        metric,
    )
    loop = _Loop(model, batches, recipe, penalty=penalty, optimizer=optimizer, augment=augment, seed=seed)
    return loop.run(None if checkpoint is None else Path(checkpoint))


class _Loop:
    """One training: the state that it changes, and the settings and data that it reads."""

    def __init__(
        self,
        model: nn.Module,
        data: Split | Batches,
        recipe: Recipe,
        *,
        penalty: Penalty | None,
        optimizer: torch.optim.Optimizer | None,
        augment: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        first = next(p for p in model.parameters() if p.requires_grad)
        self.source = Source(data, first.device, first.dtype)
        self.recipe, self.augment, self.seed = recipe, augment, seed
        self.objective = Objective(recipe.loss, recipe.metric)
        optimizer = optimizer or build_sgd(model, recipe)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.state = TrainingState(model, optimizer, RandomState(seed, first.device, self.source.generators()), penalty)
        self.lent: dict[Tensor, Tensor] = {}
        self.captured = CapturedGradients(self.gradients, model, first.device, autocast=recipe.autocast)

    def run(self, path: Path | None) -> Generator[Epoch, None, None]:
        """Yield the epochs not yet done; keep a checkpoint at `path`."""
        state, diverged = self.state, False
        with contextlib.ExitStack() as held:
            checkpoint = None
            if path is not None:
                with signed("train"):
                    held.enter_context(locked(path))
                    checkpoint = self.resumed(path)
                held.enter_context(
                    interrupt_explained(f"{path} keeps the finished epochs: call train() again to go on.")
                )
            try:
                while state.epochs < self.recipe.epochs and not diverged and not self.finished():
                    with signed("train"):
                        epoch = self.epoch(state.epochs + 1)
                    diverged = epoch.diverged
                    yield epoch
                    state.epochs += 1
                    if checkpoint is not None and not diverged:
                        checkpoint.save(state)
                        if is_over() and state.epochs < self.recipe.epochs and not self.finished():
                            raise OutOfTimeError(
                                f"{checkpoint.path} holds {state.epochs} of {self.recipe.epochs} epochs"
                            )
            finally:
                self.multiply_rates(1.0)
                self.captured.release()
                state.model.eval()
                if checkpoint is not None:
                    note_what_is_left(state.model, checkpoint.path, checkpoint.identity)

    def resumed(self, path: Path) -> Checkpoint:
        """Return this training's checkpoint at `path`, after setting the state to what it holds."""
        state = self.state
        identity = describe_training(
            state.model,
            state.optimizer,
            state.penalty,
            self.recipe,
            self.source.data,
            rates=self.rates,
            augment=self.augment,
            seed=self.seed,
        )
        checkpoint = Checkpoint(path, identity)
        if checkpoint.resume(state):
            if state.epochs < self.recipe.epochs:
                self.source.warn_of_lost_order(state.epochs)
        else:
            warn_of_first_epoch(state.model, path)
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
        recipe, state = self.recipe, self.state
        multiplier = recipe.schedule(number, recipe.epochs) if recipe.schedule else 1.0
        self.multiply_rates(multiplier)
        totals = Totals(self.objective, self.source.device)
        state.model.train()
        with (
            channels_last_weights(state.model, state.optimizer, self.lent) as self.channels_last,
            state.random.active(),
            self.captured.epoch(),
        ):
            for inputs, targets in self.source.batches(recipe, state.random):
                if self.finished():
                    break
                self.step(inputs, targets, totals)
                state.steps += 1
                if state.steps % _CHECK_INTERVAL == 0 and not math.isfinite(float(totals.loss)):
                    break
        state.model.eval()
        refresh(state.model)  # the masked weights that the last step left; a graph on them would forbid copies
        # The loss of the last step does not show what that step did to the parameters.
        finite = all(bool(torch.isfinite(p).all()) for p in state.model.parameters() if p.requires_grad)
        mean_loss = float(totals.loss) / totals.samples
        return Epoch(
            number,
            mean_loss,
            totals.mean_accuracy,
            self.rates[0] * multiplier,
            state.steps,
            time.perf_counter() - start,
            not finite or not math.isfinite(mean_loss),
            totals.mean_metric,
        )

    def step(self, inputs: Any, targets: Any, totals: Totals) -> None:
        """Take one optimizer step on inputs [B, ...] and targets [B, ...], and count them."""
        recipe, model, penalty = self.recipe, self.state.model, self.state.penalty
        number = self.state.steps
        if self.augment is not None:
            inputs = self.augment(inputs)
        if self.channels_last:
            inputs = channels_last(inputs)
        if self.captured.active and penalty is not None and penalty.loss(number) is not None:
            self.captured.give_up("the penalty has a loss, which may change with the number of the step")
        outputs, targets, loss = self.captured(inputs, targets)
        if penalty is not None:
            penalty.gradients(number)
        self.state.optimizer.step()
        if penalty is not None:
            penalty.project(number)
        if recipe.regularizer is not None:
            recipe.regularizer.project(model)
        totals.add(outputs, targets, loss, count_samples(inputs))

    def gradients(self, inputs: Any, targets: Any) -> Result:
        """Set the gradients of all terms of the loss."""
        recipe, model, penalty = self.recipe, self.state.model, self.state.penalty
        # Weights that were cast outside a graph would never change in it.
        kind, cache = self.source.device.type, not self.captured.active
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=recipe.autocast, cache_enabled=cache):
            outputs = self.source.outputs(model, inputs)
        if recipe.autocast and isinstance(outputs, Tensor):
            outputs = outputs.float()
        targets = like_outputs(targets, outputs)
        loss = total = self.objective(outputs, targets)
        if recipe.regularizer is not None:
            total = total + recipe.regularizer.loss(model)
        if penalty is not None and (extra := penalty.loss(self.state.steps)) is not None:
            total = total + extra
        self.state.optimizer.zero_grad()
        total.backward()
        return Result(outputs, targets, loss.detach())
