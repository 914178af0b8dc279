"""The stage interface: a piece of work with settings, a folder and a parent."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from isometry.data import Data
from isometry.files import read_table
from isometry.surgery import Loaded, load
from isometry.trials.rows import Row
from isometry.trials.trial import Trial

__all__ = ["MODEL_FILE", "ROWS_FILE", "Stage"]

MODEL_FILE, ROWS_FILE = "model.safetensors", "rows.csv"


@dataclass(frozen=True)
class Stage(ABC):
    """One stage of a trial. Stages with equal settings are one piece of work, whichever trials they come from.

    Attributes:
        trial: a trial that it belongs to.
        phase: the name of its rows in the table.
        keeps_network: whether it always saves its network.
    """

    trial: Trial
    phase: ClassVar[str]
    keeps_network: ClassVar[bool] = True

    @property
    @abstractmethod
    def parent(self) -> Stage | None:
        """The stage whose network this one starts from."""

    @property
    @abstractmethod
    def own_settings(self) -> dict[str, Any]:
        """What decides the outcome of this stage, beyond what decides its parent's."""

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """The readable parts of the folder's name that are not network, data set or seed."""

    def architecture(self, classes: int) -> nn.Module:
        """Return a network that the saved weights and plan can be loaded into: the parent's, unless it is adapted."""
        assert self.parent is not None
        return self.parent.architecture(classes)

    @abstractmethod
    def execute(self, runs: Path, device: str, *, weights: bool = False, progress: bool | None = False) -> list[Row]:
        """Do the work, save the network in the stage's folder and return its rows of the table.

        Args:
            runs: the folder of all stages.
            device: where networks live, "cpu" or "cuda".
            weights: whether a stage that does not always save its network does so, too.
            progress: whether trainings show a bar; None: in terminals and notebooks.
        """

    @property
    def reads(self) -> tuple[Stage, ...]:
        """The stages whose files `execute` reads."""
        return () if self.parent is None else (self.parent,)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides this stage's outcome, as JSON types."""
        inherited = self.parent.settings if self.parent is not None else {}
        return inherited | json.loads(json.dumps(self.own_settings))

    @functools.cached_property
    def folder(self) -> str:
        """The stage's folder: readable, and a digest of its settings."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return "/".join(
            [self.trial.network_name, self.trial.dataset_name, *self.labels, f"s{self.trial.seed}-{digest}"]
        )

    @property
    def duration(self) -> float:
        """A rough measure of how long the stage takes, to start long ones first."""
        return -self.trial.ratio

    def diverged(self, runs: Path) -> bool:
        """Whether this stage, which is done, ended in numbers that are not finite."""
        return bool(read_table(runs / self.folder / ROWS_FILE)["diverged"].any())

    def load(self, runs: Path, dataset: Data) -> Loaded:
        """Return the network that this stage saved, and its plan."""
        model = self.architecture(dataset.classes)
        return load(runs / self.folder / MODEL_FILE, model, inputs=self.trial.example_inputs(2))
