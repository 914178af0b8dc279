"""Epoch: what `train` yields."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Epoch"]


@dataclass(frozen=True)
class Epoch:
    """Summary of one epoch of training.

    Attributes:
        number: from 1.
        loss: mean loss (cross-entropy, or the one that was passed) over the epoch's samples, in train mode; nan or inf where
            training diverged.
        accuracy: fraction of the epoch's targets (training samples, or pixels of dense targets) classified correctly, in
            train mode; nan where the targets are no classes.
        lr: learning rate.
        steps: optimizer steps since the start of training.
        seconds: wall-clock time of the epoch.
        diverged: whether the loss or a parameter became nan or infinite; training ends with this epoch.
        metric: mean over the epoch's samples of the metric that was passed; nan where none was.
    """

    number: int
    loss: float
    accuracy: float
    lr: float
    steps: int
    seconds: float
    diverged: bool = False
    metric: float = math.nan
