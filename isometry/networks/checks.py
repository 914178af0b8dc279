"""Whether what a user passes as a network is one that can be looked into."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, join_names

__all__ = ["check_initialized", "check_module", "check_values"]


def check_module(model: Any, example: str) -> None:
    """Refuse what is no network, or one whose parts or values are not here; and to work in torch.inference_mode.

    Args:
        model: what was given for a network.
        example: a call that works.
    """
    check_values(model, example)
    if torch.is_inference_mode_enabled():
        raise InvalidValueError(
            "was called in torch.inference_mode(), in which nothing can be differentiated and no network can be made that trains. Call "
            "it outside; torch.no_grad() is fine."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidTypeError(
            "got a TorchScript module, whose parts cannot be looked into. Pass the module it was scripted or traced from, "
            f"e.g. {example}."
        )
    check_initialized(model)
    sharded = [name for name, parameter in model.named_parameters() if type(parameter.data).__name__ == "DTensor"]
    if sharded or type(model).__name__ == "FullyShardedDataParallel":
        raise InvalidValueError(
            f"got a model whose parameters are sharded over processes "
            f"({join_names(sharded) or 'FullyShardedDataParallel'}). Gather them into an ordinary model, e.g. by "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))."
        )


def check_initialized(model: nn.Module) -> None:
    """Refuse lazy modules whose parameters have no shape yet."""
    for name, module in model.named_modules():
        if getattr(module, "has_uninitialized_params", bool)():
            raise InvalidValueError(
                f"got a model whose {name or 'parameters'} are not initialized yet; run it once first: model(inputs)."
            )


def check_values(model: Any, example: str) -> None:
    """Refuse what is no network, or one whose parameters have no values.

    Args:
        model: what was given for a network; where it has one, as `Pruned` does, the message says how to pass that.
        example: a call that works.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        if isinstance(getattr(model, "model", None), nn.Module):
            example = "its attribute model: pruned.model instead of pruned"
        raise InvalidTypeError(f"got {what} for a model; it takes a torch.nn.Module, e.g. {example}.")
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InvalidValueError(
            f"got a model whose {join_names(empty)} hold no values (meta device): they are offloaded, as by Accelerate, or not "
            "loaded yet. Load it whole, e.g. model.load_state_dict(state, assign=True)."
        )
