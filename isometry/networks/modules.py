"""Any network's modules: their kinds, hooks, copies, and what they return."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from isometry.networks.preservation import restoring

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "UNIT_LAYERS",
    "call",
    "clone",
    "clone_output",
    "feeding_layers",
    "first_tensor",
    "hooked",
    "is_transposed",
    "output_leaves",
    "replace_first_tensor",
    "unwrap",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The ordinary convolutions."""
UNIT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""The layers that have units: neurons of linear layers, filters of convolutions, transposed ones included."""
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
"""BatchNorms of any dimension, bounded ones included."""


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution, whose units are the second dimension of its weight."""
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def call(model: nn.Module, inputs: Any) -> Any:
    """Return what a network gives at `inputs`: one argument, or a tuple of positional or a dict of keyword arguments.

    It gets copies, as it may change them in place.
    """
    inputs = tree_map_only(Tensor, torch.clone, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def clone(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a network that holds tensors computed from others (masks, features of the last pass).

    Args:
        model: any network.
        memo: {id: object} of what the copy shares with the original, as `copy.deepcopy` takes it.
    """
    memo = dict(memo or {})
    for module in model.modules():
        for value in tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def output_leaves(result: Any) -> list[Any]:
    """Return what a network returned holds, tensors among it: in tuples, lists, dicts, dataclasses and distributions, nested or not.

    Of an object of another kind, what its attributes hold. What they in turn refer to, a cache for instance, is no output.
    """
    entries = _entries(result)
    if entries is None:
        return [result] if isinstance(result, Tensor) or not hasattr(result, "__dict__") else _leaves(vars(result))
    return _leaves(result)


def _leaves(result: Any) -> list[Any]:
    entries = _entries(vars(result) if isinstance(result, torch.distributions.Distribution) else result)
    return [result] if entries is None else [leaf for _, part in entries for leaf in _leaves(part)]


def _entries(result: Any) -> list[tuple[Any, Any]] | None:
    """Return the (key, entry) of a container or a dataclass, None of anything else."""
    if isinstance(result, Mapping):
        return list(result.items())
    if isinstance(result, tuple | list):
        return list(enumerate(result))
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [(field.name, getattr(result, field.name)) for field in dataclasses.fields(result)]
    return None


def first_tensor(result: Any) -> Tensor | None:
    """Return the first tensor of what a module returned: itself, or in a tuple, list, dict or dataclass, nested or not."""
    return _replaced(result, lambda tensor: tensor)[0]


def clone_output(result: Any) -> Any:
    """Return a module's result with a copy of its first tensor in its place, for what follows to change."""
    return replace_first_tensor(result, torch.clone)


def replace_first_tensor(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a module's result with its first tensor changed."""
    return _replaced(result, change)[1]


def _replaced(result: Any, change: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, Any]:
    """Return the first tensor in a result, and the result with that tensor changed; (None, result) where there is none."""
    if isinstance(result, Tensor):
        return result, change(result)
    for key, part in _entries(result) or ():
        found, changed = _replaced(part, change)
        if found is not None:
            return found, _with_entry(result, key, changed)
    return None, result


def _with_entry(result: Any, key: Any, part: Any) -> Any:
    """Return a copy of a container with another entry."""
    if isinstance(result, tuple):
        parts = (*result[:key], part, *result[key + 1 :])
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    other = copy.copy(result)
    if isinstance(result, Mapping | list):
        other[key] = part
    else:
        object.__setattr__(other, key, part)  # a frozen dataclass, too
    return other


def hooked(*handles: torch.utils.hooks.RemovableHandle) -> contextlib.AbstractContextManager[None]:
    """Remove hooks at the end."""

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return restoring(remove)


def feeding_layers(model: nn.Module, forward: Callable[[], Any]) -> tuple[list[tuple[str, str]], Any]:
    """Return (layer, BatchNorm) names where the BatchNorm's input is the layer's own output, and what `forward` returned.

    Layers and BatchNorms that run more than once are left out. Whether the layer's output is read elsewhere too is not
    checked.

    Args:
        model: in eval mode.
        forward: runs it.
    """
    outputs: dict[int, tuple[str, Tensor, int]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, result: Tensor) -> None:
            outputs[id(result)] = (name, result, result._version)
            runs[name] = runs.get(name, 0) + 1

        return hook

    def match(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: object) -> None:
            runs[name] = runs.get(name, 0) + 1
            if not args:  # called by keyword
                return
            source = outputs.get(id(args[0]))
            # Whatever changed the output in place stands between the two.
            if source is None or source[2] != args[0]._version:
                return
            # A linear layer's features are the last dimension, a BatchNorm1d's the second: they agree in 2-D only.
            if args[0].ndim == 2 or isinstance(model.get_submodule(source[0]), CONVOLUTIONS):
                pairs.append((source[0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if type(module) in (*CONVOLUTIONS, nn.Linear):
            handles.append(module.register_forward_hook(remember(name)))
        elif isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            handles.append(module.register_forward_hook(match(name)))
    with hooked(*handles):
        result = forward()
    return [pair for pair in pairs if runs[pair[0]] == 1 == runs[pair[1]]], result
