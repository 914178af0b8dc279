"""Recalibration: the BatchNorm statistics of a pruned network, estimated again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from isometry.data import Batches, Split, read_data
from isometry.data.nests import count_samples
from isometry.data.reading import first_inputs
from isometry.errors import InvalidValueError, signed
from isometry.limits import SEED, Number, check_number
from isometry.networks import placed
from isometry.networks.checks import check_module
from isometry.networks.modules import BATCH_NORMS, call, clone
from isometry.networks.preservation import evaluating

__all__ = ["recalibrate"]


@signed("recalibrate")
@torch.no_grad()
def recalibrate(
    model: nn.Module,
    data: Any,
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
        data: a `Data` or `Folder` (its training part is used), a `Split`, (inputs, targets), inputs [N, ...], or an iterable
            of batches, see `isometry.data.Batches`, of which the first ones are used. Targets are not used.
        samples: the largest number of samples; those of tensors are drawn without replacement.
        batch_size: samples per forward pass; batch variances are averaged, so it should not be small. Batches of an iterable
            stay as they come.
        seed: of the draw of the samples.

    Raises:
        ValueError: no BatchNorm that tracks statistics, fewer than two samples, or a `batch_size` of less than two; a loader
            that is empty or changes; activations that are not finite.

    Source: the adaptive batch normalization of Li et al., ECCV 2020 (EagleEye), section 3.2.
    """
    check_module(model, "recalibrate(isometry.networks.build('resnet-20'), torch.randn(256, 3, 32, 32))")
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        check_number(name, value, Number(0, whole=True), f"{name}=128")
    check_number("seed", seed, SEED, "seed=0")
    result = clone(model)
    norms = [m for m in result.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    split = read_data(data, batch_size=batch_size)
    count = samples if isinstance(split, Batches) else min(count_samples(split.inputs), samples)
    example = "recalibrate(isometry.networks.build('resnet-20'), torch.randn(256, 3, 32, 32))"
    if not norms:
        raise InvalidValueError(
            f"got a network ({type(model).__name__}) without a BatchNorm that tracks statistics, so there is nothing to estimate "
            f"anew; it takes one that has them, e.g. {example}. Repair others with isometry.repair(pruned, reference=model, data=data)."
        )
    if count < 2 or batch_size < 2:
        raise InvalidValueError(
            f"got {count} samples and batch_size={batch_size}; statistics take at least 2 of each, e.g. {example}."
        )
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(result):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # plain average over batches
            norm.train()
        for inputs in _drawn(split, samples, batch_size, seed):
            if count_samples(inputs) > 1:  # one sample has no variance
                call(result, placed(inputs, result))
                seen += count_samples(inputs)
    if seen < 2:
        raise InvalidValueError(
            "got batches of one sample each, which have no variance; it takes larger ones, e.g. "
            "torch.utils.data.DataLoader(dataset, batch_size=128)."
        )
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    _check_finite(result)
    return result


def _check_finite(model: nn.Module) -> None:
    """Refuse statistics that are NaN or infinite, by the name of the first BatchNorm that has them."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None and not bool(torch.isfinite(statistic).all()):
                    raise InvalidValueError(
                        f"found NaN or infinite values in what {name or 'the network'} ({type(module).__name__}) normalizes. Check "
                        "the data and the weights; of finite ones e.g. recalibrate(model, torch.nan_to_num(x))."
                    )


def _drawn(data: Split | Batches, samples: int, batch_size: int, seed: int) -> Iterator[Any]:
    """Yield the inputs of batches, at most `samples` in all: drawn at random from memory, else the first ones."""
    if isinstance(data, Split):
        order = torch.randperm(count_samples(data.inputs), generator=torch.Generator().manual_seed(seed))[:samples]
        yield from (batch.inputs for batch in data.batches(batch_size, order))
    else:
        yield from first_inputs(data, samples)
