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
    """Performance of a network on a split, in eval mode.

    Attributes:
        loss: mean cross-entropy.
        accuracy: fraction of the samples classified correctly.
        samples: how many there are.
    """

    loss: float
    accuracy: float
    samples: int


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data | Split | tuple[Tensor, Tensor], batch_size: int = 500, *, autocast: bool = False
) -> Evaluation:
    """Return loss and accuracy of `model` on a split, in eval mode; afterwards every module has its own mode again.

    Args:
        model: returns logits [B, K].
        data: a `Split`, (inputs [N, ...], targets [N]), or a `Data`, of which the test part is used.
        batch_size: samples per forward pass; it changes memory, not the result.
        autocast: run the network in bfloat16 where torch considers that safe.

    Raises:
        ValueError: the split is empty.
    """
    inputs, targets = data.test if isinstance(data, Data) else data
    if not len(inputs):
        raise ValueError("evaluate() got an empty split; it takes one with samples, e.g. evaluate(model, data.test).")
    loss = correct = 0.0
    with evaluating(model):
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            x = placed(x, model)
            y = y.to(x.device)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = model(x).float()
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += float((logits.argmax(1) == y).sum())
    return Evaluation(loss / len(inputs), correct / len(inputs), len(inputs))
