"""OrthP, the published orthogonalization of all weights, for any network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from isometry.errors import InvalidValueError, signed
from isometry.networks.modules import UNIT_LAYERS, clone
from isometry.spectra import orthogonal

__all__ = ["check_own_weight", "orthogonalize"]


@signed("orthogonalize")
def orthogonalize(model: nn.Module, *, gain: float = 1.0) -> nn.Module:
    """Return a copy in which every convolution and linear layer has an orthogonal weight; `model` is left alone.

    Every weight, as a matrix [units, inputs x kernel], is replaced by its QR factor times `gain`, those of the first and
    the last layer included; biases and normalization layers stay. Nothing is promised: in networks that are not
    linear MLPs the JSVs need not be 1.

    Args:
        model: any network.
        gain: the singular values of every weight. 1 for linear networks; the reference code multiplies by sqrt(2) for
            ReLU networks.

    Raises:
        ValueError: no convolution or linear layer; or one whose weight is parametrized.

    Source: Wang & Fu, ICLR 2023, the baseline "L1 + OrthP".
    """
    result = clone(model)
    layers = {n: m for n, m in result.named_modules() if isinstance(m, UNIT_LAYERS)}
    if not layers:
        raise InvalidValueError(
            "found no convolution or linear layer; it takes a network with some, e.g. "
            "orthogonalize(isometry.networks.build('lenet-5-relu'))."
        )
    with torch.no_grad():
        for name, layer in layers.items():
            check_own_weight(name, layer)
            layer.weight.copy_(gain * orthogonal.qr(layer.weight.flatten(1)).view_as(layer.weight))
    return result


def check_own_weight(name: str, layer: nn.Module) -> None:
    """Raise an InvalidValueError where the weight of a layer is computed from other parameters."""
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        raise InvalidValueError(
            f"cannot set the weight of {name} ({type(layer).__name__}), which is computed from other parameters. "
            f"Fold it first: torch.nn.utils.parametrize.remove_parametrizations(model.{name}, 'weight') or "
            f"torch.nn.utils.prune.remove(model.{name}, 'weight')."
        )
