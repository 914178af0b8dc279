"""The stages of a trial: dense training, sparse training, pruning, fine-tuning. Trials that agree so far share them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from isometry import networks
from isometry.data import Data
from isometry.files import read_records, write, write_records
from isometry.pruners import DivergedError, Pruner, prune
from isometry.repairs import repair_by_name
from isometry.surgery import Loaded, Plan, save
from isometry.training import Epoch, train
from isometry.training.objective import describe_callable
from isometry.training.recipe import Recipe
from isometry.training.step_bar import count_steps, show_steps
from isometry.trials.resumption import CHECKPOINT, LOG, check_resumable
from isometry.trials.rows import Row, measure_row
from isometry.trials.stage import MODEL_FILE, Stage
from isometry.trials.trial import SCRATCH, Trial, label, to_json

__all__ = ["DenseTraining", "FineTuning", "Pruning", "SparseTraining", "plan_stages"]


@dataclass(frozen=True)
class DenseTraining(Stage):
    """Build the dense network and train it, or take it as initialized or with given weights."""

    phase: ClassVar[str] = "dense"

    @property
    def parent(self) -> None:
        """None: this stage is the first."""

    @property
    def own_settings(self) -> dict[str, Any]:
        """The network, the data, the recipe and the seed."""
        t = self.trial
        network = t.architecture.settings(t.seed, t.options)
        dataset = t.dataset if isinstance(t.dataset, str) else t.dataset.settings
        return {"network": network, "dataset": dataset, "options": t.options, "validation": t.validation,
                "pretrain": to_json(t.pretrain), "seed": t.seed, "autocast": t.autocast,
                **{name: describe_callable(value) for name, value in t.objective.items()}}  # fmt: skip

    @property
    def labels(self) -> list[str]:
        """The word "dense"."""
        return ["dense"]

    def architecture(self, classes: int) -> nn.Module:
        """Return the network as built."""
        return self.trial.architecture.build(classes, self.trial.seed, self.trial.options)

    def execute(self, runs: Path, device: str, *, weights: bool = False, progress: bool | None = False) -> list[Row]:
        """Train and save the dense network."""
        trial, folder = self.trial, runs / self.folder
        dataset = trial.load_data()
        diverged, epochs = False, 0
        if isinstance(trial.pretrain, str):
            model = trial.architecture.build(dataset.classes, trial.seed, trial.options, weights=trial.pretrain)
            model = model.to(device).eval()
        else:
            model = self.architecture(dataset.classes).to(device)
            if trial.pretrain is not None:
                epochs = trial.pretrain.epochs
                diverged = _train(
                    model, dataset, trial.completed(trial.pretrain), trial.seed, folder, "dense training", progress
                )
        save(Loaded(model, Plan({}, {})), folder / MODEL_FILE)
        return [measure_row(trial, model, dataset, "dense", epochs, diverged)]


@dataclass(frozen=True)
class SparseTraining(Stage):
    """Train as the pruner does before it selects units: once for all ratios."""

    phase: ClassVar[str] = "sparse"

    @property
    def parent(self) -> Stage:
        """The dense training."""
        return DenseTraining(self.trial)

    @property
    def own_settings(self) -> dict[str, Any]:
        """The pruner."""
        return {"pruner": self.trial.pruner_settings}

    @property
    def labels(self) -> list[str]:
        """The pruner."""
        return [f"{self.trial.pruner_name}-sparse"]

    def architecture(self, classes: int) -> nn.Module:
        """Return the dense network as the pruner needs it."""
        return _pruner(self.trial).adapt(self.parent.architecture(classes))

    def execute(self, runs: Path, device: str, *, weights: bool = False, progress: bool | None = False) -> list[Row]:
        """Train and save the network, with every unit still there."""
        trial, folder = self.trial, runs / self.folder
        if self.parent.diverged(runs):
            return [{"phase": "sparse", "epoch": 0, "diverged": True}]
        dataset = trial.load_data()
        pruner = _pruner(trial)
        model = pruner.adapt(self.parent.load(runs, dataset).model).to(device)
        recipe = replace(pruner.recipe(), autocast=trial.autocast)  # type: ignore[attr-defined]
        diverged = _train(model, dataset, trial.completed(recipe), trial.seed, folder, "sparse training", progress)
        save(Loaded(model, Plan({}, {})), folder / MODEL_FILE)
        return [measure_row(trial, model, dataset, "sparse", 0, diverged)]


@dataclass(frozen=True)
class Pruning(Stage):
    """Select and remove units, with the training of the pruner around it, but for what `SparseTraining` did."""

    phase: ClassVar[str] = "pruned"

    @property
    def parent(self) -> Stage:
        """The sparse training where the pruner has one, else the dense training."""
        sparse = _pruner(self.trial).trains_before_selection
        return SparseTraining(self.trial) if sparse else DenseTraining(self.trial)

    @property
    def own_settings(self) -> dict[str, Any]:
        """The pruner, its ratio and the layers."""
        return {"pruner": self.trial.pruner_settings, "ratio": self.trial.ratio, "layers": self.trial.layers}

    @property
    def labels(self) -> list[str]:
        """The pruner and its ratio."""
        return [f"{self.trial.pruner_name}-{self.trial.ratio:g}"]

    @property
    def duration(self) -> float:
        """Long where the pruner trains."""
        return float(_pruner(self.trial).trains)

    def architecture(self, classes: int) -> nn.Module:
        """Return the network before removal; the saved plan makes it smaller."""
        return _pruner(self.trial).adapt(self.parent.architecture(classes))

    def execute(self, runs: Path, device: str, *, weights: bool = False, progress: bool | None = False) -> list[Row]:
        """Prune; save the smaller network and the pruner's history."""
        trial, folder = self.trial, runs / self.folder
        if self.parent.diverged(runs):
            return [{"phase": "pruned", "epoch": 0, "diverged": True}]
        dataset = trial.load_data()
        pruner = _pruner(trial)
        model = pruner.adapt(self.parent.load(runs, dataset).model).to(device)
        for stage in ("before_selection", "after_selection"):
            checkpoint = folder / f"{CHECKPOINT}.{stage}"
            check_resumable(checkpoint, folder / f"{checkpoint.name}.jsonl", "number")
        try:
            result = prune(
                model, pruner.without_training(), trial.ratio, data=dataset, layers=trial.layers, autocast=trial.autocast, seed=trial.seed,
                progress=progress, checkpoint=folder / CHECKPOINT, **trial.objective,
            )  # fmt: skip
        except DivergedError:
            return [{"phase": "pruned", "epoch": 0, "diverged": True}]
        save(result, folder / MODEL_FILE)
        write(folder / "history.csv", result.history.to_csv(index=False))
        row = measure_row(trial, result.model, dataset, "pruned", 0, False)
        return [row | {"realised_ratio": result.ratio, "flops": result.after.flops}]


