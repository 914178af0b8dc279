"""An equivalent copy of a network that differentiates faster: BatchNorm folded into convolutions, channels last."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from isometry.view import Batch, View

__all__ = ["folded"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOLERANCE = 1e-4


def folded(view: View, batch: Batch, keep: frozenset[str] = frozenset()) -> View | None:
    """Return the view of a copy whose BatchNorms are folded and whose 2-D convolutions are channels-last.

    A BatchNorm is folded where the tensor that it was given is the very output of a convolution or linear layer that
    ran once; whether that output goes elsewhere too is settled by comparing the outputs of copy and original.

    Args:
        view: of a frozen model in eval mode.
        batch: holds a sample or two.
        keep: names of modules whose outputs must stay what they are.

    Returns:
        None where there is nothing to gain, the model cannot be copied, or the copy's outputs differ.
    """
    with torch.no_grad():
        pairs, expected = _pairs(view, batch)
        pairs = [pair for pair in pairs if keep.isdisjoint(pair)]
        flat = any(isinstance(module, nn.Conv2d) for module in view.model.modules())
        if not pairs and not flat:
            return None
        shared: dict[int, Any] = {id(t): t for t in (*view.model.parameters(), *view.model.buffers())}
        try:
            model = copy.deepcopy(view.model, shared)
        except (RuntimeError, TypeError, AttributeError):
            return None
        for first, norm in pairs:
            layer = model.get_submodule(first)
            fuse: Any = fuse_conv_bn_eval if isinstance(layer, _CONVS) else fuse_linear_bn_eval
            model.set_submodule(first, fuse(layer, model.get_submodule(norm)))
            model.set_submodule(norm, nn.Identity())
        if flat:
            _channels_last(model)
        model.requires_grad_(False)
        copied = View(model, output=view.output, at=view.at, wrt=view.wrt)
        try:
            found = copied.function(batch)(copied.leaf(batch))
        except RuntimeError:
            return None
    scale = expected.abs().max()
    return copied if bool((found - expected).abs().max() <= _TOLERANCE * scale) else None


def _pairs(view: View, batch: Batch) -> tuple[list[tuple[str, str]], Tensor]:
    """Return (layer, BatchNorm) names where the BatchNorm's input is the layer's output, and the model's outputs."""
    made: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    handles = []
    for name, module in view.model.named_modules():
        if type(module) in (*_CONVS, nn.Linear):

            def remember(_: nn.Module, args: object, result: Tensor, name: str = name) -> None:
                made[id(result)] = (name, result)
                runs[name] = runs.get(name, 0) + 1

            handles.append(module.register_forward_hook(remember))
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.running_mean is not None:

            def match(norm: nn.Module, args: tuple[Tensor, ...], result: object, name: str = name) -> None:
                source = made.get(id(args[0]))
                runs[name] = runs.get(name, 0) + 1
                # A linear layer's features are the last dimension, a BatchNorm1d's the second: they agree in 2-D only.
                if source is not None and (
                    args[0].ndim == 2 or isinstance(view.model.get_submodule(source[0]), _CONVS)
                ):
                    pairs.append((source[0], name))

            handles.append(module.register_forward_hook(match))
    try:
        outputs = view.function(batch)(view.leaf(batch))
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if runs[pair[0]] == 1 == runs[pair[1]] and view.at not in pair], outputs


def _channels_last(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.weight, nn.Parameter):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
