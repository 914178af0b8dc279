"""Regularisers that pull weights towards orthogonality while a network is trained or fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.training.recipe import Regularizer

__all__ = ["KernOrth", "OrthConv", "kernel_orthogonality"]


def kernel_orthogonality(weight: Tensor) -> Tensor:
    """Return ||A Aᵀ - 1||_F with A the weight as a matrix [N, D], or its transpose where that is the wider one.

    Args:
        weight: [N, ...], flattened from the second dimension on.

    Source: Xie, Xiong & Pu, CVPR 2017; the norm is not squared, as in the code of Wang & Fu, ICLR 2023.
    """
    rows = weight.flatten(1)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype))


def convolution_orthogonality(weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ||K * K - delta||_F: the kernel correlated with itself against the unit impulse, zero at every other shift.

    Args:
        weight: K [N, C, h, w].
        stride: of the convolution; shifts are its multiples below the kernel's size.

    Source: Wang et al., CVPR 2020, "Orthogonal convolutional neural networks", Eq. 8.
    """
    reach = tuple((size - 1) // step * step for size, step in zip(weight.shape[2:], stride, strict=True))
    product = F.conv2d(weight, weight, stride=stride, padding=reach)
    target = torch.zeros_like(product)
    units = torch.arange(len(weight), device=weight.device)
    target[units, units, reach[0] // stride[0], reach[1] // stride[1]] = 1
    return torch.linalg.vector_norm(product - target)


@dataclass(frozen=True)
class KernOrth(Regularizer):
    """weight x the sum of `kernel_orthogonality` over all convolutions and linear layers.

    Attributes:
        weight: 0.1, the default of the code of Wang & Fu, ICLR 2023.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check_weight(self)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        return self.weight * torch.stack([kernel_orthogonality(layer.weight) for layer in _layers(model)]).sum()


@dataclass(frozen=True)
class OrthConv(Regularizer):
    """weight x the sum of `convolution_orthogonality` over the 2-D convolutions, `kernel_orthogonality` elsewhere.

    1x1 convolutions and linear layers have the matrix form; the first layer is left out. Each convolution has its own
    stride, where the published code has 2 for all.

    Attributes:
        weight: 0.1, the default of the code of Wang & Fu, ICLR 2023.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check_weight(self)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        terms = []
        for layer in _layers(model)[1:]:
            if isinstance(layer, nn.Conv2d) and layer.weight[0, 0].numel() > 1 and layer.groups == 1:
                terms.append(convolution_orthogonality(layer.weight, layer.stride))
            else:
                terms.append(kernel_orthogonality(layer.weight))
        return self.weight * torch.stack(terms).sum()


def _check_weight(regularizer: KernOrth | OrthConv) -> None:
    if not regularizer.weight >= 0:
        name = type(regularizer).__name__
        raise ValueError(f"{name}() got weight={regularizer.weight}; it takes a number from 0 on, e.g. {name}(0.1).")


def _layers(model: nn.Module) -> list[Any]:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if len(layers) < 2:
        raise ValueError(
            "an orthogonality regularizer takes a network of at least two convolutions or linear layers, e.g. "
            "isometry.networks.build('lenet-5-relu')."
        )
    return layers
