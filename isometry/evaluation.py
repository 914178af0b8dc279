"""Evaluation: accuracy and loss of a network; recalibrate: its BatchNorm statistics estimated anew."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data, Split
from isometry.networks import placed

__all__ = ["Evaluation", "evaluate", "recalibrate"]


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
    modes = {module: module.training for module in model.modules()}
    device = placed(split.inputs[:1], model).device
    loss = correct = 0.0
    try:
        model.eval()
        for x, y in zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True):
            x = placed(x, model)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = model(x).float()
            loss += float(F.cross_entropy(logits, y.to(device), reduction="sum"))
            correct += float((logits.argmax(1) == y.to(device)).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Evaluation(loss / len(split.inputs), correct / len(split.inputs), len(split.inputs))


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    data: Data | Split | tuple[Tensor, Tensor] | Tensor,
    *,
    samples: int = 5000,
    batch_size: int = 128,
    seed: int = 0,
) -> nn.Module:
    """Return a copy whose BatchNorm statistics are those of its own activations on `data`; `model` is left alone.

    Removing units changes what the later layers see, and the running statistics no longer fit: the cheapest repair, and
    one that every comparison of pruners should include. Mean and variance of every BatchNorm become the plain averages
    over batches of training images as they are, without augmentation, dropout switched off.

    Args:
        model: a network with BatchNorms that track statistics.
        data: a `Data` (its training part is used), a `Split`, (inputs, targets), or inputs [N, ...].
        samples: at most so many, drawn without replacement.
        batch_size: samples a forward pass; batch variances are averaged, so it should not be small.
        seed: of the draw.

    Raises:
        ValueError: no BatchNorm that tracks statistics, or fewer than two samples.

    Source: the adaptive batch normalisation of Li et al., ECCV 2020 (EagleEye), section 3.2.
    """
    inputs = data if isinstance(data, Tensor) else data.train.inputs if isinstance(data, Data) else data[0]
    result = copy.deepcopy(model)
    norms = [m for m in result.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    count = min(len(inputs), samples)
    if not norms or count < 2 or batch_size < 2:
        raise ValueError(
            f"recalibrate() got a network with {len(norms)} BatchNorms that track statistics, {count} samples and "
            f"batch_size={batch_size}; it takes at least 1, 2 and 2, e.g. recalibrate(isometry.networks.build('resnet-20'), "
            "torch.randn(256, 3, 32, 32))."
        )
    modes = {module: module.training for module in result.modules()}
    momenta = [norm.momentum for norm in norms]
    result.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:samples]
    for batch in order.split(batch_size):
        if len(batch) > 1 or len(order) < batch_size:
            result(placed(inputs[batch], result))
    for module, mode in modes.items():
        module.training = mode
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return result
