"""The pruner interface."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Data, Split
from isometry.files import write
from isometry.networks import placed
from isometry.networks.modules import feeding_layers
from isometry.pruners.selection import Selection
from isometry.surgery import Member, UnitGroup
from isometry.training import Epoch

__all__ = ["DivergedError", "Pruner", "PruningContext", "average_scores", "magnitude"]


class DivergedError(ArithmeticError):
    """The training of a pruner left the finite numbers."""


@dataclass
class PruningContext:
    """One call of `prune`, as a pruner sees it: the copy it may train, and what there is to train it with.

    Attributes:
        model: a copy of the user's network, to be trained in place.
        groups: those groups of `model` that are to lose units.
        data: what to train on; None unless the caller gave some.
        seed: of everything random.
        progress: False silences the progress bar, None shows it in terminals and notebooks.
        checkpoint: file that lets an interrupted training go on, or None.
        autocast: whether to train in bfloat16.
        records: rows for the history.
    """

    model: nn.Module
    groups: list[UnitGroup]
    data: Data | Split | None
    seed: int
    progress: bool | None
    checkpoint: str | os.PathLike[str] | None
    autocast: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def split(self) -> Split:
        """The training part of the data."""
        assert self.data is not None
        return self.data.train if isinstance(self.data, Data) else self.data

    @cached_property
    def behind(self) -> dict[str, str]:
        """{BatchNorm: the layer whose very output it normalizes}, as one forward pass of the training data shows."""
        if self.data is None:
            return {}
        x, modes = placed(self.split.inputs[:2], self.model), {m: m.training for m in self.model.modules()}
        try:
            with torch.no_grad():
                pairs, _ = feeding_layers(self.model.eval(), lambda: self.model(x))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return {norm: layer for layer, norm in pairs}

    def stage(self, name: str) -> Path | None:
        """Return the checkpoint file of one of several trainings of a pruner, None where none was asked for."""
        return None if self.checkpoint is None else Path(f"{os.fspath(self.checkpoint)}.{name}")

    def follow(self, epochs: Iterator[Epoch], name: str, steps: int, log: Callable[[], dict[str, Any]] = dict) -> None:
        """Run a training to its end, with a progress bar and a row of the history for every epoch."""
        hidden = None if self.progress is None else not self.progress
        path = self.stage(f"{name}.jsonl")
        kept = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
        with tqdm(total=steps, unit="step", desc=name, disable=hidden) as bar:
            for epoch in epochs:
                kept = [row for row in kept if row["number"] < epoch.number]
                kept.append({"stage": name, **asdict(epoch), **log()})
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write(path, "".join(json.dumps(row) + "\n" for row in kept))
                bar.update(epoch.steps - bar.n)
                bar.set_postfix(loss=f"{epoch.loss:.3f}", accuracy=f"{epoch.accuracy:.3f}")
        self.records += kept
        if kept and kept[-1]["diverged"]:
            raise DivergedError(
                f"Training diverged after {kept[-1]['steps']} steps (loss {kept[-1]['loss']}), before any unit was removed. "
                "Lower the learning rate or the strength of the pruner, e.g. isometry.TPP(lr=1e-4)."
            )


@dataclass(frozen=True)
class Pruner:
    """What a pruner owes: an importance for every unit and, if it trains, training before or after the choice.

    A pruner is a frozen dataclass of hyperparameters. Write a new one by overriding `importance`, or `condition` and
    `recede` where units are to be trained towards leaving.

    Attributes:
        scope: "layer" removes the same fraction of every layer, "global" ranks the units of all layers together.
        floor: so many units stay in every layer, whatever the ratio.
    """

    scope: str = field(default="layer", kw_only=True)
    floor: int = field(default=1, kw_only=True)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.scope not in ("layer", "global") or self.floor < 1:
            raise ValueError(
                f"{type(self).__name__}() got scope={self.scope!r}, floor={self.floor}; it takes 'layer' or 'global' and at "
                f"least 1, e.g. {type(self).__name__}(scope='global', floor=3)."
            )

    def train_before_selection(self, run: PruningContext) -> None:
        """Train `run.model` in place before units are chosen; nothing by default."""

    def importance(self, run: PruningContext, group: UnitGroup) -> Tensor:
        """Return a score for every unit of `group`: [units]; the lowest leave. Magnitude by default."""
        return magnitude(run.model, group)

    def train_after_selection(self, run: PruningContext, chosen: Selection) -> None:
        """Train `run.model` in place after the choice, before removal; nothing by default."""


def magnitude(model: nn.Module, group: UnitGroup) -> Tensor:
    """Return the mean absolute weight of every unit, averaged over the group's layers: [units] float64.

    A layer's score of a unit is the mean of |w| over its row (the L1 norm up to a factor).
    Source: Li et al., ICLR 2017; the mean and the averaging over coupled layers as in the TPP reference.
    """
    scores = []
    for member in group.of("units"):
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight").detach().double().cpu()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)
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
