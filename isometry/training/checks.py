"""What `train` refuses before it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import Batches, Split
from isometry.data.nests import count_samples, tensors_in
from isometry.errors import InvalidValueError
from isometry.limits import SEED, check_number
from isometry.training.recipe import SETTINGS, check_terms

__all__ = ["check_settings"]


def check_settings(
    model: nn.Module, data: Split | Batches, *, epochs: int, seed: int, schedule: Any, regularizer: Any, **settings: Any
) -> None:
    """Raise an error unless there are data, as often as they are read, numbers in their range and parameters to train."""
    if isinstance(data, Split) and not count_samples(data.inputs):
        raise InvalidValueError(
            "got 0 inputs; it takes at least one, with its target, e.g. train(model, isometry.data.load('digits'), lr=0.01, "
            "epochs=10)."
        )
    if isinstance(data, Split) and (found := _nonfinite(data)):
        raise InvalidValueError(
            f"got {found} that hold NaN or infinite values, of which no network learns; it takes finite ones, e.g. "
            "data=(torch.nan_to_num(inputs), targets)."
        )
    for name, value in {**settings, "epochs": epochs}.items():
        check_number(name, value, SETTINGS[name], "lr=0.01, epochs=10")
    check_number("seed", seed, SEED, "seed=0")
    check_terms(schedule, regularizer)
    if isinstance(data, Batches) and data.is_read_once and epochs > 1:
        raise InvalidValueError(
            f"got an iterator ({type(data.source).__name__}), which can be read once, for {epochs} epochs. Pass a loader, or a "
            "list of batches, e.g. data=list(batches)."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidValueError("got a model without trainable parameters; call model.requires_grad_(True) first.")


def _nonfinite(data: Split) -> str | None:
    """Return "inputs" or "targets" where a tensor of them holds NaN, or is alone and holds an infinite value."""
    for name, values in (("inputs", data.inputs), ("targets", data.targets)):
        for tensor in tensors_in(values):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            extremes = torch.stack(tensor.aminmax())  # NaN where one is; no copy of the data
            # Infinite values can be intended where there are several tensors, in a mask for instance.
            wrong = ~extremes.isfinite() if isinstance(values, Tensor) else extremes.isnan()
            if bool(wrong.any()):
                return name
    return None
