"""What surgery does not support, and why: networks that are refused, units that are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from isometry.networks.modules import is_transposed
from isometry.surgery.groups import Coupling

__all__ = ["check_supported", "reason_fixed"]

_OUTPUT = "its units are outputs of the network"


def check_supported(model: nn.Module) -> None:
    """Raise a ValueError for what surgery would break: parametrizations, masks, weight_norm, tied weights."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise _unsupported(
                name, module, "a parametrization", f"parametrize.remove_parametrizations(model.{name}, 'weight')"
            )
        for key, parameter in module._parameters.items():
            _check_reparametrization(name, module, key)
            if parameter is None:
                continue
            if other := owners.get(id(parameter)):
                raise ValueError(
                    f"{name}.{key} is tied to {other}, and channel surgery would silently untie them. Give one of them "
                    f"a copy first: model.{name}.{key} = torch.nn.Parameter(model.{name}.{key}.detach().clone())."
                )
            owners[id(parameter)] = f"{name}.{key}"


def _check_reparametrization(name: str, module: nn.Module, key: str) -> None:
    """Raise a ValueError where a parameter's name says that the weight is computed from it by a hook."""
    weight = key.removesuffix("_orig")
    if weight != key and f"{weight}_u" in module._buffers:
        raise _unsupported(name, module, "spectral_norm", f"remove_spectral_norm(model.{name})")
    if weight != key:
        raise _unsupported(name, module, "a mask of torch.nn.utils.prune", f"prune.remove(model.{name}, {weight!r})")
    if key.endswith("_g") and key.removesuffix("_g") + "_v" in module._parameters:
        raise _unsupported(name, module, "weight_norm", f"remove_weight_norm(model.{name})")


def _unsupported(name: str, module: nn.Module, what: str, call: str) -> ValueError:
    return ValueError(
        f"{name} ({type(module).__name__}) carries {what}, which channel surgery would break. Fold it first: "
        f"torch.nn.utils.{call}."
    )


def reason_fixed(couplings: Sequence[Coupling]) -> str | None:
    """Return why the units of a layer cannot be removed, None where they can.

    Args:
        couplings: what is cut with all of the layer's units.
    """
    convolutions = [c.module for c in couplings if isinstance(c.module, nn.modules.conv._ConvNd)]
    for coupling in couplings:
        module = coupling.module
        if coupling.is_output:
            return _OUTPUT
        if isinstance(module, nn.Parameter):
            return f"its units meet {coupling.name or 'a parameter'} outside any layer"
        if isinstance(module, nn.LSTM | nn.MultiheadAttention):
            return f"its units meet {coupling.name or 'a layer'} ({type(module).__name__})"
        if is_transposed(module) and module.groups > 1:
            return f"{coupling.name or 'a layer'} is a transposed convolution in groups"
        if convolutions and _pads_channels(coupling.operation, convolutions[0].weight.ndim - 2):
            return "its units pass through a shortcut that pads channels with zeros"
    if not any(coupling.role == "inputs" for coupling in couplings if coupling.name is not None):
        return _OUTPUT
    return None


def _pads_channels(operation: Any, dimensions: int) -> bool:
    """Whether an operation pads the channels behind a convolution; other paddings are left to the exactness check.

    Args:
        operation: an autograd node, which saves the padding from the last dimension to the first.
        dimensions: of the convolution's kernel.
    """
    padding = getattr(operation, "_saved_pad", None)
    return padding is not None and any(padding[2 * dimensions : 2 * dimensions + 2])
