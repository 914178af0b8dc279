"""Masks: weights some of whose entries are held at zero, by torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

__all__ = ["computed_weight", "mask_of", "masked_layers", "refresh", "set_masks", "set_parameter", "support"]

_CHANCE = 0.01  # a share of zeros that no pruning leaves


def mask_of(layer: nn.Module) -> Tensor | None:
    """Return the mask of a layer's weight, of its shape, 0 where it is held at zero; None where there is no mask."""
    return layer._buffers.get("weight_mask") if "weight_orig" in layer._parameters else None


def masked_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the (name, layer) whose weights have masks."""
    for name, module in model.named_modules():
        if mask_of(module) is not None:
            yield name, module


def computed_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is computed from other parameters in any other way than by a mask."""
    return parametrize.is_parametrized(layer) or ("weight" not in layer._parameters and mask_of(layer) is None)


def support(layer: Any) -> Tensor:
    """Return which entries of a layer's weight are free rather than held at zero: booleans of its shape.

    These are those that its mask keeps; without a mask, those that are not exactly 0. A few zeros, below a hundredth of a
    weight, are taken for chance, and those of a weight that is 0 everywhere for its values.
    """
    mask = mask_of(layer)
    if mask is not None:
        return mask != 0
    free = layer.weight.detach() != 0
    zeros = 1 - float(free.double().mean())
    return free if _CHANCE <= zeros < 1 else torch.ones_like(free)


@torch.no_grad()
def refresh(model: nn.Module) -> None:
    """Compute masked parameters anew, as the next forward pass would: after a step of an optimizer they are out of date."""
    for module in model.modules():
        for key, mask in module._buffers.items():
            name = key.removesuffix("_mask")
            if mask is not None and name != key and f"{name}_orig" in module._parameters:
                setattr(module, name, module.get_parameter(f"{name}_orig") * mask)


@torch.no_grad()
def set_parameter(layer: Any, name: str, value: Tensor) -> None:
    """Set a layer's "weight" or "bias", of its shape; of a masked one, the entries that the mask keeps."""
    mask, original = layer._buffers.get(f"{name}_mask"), layer._parameters.get(f"{name}_orig")
    if mask is None or original is None:
        getattr(layer, name).copy_(value)
        return
    original.copy_(torch.where(mask != 0, value.to(original), original))
    setattr(layer, name, original * mask)


def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put masks on parameters, in place, on top of those that they have.

    Args:
        model: changed; `torch.nn.utils.prune.remove(layer, "weight")` makes its zeros permanent and the mask go.
        masks: {name of a parameter, e.g. "net.0.weight": tensor of its shape, 0 where the parameter is held at zero}.
    """
    for name, mask in masks.items():
        owner, _, key = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(owner), key, mask)
    refresh(model)
