"""The pruner interface, and what a pruner is given."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isometry.data import Split, read_data
from isometry.errors import InvalidValueError, signed
from isometry.files import read_records, write_records
from isometry.limits import Number, check_number
from isometry.networks import placed
from isometry.networks.modules import call, feeding_layers
from isometry.networks.preservation import evaluating
from isometry.networks.units import unit_weight
from isometry.pruners.stage import Stage
from isometry.surgery import Member, Selection, UnitGroup
from isometry.training import Epoch, Recipe, train
from isometry.training.objective import Loss, Metric
from isometry.training.step_bar import show_steps

__all__ = ["DivergedError", "Pruner", "PruningContext", "average_scores", "magnitude"]


class DivergedError(ArithmeticError):
    """The training of a pruner diverged: a loss or weight is no longer finite."""


@dataclass
class PruningContext:
    """One pruning, as a pruner sees it: the copy that may be trained, and what there is to train it with.

    Attributes:
        model: a copy of the user's network, to be trained in place.
        groups: the groups of `model` that are to lose units.
        training_data: what to train on, as `isometry.train` takes it; None where the caller passed none, or trains in a loop
            of their own.
        seed: of everything random.
        progress: False silences the progress bar, None shows it in terminals and notebooks.
        checkpoint: file that lets an interrupted training go on, or None.
        autocast: whether to train in bfloat16.
        records: rows of the history.
        inputs: [B, ...], a batch that the model accepts, or a tuple or dict of its arguments; None where none is known.
        steps_per_epoch: of a loop of the caller's, where there is no training data; None where it was not passed.
        loss, metric: of the training, as `isometry.train` takes them.
    """

    model: nn.Module
    groups: list[UnitGroup]
    training_data: Any
    seed: int
    progress: bool | None
    checkpoint: str | os.PathLike[str] | None
    autocast: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    inputs: Any = None
    steps_per_epoch: int | None = None
    loss: Loss | None = None
    metric: Metric | None = None

    @cached_property
    def normalized_layers(self) -> dict[str, str]:
        """{BatchNorm: the layer whose output it normalizes directly}, from one forward pass of `inputs`."""
        if self.inputs is None:
            return {}
        x = placed(self.inputs, self.model)
        with evaluating(self.model), torch.no_grad():
            pairs, _ = feeding_layers(self.model, lambda: call(self.model, x))
        return {norm: layer for layer, norm in pairs}

    def epoch_length(self, recipe: Recipe) -> int:
        """Return the number of steps of an epoch: of the training data, or as the caller said of their own loop."""
        length = self._epoch_length(recipe)
        if length is None:
            raise InvalidValueError(
                "got data without a length, of which this pruner cannot tell how many steps an epoch has. Pass a loader with a "
                "len(), or say when an epoch ends, e.g. isometry.Slimming(epoch_steps=1000)."
            )
        return length

    def _epoch_length(self, recipe: Recipe) -> int | None:
        """Return the number of steps of an epoch, None where only the end of the data tells."""
        if self.training_data is not None:
            data = read_data(self.training_data, batch_size=recipe.batch_size)
            length = data.count_batches(recipe.batch_size) if isinstance(data, Split) else data.length
        elif self.steps_per_epoch is not None:
            length = self.steps_per_epoch
        else:
            raise InvalidValueError(
                "got no steps_per_epoch; this pruner counts its training in epochs, and only your loop knows how many "
                "steps one has. Pass it, e.g. Pruning(model, isometry.Slimming(epochs=40), 0.5, "
                "steps_per_epoch=len(loader))."
            )
        return recipe.epoch_steps if length is None else min(length, recipe.epoch_steps or length)

    def run_stage(self, stage: Stage) -> None:
        """Train the model on the data until the stage is finished, as its recipe says."""
        length = self._epoch_length(stage.recipe)
        # Without a length there may be as many epochs as steps; the penalty is finished before.
        epochs = stage.steps if length is None else -(-stage.steps // length)
        recipe = replace(
            stage.recipe,
            epochs=epochs,
            autocast=self.autocast,
            loss=self.loss or stage.recipe.loss,
            metric=self.metric or stage.recipe.metric,
        )
        training = train(
            self.model,
            self.training_data,
            **recipe.arguments(),
            penalty=stage.penalty,
            seed=self.seed,
            checkpoint=self.checkpoint_path(stage.name),
        )
        with contextlib.closing(training):  # whose lock a traceback would hold
            self.run_training(training, stage.name, stage.steps, stage.log)

    def checkpoint_path(self, stage: str) -> Path | None:
        """Return the checkpoint file of one of a pruner's trainings, None where none was requested."""
        return None if self.checkpoint is None else Path(f"{os.fspath(self.checkpoint)}.{stage}")

    def run_training(
        self, epochs: Iterator[Epoch], stage: str, steps: int, log: Callable[[], dict[str, Any]] = dict
    ) -> None:
        """Run a training to its end, with a progress bar and a row of the history for every epoch.

        Args:
            epochs: what `train` returned.
            stage: its name in the history, "before_selection" or "after_selection".
            steps: how many steps it takes at most.
            log: returns further columns of the history after each epoch.

        Raises:
            DivergedError: the training diverged.
        """
        path = self.checkpoint_path(f"{stage}.jsonl")
        rows = read_records(path) if path else []
        description = stage.replace("_", " ")
        for epoch in show_steps(epochs, self.model, steps, description=description, progress=self.progress):
            rows = [row for row in rows if row["number"] < epoch.number]
            columns = asdict(epoch)
            if math.isnan(columns["metric"]):
                del columns["metric"]
            rows.append({"stage": stage, **columns, **log()})
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_records(path, rows)
        self.records += rows
        if rows and rows[-1]["diverged"]:
            raise DivergedError(
                f"Training diverged after {rows[-1]['steps']} steps (loss {rows[-1]['loss']}), before any unit was "
                "removed. Lower the learning rate or the strength of the pruner, e.g. isometry.TPP(lr=1e-4)."
            )


