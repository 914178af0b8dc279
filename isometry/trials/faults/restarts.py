"""A small sweep that is started again after a fault, and compared with what it comes to undisturbed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from isometry.pruners import L1
from isometry.training import Recipe
from isometry.trials.runner import run
from isometry.trials.trial import Trial

__all__ = ["CRASHED", "REFUSED", "SAME", "WRONG", "Sweep"]

SAME, REFUSED, WRONG, CRASHED = "same table", "refused", "wrong", "crashed"


class Sweep:
    """Two small trials that share a dense and a pruned network, and what they come to undisturbed.

    Args:
        epochs: of each of its trainings.
        options: of the network, an MLP.
        scratch: a folder to work in.
    """

    def __init__(self, epochs: int, options: dict[str, Any], scratch: Path) -> None:
        recipe, names = Recipe(0.01, epochs, 256), ("digits", "mlp-7-linear")
        shared: dict[str, Any] = {"finetune": recipe, "pruner": L1(), "ratio": 0.5, "options": options}
        self.trials = [Trial(*names, recipe, **shared, repair=repair) for repair in (None, "oracle")]
        self.scratch = scratch
        self.whole = scratch / f"whole-{epochs}"
        self.table = self.run(self.whole)  # imports what a run needs: the time of the second one counts
        with self.folder() as folder:
            start = time.perf_counter()
            self.run(folder)
            self.seconds = time.perf_counter() - start

    def run(self, folder: Path, jobs: int = 1) -> pd.DataFrame:
        """Return the table of the sweep in a folder."""
        return run(self.trials, folder, jobs=jobs, progress=False)

    @contextlib.contextmanager
    def folder(self, template: Path | None = None) -> Iterator[Path]:
        """Give a folder for one try, a copy of `template` or a new one."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch)) / "runs"
        if template is not None:
            shutil.copytree(template, folder)
        yield folder
        shutil.rmtree(folder.parent)

    def restart(self, folder: Path) -> str:
        """Run the sweep again and return what came of it."""
        try:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                table = self.run(folder)
        except Exception as error:
            return REFUSED if str(folder) in str(error) else CRASHED
        if "error" in table:
            return REFUSED if table["error"].dropna().str.contains(str(folder), regex=False).all() else CRASHED
        networks = [path.relative_to(self.whole) for path in self.whole.rglob("model.safetensors")]
        same = table.equals(self.table) and all(_same_tensors(self.whole / n, folder / n) for n in networks)
        return SAME if same else WRONG


def _same_tensors(one: Path, other: Path) -> bool:
    try:
        first, second = load_file(one), load_file(other)
    except Exception:  # safetensors' own class
        return False
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
