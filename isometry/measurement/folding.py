"""An equivalent copy of a network that differentiates faster: BatchNorm folded into convolutions, channels last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from isometry.measurement.batch import Batch
from isometry.measurement.function import NetworkFunction
from isometry.networks.bounded import BOUNDED, to_batchnorm
from isometry.networks.modules import CONVOLUTIONS, clone, feeding_layers

__all__ = ["fold_network"]

_FOLDABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *BOUNDED)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def fold_network(function: NetworkFunction, batch: Batch, keep: frozenset[str] = frozenset()) -> NetworkFunction | None:
    """Return the function of a copy whose BatchNorms are folded and whose 2-D convolutions are channels-last.

    A BatchNorm is folded where its input is the very output of a convolution or linear layer that ran once; whether
    that output is read elsewhere too is settled by comparing the outputs of copy and original.

    Args:
        function: of a model in eval mode, its state preserved.
        batch: a sample or two.
        keep: names of modules whose outputs must not change, in addition to the function's own start.

    Returns:
        None where there is nothing to gain, the model cannot be copied, or the copy's outputs differ.
    """
    original = function.model
    with torch.no_grad():
        pairs, expected = _foldable_pairs(function, batch)
        kept = keep | ({function.at} if function.at is not None else set())
        pairs = [pair for pair in pairs if not any(_changes(pair, name) for name in kept)]
        has_images = any(isinstance(module, nn.Conv2d) for module in original.modules())
        if not pairs and not has_images:
            return None
        shared: dict[int, Any] = {id(t): t for t in (*original.parameters(), *original.buffers())}
        try:
            model = clone(original, shared)
        except (RuntimeError, TypeError, AttributeError):
            return None
        for layer, norm in pairs:
            _fuse(model.get_submodule(layer), to_batchnorm(model.get_submodule(norm)))
            model.set_submodule(norm, nn.Identity())
        if has_images:
            _channels_last(model)
        model.requires_grad_(False)
        folded = replace(function, model=model)
        try:
            outputs = folded.outputs(batch)
        except RuntimeError:
            return None
    gap = (outputs - expected).abs().max()
    return folded if bool(gap <= _TOLERANCE.get(expected.dtype, 1e-2) * expected.abs().max()) else None


def _foldable_pairs(function: NetworkFunction, batch: Batch) -> tuple[list[tuple[str, str]], Tensor]:
    """Return the (layer, BatchNorm) names to fold, and the model's outputs."""
    model = function.model
    pairs, outputs = feeding_layers(model, lambda: function.outputs(batch))
    foldable = [
        (layer, norm)
        for layer, norm in pairs
        if type(model.get_submodule(norm)) in _FOLDABLE and _owns_weight(model.get_submodule(layer))
    ]
    return foldable, outputs


def _changes(pair: tuple[str, str], name: str) -> bool:
    """Whether folding a (layer, BatchNorm) pair changes the output of module `name`: one of them, or one around the layer."""
    layer, norm = pair
    around = layer.startswith(f"{name}.") and not norm.startswith(f"{name}.")
    return name in pair or around


def _owns_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is its own parameter, not computed from others before every forward pass."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter) and not layer._forward_pre_hooks


def _fuse(layer: Any, norm: Any) -> None:
    """Let a layer do what it and the BatchNorm behind it did; its parameters become new ones."""
    scale = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_var)
    fuse: Any = fuse_conv_bn_weights if isinstance(layer, CONVOLUTIONS) else fuse_linear_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, scale, shift
    )


def _channels_last(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.weight, nn.Parameter):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
