"""What `train` refuses before it begins."""

from __future__ import annotations

from typing import Any

from torch import nn

from isometry.data import Batches, Split
from isometry.data.nests import count_samples
from isometry.errors import SEED, InvalidValueError, check_number
from isometry.training.recipe import SETTINGS

__all__ = ["check_settings"]


def check_settings(model: nn.Module, data: Split | Batches, *, epochs: int, seed: int, **settings: Any) -> None:
    """Raise an error unless there are data, as often as they are read, numbers in their range and parameters to train."""
    if isinstance(data, Split) and not count_samples(data.inputs):
        raise InvalidValueError(
            "got 0 inputs; it takes at least one, with its target, e.g. train(model, isometry.data.load('digits'), lr=0.01, "
            "epochs=10)."
        )
    for name, value in {**settings, "epochs": epochs}.items():
        check_number(name, value, SETTINGS[name], "lr=0.01, epochs=10")
    check_number("seed", seed, SEED, "seed=0")
    if isinstance(data, Batches) and data.is_read_once and epochs > 1:
        raise InvalidValueError(
            f"got an iterator ({type(data.source).__name__}), which can be read once, for {epochs} epochs. Pass a loader, or a "
            "list of batches, e.g. data=list(batches)."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidValueError("got a model without trainable parameters; call model.requires_grad_(True) first.")
