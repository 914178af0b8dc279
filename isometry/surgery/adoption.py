"""adopt: the widths and weights of a network that another library pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.networks.checks import check_module
from isometry.networks.modules import clone, unwrap
from isometry.surgery.widths import resize

__all__ = ["adopt", "fill", "unsaved_buffers"]


@signed("adopt")
def adopt(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `model` with the weights of a state dict whose layers are narrower, and with its widths.

    For networks that another library pruned and saved as plain tensors: layers take the shapes of the tensors of their
    names. Depthwise convolutions keep one group per channel. Whether the result runs is not tried.

    Args:
        model: a network of the original architecture; its weights do not matter.
        state: {name: tensor}, as `state_dict()` of the pruned network returned it; BatchNorm counters may be missing.

    Raises:
        TypeError: a state that is no mapping of tensors.
        ValueError: names that the model does not have or that are missing, or a tensor of another number of dimensions.
    """
    check_module(model, "adopt(isometry.networks.build('resnet-56'), state)")
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InvalidTypeError(
            f"got a state of type {type(state).__name__}; it takes {{name: tensor}}, as state_dict() returns it, e.g. "
            "adopt(isometry.networks.build('resnet-56'), torch.load('pruned.pt', weights_only=True))."
        )
    model = unwrap(model)
    result = clone(model)
    expected = dict(result.state_dict())
    _check_names(expected, state)
    for name, tensor in state.items():
        owner, _, key = name.rpartition(".")
        module = result.get_submodule(owner)
        if name not in expected or tensor.shape == expected[name].shape:
            continue
        value = tensor.detach().clone().to(expected[name].device)
        if key in module._parameters:
            trainable = module.get_parameter(key).requires_grad
            module.register_parameter(key, nn.Parameter(value, requires_grad=trainable))
        else:
            module._buffers[key] = value
    for name, module in result.named_modules():
        resize(module, model.get_submodule(name))
    fill(result, {name: tensor.detach() for name, tensor in state.items() if name in expected})
    return result


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a network that its state dict leaves out, by name."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _check_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise an error unless both have the same names, each with as many dimensions."""
    wrong = [name for name in expected.keys() ^ state.keys() if not name.endswith("num_batches_tracked")]
    wrong += [name for name in expected.keys() & state.keys() if expected[name].ndim != state[name].ndim]
    if wrong:
        name = sorted(wrong)[0]
        shapes = tuple(tuple(entries[name].shape) if name in entries else None for entries in (expected, state))
        raise InvalidValueError(
            f"got the state of another network: {name} has the shape {shapes[0]} in the model and {shapes[1]} in "
            "the state. Build the architecture that it was pruned from, e.g. "
            "adopt(isometry.networks.build('resnet-56'), torch.load('pruned.pt', weights_only=True))."
        )


def fill(model: nn.Module, tensors: Mapping[str, Tensor], unsaved: Mapping[str, str] | None = None) -> None:
    """Give a model the values of the tensors, each in its own precision.

    Args:
        model: changed.
        tensors: {name: tensor}, as of a state dict.
        unsaved: {name: dtype} of the buffers that state dicts leave out; None gives them the first tensor's.
    """
    buffers = {name: buffer.clone() for name, buffer in unsaved_buffers(model).items()}
    model.to(next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None))
    for name, kind in (unsaved or {}).items():
        if name in buffers:
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, buffers[name].to(getattr(torch, kind)))
    for name, entry in model.state_dict(keep_vars=True).items():
        if name in tensors and entry.dtype != tensors[name].dtype:
            entry.data = entry.data.to(tensors[name].dtype)
    model.load_state_dict(tensors, strict=False)
