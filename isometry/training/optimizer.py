"""The optimizer of a training: its parameter groups, its construction."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.networks.bounded import BOUNDED
from isometry.training.recipe import Recipe

__all__ = ["build_sgd", "check_optimizer", "parameter_groups"]

_SCALE_RATE = 10.0


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: every trainable parameter once, the scales of bounded BatchNorms in their own.

    That group has ten times the rate, because a sigmoid's slope is at most 1/4, and no weight decay, which would pull
    importances to 1/2.

    Args:
        model: any network.
        lr: learning rate of all other parameters.
        weight_decay: of all other parameters.

    Source: Suteu & Guo 2022, the optimizer of its reference code.
    """
    bounded = {id(module.weight) for module in model.modules() if isinstance(module, BOUNDED)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    scales = [p for p in trainable if id(p) in bounded]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) not in bounded], "lr": lr, "weight_decay": weight_decay}
    ]
    return groups + ([{"params": scales, "lr": _SCALE_RATE * lr, "weight_decay": 0.0}] if scales else [])


def build_sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the SGD optimizer that a recipe describes."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    # The fused kernel is one pass over the parameters; where it does not exist, torch's default is used.
    fused = trainable[0].device.type in ("cpu", "cuda") and all(p.dtype == torch.float32 for p in trainable)
    return torch.optim.SGD(
        parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=fused or None,
    )


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise an error unless this is an optimizer that has every trainable parameter of the model."""
    if not hasattr(optimizer, "param_groups") or isinstance(optimizer, type):
        name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise InvalidTypeError(
            f"got {name} as optimizer; it takes an optimizer of this model's parameters, e.g. "
            "optimizer=torch.optim.Adam(model.parameters(), lr=1e-3)."
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trainable - optimized:
        raise InvalidValueError(
            f"got an optimizer that holds {len(trainable & optimized)} of the model's {len(trainable)} trainable "
            "parameters: it was made for another network, or for this one before surgery. Transfer its state: "
            "isometry.surgery.transfer_optimizer_state(optimizer, model, pruned), or leave optimizer out."
        )
