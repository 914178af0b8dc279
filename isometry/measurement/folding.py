"""An equivalent copy of a network that differentiates faster: BatchNorm folded into convolutions, channels last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from isometry.measurement.function import Batch, NetworkFunction
from isometry.networks.bounded import BOUNDED, to_batchnorm
from isometry.networks.modules import clone, feeding_layers

__all__ = ["folded"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def folded(view: NetworkFunction, batch: Batch, keep: frozenset[str] = frozenset()) -> NetworkFunction | None:
    """Return the view of a copy whose BatchNorms are folded and whose 2-D convolutions are channels-last.

    A BatchNorm is folded where the tensor that it was given is the very output of a convolution or linear layer that
    ran once; whether that output goes elsewhere too is settled by comparing the outputs of copy and original.

    Args:
        view: of a frozen model in eval mode.
        batch: holds a sample or two.
        keep: names of modules whose outputs must stay what they are, the view's own start among them.

    Returns:
        None where there is nothing to gain, the model cannot be copied, or the copy's outputs differ.
    """
    with torch.no_grad():
        pairs, expected = _pairs(view, batch)
        kept = keep | ({view.at} if view.at is not None else set())
        pairs = [pair for pair in pairs if not any(_changes(pair, name) for name in kept)]
        flat = any(isinstance(module, nn.Conv2d) for module in view.model.modules())
        if not pairs and not flat:
            return None
        shared: dict[int, Any] = {id(t): t for t in (*view.model.parameters(), *view.model.buffers())}
        try:
            model = clone(view.model, shared)
        except (RuntimeError, TypeError, AttributeError):
            return None
        for first, norm in pairs:
            _fuse(model.get_submodule(first), to_batchnorm(model.get_submodule(norm)))
            model.set_submodule(norm, nn.Identity())
        if flat:
            _channels_last(model)
        model.requires_grad_(False)
        twin = NetworkFunction(model, output=view.output, at=view.at, wrt=view.wrt)
        try:
            found = twin.function(batch)(twin.leaf(batch))
        except RuntimeError:
            return None
    gap = (found - expected).abs().max()
    return twin if bool(gap <= _TOLERANCE.get(expected.dtype, 1e-2) * expected.abs().max()) else None


_FOLDABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *BOUNDED)


def _pairs(view: NetworkFunction, batch: Batch) -> tuple[list[tuple[str, str]], Tensor]:
    """Return the (layer, BatchNorm) names to fold, and the model's outputs."""
    pairs, outputs = feeding_layers(view.model, lambda: view.function(batch)(view.leaf(batch)))
    kinds = [(pair, type(view.model.get_submodule(pair[1]))) for pair in pairs]
    plain_weight = {pair for pair in pairs if _own_weight(view.model.get_submodule(pair[0]))}
    chosen = [pair for pair, kind in kinds if kind in _FOLDABLE and pair in plain_weight]
    return chosen, outputs


def _changes(pair: tuple[str, str], name: str) -> bool:
    """Whether folding a (layer, BatchNorm) pair changes the output of the module `name`: of either, or of one around the layer."""
    layer, norm = pair
    around = layer.startswith(f"{name}.") and not norm.startswith(f"{name}.")
    return name in pair or around


def _own_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is its own parameter, not computed from others before every forward pass."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter) and not layer._forward_pre_hooks


def _fuse(layer: Any, norm: Any) -> None:
    """Let a layer do what it and the BatchNorm behind it did; its parameters become new ones."""
    scale = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_var)
    fuse: Any = fuse_conv_bn_weights if isinstance(layer, _CONVS) else fuse_linear_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, scale, shift
    )


def _channels_last(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.weight, nn.Parameter):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