@dataclass(frozen=True)
class FineTuning(Stage):
    """Repair the pruned network where the trial says so, and train it."""

    phase: ClassVar[str] = "finetune"
    keeps_network: ClassVar[bool] = False

    @property
    def parent(self) -> Stage:
        """The pruning."""
        return Pruning(self.trial)

    @property
    def own_settings(self) -> dict[str, Any]:
        """The repair and the recipe."""
        return {"repair": self.trial.repair, "finetune": to_json(self.trial.finetune)}

    @property
    def labels(self) -> list[str]:
        """The pruner and its ratio, the repair, the recipe."""
        return [*self.parent.labels, self.trial.repair or "plain", label(self.trial.finetune)]

    @property
    def reads(self) -> tuple[Stage, ...]:
        """The pruning; with a repair also the dense training."""
        return (self.parent, DenseTraining(self.trial)) if self.trial.repair is not None else (self.parent,)

    def execute(self, runs: Path, device: str, *, weights: bool = False, progress: bool | None = False) -> list[Row]:
        """Repair and train; return one row per epoch."""
        trial, folder = self.trial, runs / self.folder
        if self.parent.diverged(runs):
            return [{"phase": "finetune", "epoch": 1, "diverged": True}]
        dataset = trial.load_data()
        pruned, plan = self.parent.load(runs, dataset)
        model, rows = pruned.to(device), []
        if trial.repair is not None:
            dense = DenseTraining(trial).load(runs, dataset).model.to(device)
            model = _repair(trial, model, dense, dataset)
            rows = [measure_row(trial, model, dataset, "repaired", 0, False)]
        if trial.finetune is not None:
            rows += _finetune(trial, model, dataset, folder, progress)
        if weights:
            save(Loaded(model, plan), folder / MODEL_FILE)
        return rows


def plan_stages(trial: Trial) -> list[Stage]:
    """Return the stages of a trial, first to last."""
    stage: Stage | None = DenseTraining(trial)
    if trial.pruner is not None:
        stage = FineTuning(trial) if trial.finetune is not None or trial.repair is not None else Pruning(trial)
    stages: list[Stage] = []
    while stage is not None:
        stages.insert(0, stage)
        stage = stage.parent
    return stages


def _pruner(trial: Trial) -> Pruner:
    assert trial.pruner is not None
    return trial.pruner


def _finetune(trial: Trial, model: nn.Module, dataset: Data, folder: Path, progress: bool | None) -> list[Row]:
    """Train in place, resumably; return one row per epoch."""
    assert trial.finetune is not None
    log = folder / LOG
    check_resumable(folder / CHECKPOINT, log, "epoch")
    kept = read_records(log)
    recipe = trial.completed(trial.finetune)
    epochs = train(model, dataset, **recipe.arguments(), seed=trial.seed + 1, checkpoint=folder / CHECKPOINT)
    with contextlib.closing(epochs):  # whose lock a traceback would hold
        for epoch in _show(epochs, model, dataset, recipe, "fine-tuning", progress):
            kept = [row for row in kept if row["epoch"] < epoch.number]
            row = measure_row(trial, model, dataset, "finetune", epoch.number, epoch.diverged)
            kept.append(row | {"steps": epoch.steps})
            write_records(log, kept)
    return kept


def _train(
    model: nn.Module, dataset: Data, recipe: Recipe, seed: int, folder: Path, description: str, progress: bool | None
) -> bool:
    """Train in place, resumably; return whether training diverged."""
    last = None
    check_resumable(folder / CHECKPOINT, None, "number")
    epochs = train(model, dataset, **recipe.arguments(), seed=seed, checkpoint=folder / CHECKPOINT)
    with contextlib.closing(epochs):
        for epoch in _show(epochs, model, dataset, recipe, description, progress):
            last = epoch
    return last is not None and last.diverged


def _show(
    epochs: Iterator[Epoch], model: nn.Module, dataset: Data, recipe: Recipe, description: str, progress: bool | None
) -> Iterator[Epoch]:
    steps = count_steps(recipe, dataset.train)
    return show_steps(epochs, model, steps, description=description, progress=progress)


def _repair(trial: Trial, model: nn.Module, dense: nn.Module, dataset: Data) -> nn.Module:
    if trial.repair != SCRATCH:
        return repair_by_name(str(trial.repair))(model, data=dataset, reference=dense, seed=trial.seed)
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    options = {**trial.options, "widths": tuple(widths)}
    fresh = networks.build(trial.network_name, dataset.classes, seed=trial.seed + 1000, **options)
    return fresh.to(next(model.parameters()).device)
