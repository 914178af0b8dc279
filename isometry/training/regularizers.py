"""Regularizers that pull weights toward orthogonality while a network is trained or fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.networks.modules import UNIT_LAYERS
from isometry.training.recipe import Regularizer

__all__ = ["KernOrth", "OrthConv", "kernel_orthogonality"]


def kernel_orthogonality(weight: Tensor) -> Tensor:
    """Return ||A Aᵀ - I||_F, where A is the weight as a matrix [N, D], or its transpose where N > D.

    Args:
        weight: [N, ...], flattened from the second dimension on.

    Source: Xie, Xiong & Pu, CVPR 2017; the norm is not squared, as in the code of Wang & Fu, ICLR 2023.
    """
    rows = weight.flatten(1)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype))


def convolution_orthogonality(weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ||K * K - delta||_F: the correlation of the kernel with itself, minus the unit impulse.

    Args:
        weight: the kernel K [N, C, h, w].
        stride: of the convolution; the correlation is taken at shifts that are its multiples, below the kernel's size.

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
    """Add the sum of `kernel_orthogonality` over all convolutions and linear layers, times `weight`, to the loss.

    Attributes:
        weight: 0.1, the default of the code of Wang & Fu, ICLR 2023.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check_weight(self)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the term, a scalar."""
        return self.weight * torch.stack([kernel_orthogonality(layer.weight) for layer in _layers(model)]).sum()


@dataclass(frozen=True)
class OrthConv(Regularizer):
    """Add the sum of `convolution_orthogonality` over the 2-D convolutions, times `weight`, to the loss.

    For 1x1 convolutions, convolutions with groups, and linear layers the term is `kernel_orthogonality`; the first layer
    has none. Each convolution is taken with its own stride; the published code takes 2 for all of them.

    Attributes:
        weight: 0.1, the default of the code of Wang & Fu, ICLR 2023.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check_weight(self)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the term, a scalar."""
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
        raise ValueError(
            f"{name}() got weight={regularizer.weight}; it takes a number of at least 0, e.g. {name}(0.1)."
        )


def _layers(model: nn.Module) -> list[Any]:
    layers = [m for m in model.modules() if isinstance(m, UNIT_LAYERS)]
    if len(layers) < 2:
        raise ValueError(
            "an orthogonality regularizer takes a network of at least two convolutions or linear layers, e.g. "
            "isometry.networks.build('lenet-5-relu')."
        )
    return layers
