"""Accuracy and loss of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import read_data
from isometry.data.batches import Split
from isometry.data.nests import (
    Outline,
    channels_last,
    count_samples,
    failures_explained,
    map_tensors,
    outline,
    tensors_in,
)
from isometry.errors import InvalidValueError, signed
from isometry.networks import placed
from isometry.networks.checks import check_values
from isometry.networks.modules import call
from isometry.networks.preservation import evaluating
from isometry.training.objective import Loss, Metric, Objective, Totals

__all__ = ["Evaluation", "evaluate", "in_float", "like_outputs"]


@dataclass(frozen=True)
class Evaluation:
    """Performance of a network on a split, in eval mode.

    Attributes:
        loss: mean cross-entropy, or mean over samples of the loss that was passed.
        accuracy: fraction of the targets (samples, or pixels of dense ones) classified correctly; nan where the targets are
            no classes.
        samples: how many there are.
        metric: mean over samples of the metric that was passed; nan where none was.
    """

    loss: float
    accuracy: float
    samples: int
    metric: float = float("nan")


@signed("evaluate")
@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Any,
    batch_size: int = 500,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    autocast: bool = False,
) -> Evaluation:
    """Return loss and accuracy of `model` on a split, in eval mode; afterwards every module has its own mode again.

    Args:
        model: returns logits [B, K] or, of dense targets, [B, K, ...]; anything where a loss is passed.
        data: a `Split`, (inputs [N, ...], targets [N]), a `Data` or `Folder`, of which the test part is used, or an iterable
            of batches, see `isometry.data.Batches`, which is read once, to its end.
        batch_size: samples per forward pass of tensors; it changes memory, not the result. Batches stay as they come.
        loss: any callable (outputs, targets) -> scalar, the mean over a batch; None means cross-entropy.
        metric: any callable (outputs, targets) -> number, likewise.
        autocast: run the network in bfloat16 where torch considers that safe.

    Raises:
        ValueError, TypeError: the split is empty; cross-entropy of what is no classification (float targets, one output,
            classes that the network does not have); a loss that fails or is no scalar; a loader that is empty, ends early
            or changes its entries.
    """
    check_values(model, "evaluate(model, data.test)")
    split, objective = read_data(data, part="test", batch_size=batch_size), Objective(loss, metric)
    if isinstance(split, Split) and not count_samples(split.inputs):
        raise InvalidValueError("got an empty split; it takes one with samples, e.g. evaluate(model, data.test).")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    totals, loss_sum = Totals(objective, device), 0.0
    first: Outline | None = None
    with evaluating(model):
        for batch in split.batches(batch_size) if isinstance(split, Split) else split:
            x, y = placed(batch.inputs, model), map_tensors(batch.targets, lambda part: part.to(device))
            first = first or outline(x)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast), failures_explained(x, first):
                outputs = call(model, channels_last(x))
            outputs, samples = in_float(outputs), count_samples(x)
            y = like_outputs(y, outputs)
            value = objective(outputs, y, differentiable=False, reduction="sum")
            loss_sum += float(value) if loss is None else float(value) * samples
            totals.count(outputs, y, samples)
            totals.samples += samples
    count = int(totals.classified) if loss is None else totals.samples
    mean = loss_sum / count if count else float("nan")
    return Evaluation(mean, totals.mean_accuracy, totals.samples, totals.mean_metric)


def in_float(outputs: Any) -> Any:
    """Return a tensor of half precision in float32, and whatever else a network returns as it is."""
    half = isinstance(outputs, Tensor) and outputs.dtype in (torch.float16, torch.bfloat16)
    return outputs.float() if half else outputs


def like_outputs(targets: Any, outputs: Any) -> Any:
    """Return floating point targets in the dtype of a network's first floating point output, all others as they are."""
    dtype = next((tensor.dtype for tensor in tensors_in(outputs) if tensor.is_floating_point()), None)
    return map_tensors(targets, lambda part: part.to(dtype) if part.is_floating_point() else part)
