"""Recalibration: the BatchNorm statistics of a pruned network, estimated again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isometry.data import Data, Split
from isometry.networks import placed
from isometry.networks.modules import BATCH_NORMS, clone, evaluating

__all__ = ["recalibrate"]


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

    Removing units changes the inputs of the later layers, so that their running statistics no longer fit. This is the
    cheapest repair, which every comparison of pruners should include. Mean and variance of every BatchNorm become the
    plain averages over batches of training images, without augmentation and dropout.

    Args:
        model: a network with BatchNorms that track statistics.
        data: a `Data` (its training part is used), a `Split`, (inputs, targets), or inputs [N, ...].
        samples: the largest number of samples, drawn without replacement.
        batch_size: samples per forward pass; batch variances are averaged, so it should not be small.
        seed: of the draw of the samples.

    Raises:
        ValueError: no BatchNorm that tracks statistics, fewer than two samples, or a `batch_size` of less than two.

    Source: the adaptive batch normalization of Li et al., ECCV 2020 (EagleEye), section 3.2.
    """
    inputs = data if isinstance(data, Tensor) else data.train.inputs if isinstance(data, Data) else data[0]
    result = clone(model)
    norms = [m for m in result.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    count = min(len(inputs), samples)
    if not norms or count < 2 or batch_size < 2:
        raise ValueError(
            f"recalibrate() got a network with {len(norms)} BatchNorms that track statistics, {count} samples and "
            f"batch_size={batch_size}; it takes at least 1, 2 and 2, e.g. recalibrate(isometry.networks.build('resnet-20'), "
            "torch.randn(256, 3, 32, 32))."
        )
    momenta = [norm.momentum for norm in norms]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:samples]
    with evaluating(result):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # plain average over batches
            norm.train()
        for batch in order.split(batch_size):
            if len(batch) > 1 or len(order) < batch_size:
                result(placed(inputs[batch], result))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return result
