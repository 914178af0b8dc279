"""The inputs that a network takes, as far as its own attributes and layers show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isometry.data.nests import map_tensors, tensors_in

__all__ = ["example_inputs", "input_shape", "placed"]


def input_shape(model: nn.Module, call: str) -> tuple[int, ...]:
    """Return the shape of one input: the model's own `input_shape`, or else that of its first layer.

    Args:
        model: any module.
        call: the call to recommend in the error, with `inputs` for the missing argument.

    Raises:
        ValueError: the first layer does not determine the whole shape.
    """
    known = getattr(model, "input_shape", None)
    if known is not None:
        return tuple(known)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            return (module.in_features,)
        if next(module.parameters(recurse=False), None) is not None:
            channels = getattr(module, "in_channels", None)
            sides = (32,) * (1 if isinstance(module, nn.Conv1d) else 3 if isinstance(module, nn.Conv3d) else 2)
            shape = ", ".join(map(str, (64, channels, *sides))) if channels else "64, ..."
            verb, example = call.split("(")[0], _filled(call, f"torch.randn({shape})")
            raise ValueError(
                f"{verb}() cannot infer an input shape from {name or 'the model'} ({type(module).__name__}). Pass "
                f"inputs, e.g. {example}."
            )
    raise ValueError(
        f"{call.split('(')[0]}() cannot infer an input shape from a model without parameters. Pass inputs, e.g. "
        f"{_filled(call, 'torch.randn(64, ...)')}."
    )


def _filled(call: str, inputs: str) -> str:
    """Return `call` with `inputs` instead of its last argument."""
    return call.removesuffix("inputs)") + inputs + ")"


def example_inputs(model: nn.Module, count: int, *, seed: int = 0, call: str = "measure(model, inputs)") -> Tensor:
    """Return standard normal inputs of the shape that `input_shape` returns: [count, ...].

    They have the model's device and the dtype of its first floating point parameter.

    Args:
        model: any network.
        count: how many.
        seed: of the draw; the global generator is left alone.
        call: the call to recommend in the error, as in `input_shape`.

    Raises:
        ValueError: the shape cannot be inferred.
    """
    shape = input_shape(model, call)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like.device, like.dtype)


def placed(inputs: Any, model: nn.Module) -> Any:
    """Return `inputs` on the model's device; floating point inputs in a dtype that some of its parameters have.

    Args:
        inputs: a tensor, or a tuple or dict of tensors.
        model: any network.
    """
    floating: list[Tensor] = [p for p in model.parameters() if p.is_floating_point()] or tensors_in(inputs)

    def place(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype in {p.dtype for p in floating}:
            return tensor.to(floating[0].device)
        return tensor.to(floating[0].device, floating[0].dtype)

    return map_tensors(inputs, place)