@dataclass(frozen=True)
class Pruner:
    """The pruner interface: an importance for every unit and, optionally, training before or after the selection.

    A pruner is a frozen dataclass of hyperparameters. Write a new one by overriding `importance` and, where the network
    is trained first, `stage_before_selection` or `stage_after_selection`, with `trains = True`: then it works in
    `prune` and in the user's own loop, with `Pruning`. A pruner that has to train by itself overrides
    `train_before_selection` or `train_after_selection` instead; it works in `prune` only.

    Attributes:
        scope: "layer" removes the same fraction of every layer, "global" ranks the units of all layers together.
        floor: how many units are kept in every layer at least, whatever the ratio.
        trains: whether the pruner needs training data.
        limits: {name of a hyperparameter: which numbers it takes}.
    """

    scope: str = field(default="layer", kw_only=True)
    floor: int = field(default=1, kw_only=True)
    trains: ClassVar[bool] = False
    limits: ClassVar[Mapping[str, Number]] = {"floor": Number(1, whole=True)}

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.scope not in ("layer", "global"):
            raise ValueError(
                f"{name}() got scope={self.scope!r}; it takes 'layer' or 'global', e.g. {name}(scope='global')."
            )
        with signed(name):
            for key, accepted in self.limits.items():
                check_number(key, getattr(self, key), accepted, f"{name}({key}={getattr(type(self), key, 1)!r})")

    def adapt(self, model: nn.Module) -> nn.Module:
        """Return `model` with the layers that this pruner needs, its outputs unchanged; by default `model` itself."""
        return model

    def stage_before_selection(self, context: PruningContext) -> Stage | None:
        """Return the training of `context.model` before units are selected, None where there is none."""
        return None

    def train_before_selection(self, context: PruningContext) -> None:
        """Train `context.model` in place before units are selected; by default `stage_before_selection`."""
        if stage := self.stage_before_selection(context):
            context.run_stage(stage)

    def importance(self, context: PruningContext, group: UnitGroup) -> Tensor:
        """Return a score for every unit of `group`: [units]; the lowest are removed. By default `magnitude`."""
        return magnitude(context.model, group)

    def stage_after_selection(self, context: PruningContext, selection: Selection) -> Stage | None:
        """Return the training of `context.model` after the selection, before removal, None where there is none."""
        return None

    def train_after_selection(self, context: PruningContext, selection: Selection) -> None:
        """Train `context.model` in place after the selection, before removal; by default `stage_after_selection`."""
        if stage := self.stage_after_selection(context, selection):
            context.run_stage(stage)

    @property
    def needs_data(self) -> bool:
        """Whether this pruner, with these hyperparameters, trains."""
        return self.trains

    @property
    def trains_before_selection(self) -> bool:
        """Whether there is a training before selection that depends on neither ratio nor layers.

        Prunings of one network at several ratios can share it; see `without_training`.
        """
        return False

    def without_training(self) -> Pruner:
        """Return this pruner with that training switched off, for a network that has had it."""
        return self


def magnitude(model: nn.Module, group: UnitGroup) -> Tensor:
    """Return the mean absolute weight of every unit, averaged over the group's layers: [units] float64.

    A layer's score of a unit is the mean of |w| over its row (the L1 norm up to a factor).
    Source: Li et al., ICLR 2017; the mean and the averaging over coupled layers as in the TPP reference.
    """
    scores = []
    for member in group.of("units"):
        layer = model.get_submodule(member.layer)
        name, dim = unit_weight(layer) or ("weight", 0)
        weight = layer.get_parameter(name).detach().double().cpu().transpose(0, dim)
        scores.append((member, weight.abs().flatten(1).mean(1)))
    return average_scores(group.units, scores)


def average_scores(units: int, scores: Iterable[tuple[Member, Tensor]]) -> Tensor:
    """Return the mean score of every unit over those members of its group that have it: [units] float64.

    Args:
        units: of the group.
        scores: (member, a score for each of its channels).
    """
    total, count = (torch.zeros(units, dtype=torch.float64) for _ in range(2))
    for member, values in scores:
        for unit, indices in member.indices.items():
            total[unit] += values[list(indices)].mean()
            count[unit] += 1
    return total / count
