"""Accuracy and loss of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data, Split
from isometry.networks import placed
from isometry.networks.modules import evaluating

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Loss (mean cross-entropy), accuracy (share in [0, 1]) and number of samples, in eval mode."""

    loss: float
    accuracy: float
    samples: int


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data | Split | tuple[Tensor, Tensor], batch_size: int = 500, *, autocast: bool = False
) -> Evaluation:
    """Return loss and accuracy of `model` on a split, in eval mode; every module's own mode is restored.

    Args:
        model: returns logits [B, K].
        data: a `Split`, (inputs [N, ...], targets [N]), or a `Data`, of which the test part is used.
        batch_size: samples a forward pass; it changes memory, not the result.
        autocast: run the network in bfloat16 where torch holds that to be safe.

    Raises:
        ValueError: the split is empty.
    """
    split = data.test if isinstance(data, Data) else Split(*data)
    if not len(split.inputs):
        raise ValueError("evaluate() got an empty split; it takes one with samples, e.g. evaluate(model, data.test).")
    device = placed(split.inputs[:1], model).device
    loss = correct = 0.0
    with evaluating(model):
        for x, y in zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True):
            x = placed(x, model)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = model(x).float()
            loss += float(F.cross_entropy(logits, y.to(device), reduction="sum"))
            correct += float((logits.argmax(1) == y.to(device)).sum())
    return Evaluation(loss / len(split.inputs), correct / len(split.inputs), len(split.inputs))
