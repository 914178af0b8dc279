"""Independence: whether the samples of a batch influence each other, in batches as large as those that are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.measurement.batch import Batch
from isometry.measurement.checks import rounding, trace_modules
from isometry.measurement.function import NetworkFunction

__all__ = ["check_independence"]

_LARGE = 1000  # entries of an input


@torch.no_grad()
def check_independence(function: NetworkFunction, batch: Batch, outputs: Tensor) -> None:
    """Refuse a network whose outputs for some samples change when the rest of their batch is taken away.

    Two samples do not show every coupling: a gate may open by the sum of a batch, an expert may be full. Looked at are up
    to 8 samples together and up to 8 alone (4 of large inputs, where a pass of one sample takes long).

    Args:
        function: whose outputs these are.
        batch: at least 3 samples, else nothing is checked.
        outputs: [B, ...], at the batch as a whole.

    Raises:
        ValueError: the message names the first module whose output changes.
    """
    if len(batch) < 3:
        return
    few = torch.linspace(0, len(batch) - 1, max(1, min(8, len(batch) // 2))).long()
    alone = torch.linspace(0, len(batch) - 1, min(8, len(batch))).long()
    if batch.differentiated[0].numel() > _LARGE:
        alone = few[:: max(1, len(few) // 4)]
    for samples in [few, *alone.split(1)]:
        part = batch.select(samples)
        try:
            apart = function.outputs(part)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError):
            continue  # it takes no batch of that size, so that there is nothing to compare
        if _differ(outputs, apart, samples, len(batch)):
            raise InvalidValueError(
                f"found that {_first_changed(function, batch, part, samples)} mixes the samples of a batch: outputs of "
                f"{len(samples)} of {len(batch)} samples change when the others are left out, so there is no per-sample "
                "Jacobian. Make it independent of the batch, or measure sample by sample: measure(model, x.split(1))."
            )


def _first_changed(function: NetworkFunction, batch: Batch, part: Batch, samples: Tensor) -> str:
    """Return the first module whose output for `samples` of a batch is another one in the part that holds only them."""
    for (_, name, together), (_, _, apart) in zip(
        trace_modules(function, batch), trace_modules(function, part), strict=False
    ):
        if _differ(together, apart, samples, len(batch)):
            return f"{name or 'the model'} ({type(function.model.get_submodule(name)).__name__})"
    return "an operation outside its submodules"


def _differ(together: Tensor, apart: Tensor, samples: Tensor, count: int) -> bool:
    """Whether a tensor for `samples` of a batch of `count` is not what it is for them apart."""
    if not together.ndim or len(together) != count or len(apart) != len(samples) or together[0].shape != apart[0].shape:
        return False
    gap = (together[samples.to(together.device)] - apart).abs().max()
    return bool(gap > rounding(together) * together.abs().max())
