"""One row of the table of trials: what a network does and measures at one moment."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from isometry.data import Data
from isometry.measurement import measure
from isometry.training.evaluation import evaluate
from isometry.trials.dataset import MEASURED
from isometry.trials.trial import Trial

__all__ = ["Row", "measure_row"]

Row = dict[str, Any]
_STATISTICS = ("mean_jsv", "sem", "std_jsv", "max_jsv", "min_jsv", "condition_number", "isometry_gap")


def measure_row(trial: Trial, model: nn.Module, data: Data, phase: str, epoch: int, diverged: bool) -> Row:
    """Return accuracy and loss on the test part, and JSV statistics over the first 64 training images.

    Args:
        trial: says whether evaluation runs in bfloat16.
        model: the network.
        data: the data set.
        phase: the stage's name in the table, e.g. "pruned".
        epoch: counts from 1; 0 before training.
        diverged: whether training did; nothing is measured then.
    """
    row: Row = {"phase": phase, "epoch": epoch, "diverged": diverged}
    if diverged:
        return row
    result = evaluate(model, data.test, **trial.objective, autocast=trial.autocast)
    if not math.isfinite(result.loss):  # weights still finite, but too large
        return row | {"diverged": True}
    report = measure(model, trial.example_inputs(MEASURED), progress=False)
    row |= {"accuracy": result.accuracy, "loss": result.loss, **{name: getattr(report, name) for name in _STATISTICS}}
    row["median_jsv"] = report.spectrum.quantile(0.5)
    row |= {"metric": result.metric} if "metric" in trial.objective else {}
    return row | {"parameters": sum(p.numel() for p in model.parameters())}
