"""Layers as linear operators: the singular values of a layer's own map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from isometry.networks.modules import CONVOLUTIONS
from isometry.spectra import (
    Convolution,
    Matrices,
    bidiagonalize,
    circular,
    exact,
    probes,
    singular_values,
)

__all__ = ["operator_statistics"]

_DENSE_UP_TO = 600


@torch.no_grad()
def operator_statistics(module: nn.Module, size: tuple[int, ...]) -> dict[str, Any]:
    """Return statistics of a layer's own linear map: dense and small layers exactly, large convolutions by bounds.

    Args:
        module: any; what is neither Linear nor an ordinary convolution has no operator.
        size: spatial size of its input.
    """
    values = _values(module, size)
    if values is None:
        return dict.fromkeys(("operator_mean", "operator_min", "operator_max", "distance"), math.nan) | {"operator": ""}
    if isinstance(values, Tensor):
        gap = float((values - 1).square().mean().sqrt())
        ends = {"operator_min": float(values.min()), "operator_max": float(values.max())}
        return {"operator_mean": float(values.mean()), **ends, "distance": gap, "operator": "exact"}
    run = bidiagonalize(
        values,
        probes(1, 4, values.rank, torch.Generator().manual_seed(0), values.kernel),
        steps=24,
        rtol=0.02,
    )
    lower, upper = run.narrowed()
    spectrum = run.spectrum()
    return {
        "operator_mean": float((lower + upper).mean() / 2),
        "operator_min": float(spectrum.min),
        "operator_max": float(spectrum.max),
        "distance": math.sqrt(spectrum.isometry_gap),
        "operator": "krylov",
    }


def _values(module: nn.Module, size: tuple[int, ...]) -> Tensor | Convolution | None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        return singular_values(weight.detach().float())
    if not isinstance(module, CONVOLUTIONS) or not size:
        return None
    kernel = module.weight.detach().float()
    padding = _padding(module)
    if padding is None:
        return None
    if module.padding_mode == "circular":
        same = all(2 * p == d * (k - 1) for p, d, k in zip(padding, module.dilation, kernel.shape[2:], strict=True))
        fits = not any(n % s for n, s in zip(size, module.stride, strict=True))
        if same and fits and module.groups == 1 and set(module.dilation) == {1}:
            return circular(kernel, size, module.stride)
        return None
    if module.padding_mode != "zeros":
        return None
    operator = Convolution(kernel, size, module.stride, padding, module.dilation, module.groups)
    if operator.rank > _DENSE_UP_TO:
        return operator
    return exact(Matrices(operator.dense())).values[0]


def _padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...] | None:
    """Return the zeros on either side of every dimension; None where the two sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(total % 2 for total in both) else tuple(total // 2 for total in both)
