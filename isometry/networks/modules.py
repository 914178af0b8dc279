"""Any network's modules: their kinds, eval mode lent and put back, hooks, copies."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isometry.networks.attention import can_lose_heads

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "UNIT_LAYERS",
    "clone",
    "clone_output",
    "evaluating",
    "feeding_layers",
    "hooked",
    "is_transposed",
    "is_transposed_linear",
    "modes_preserved",
    "requires_grad_preserved",
    "state_preserved",
    "unit_weight",
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


def unit_weight(layer: nn.Module) -> tuple[str, int] | None:
    """Return the name of the parameter that makes a layer's units and its dimension of units; None for other modules.

    Beside linear layers and convolutions these are a MultiheadAttention, whose units are its rows for queries, keys and
    values, and the transposed linear layer (`Conv1D`) of Hugging Face's GPT-2.
    """
    if isinstance(layer, UNIT_LAYERS):
        return "weight", int(is_transposed(layer))
    if can_lose_heads(layer):
        return "in_proj_weight", 0
    return ("weight", 1) if is_transposed_linear(layer) else None


def is_transposed_linear(layer: nn.Module) -> bool:
    """Whether a module is the linear layer of Hugging Face's GPT-2, whose weight is [inputs, units]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and hasattr(layer, "weight")


@contextlib.contextmanager
def modes_preserved(*models: nn.Module) -> Iterator[None]:
    """Give every module of the models its own train or eval mode back afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Lend the models in eval mode; afterwards every module has its own mode again."""
    with modes_preserved(*models):
        for model in models:
            model.eval()
        yield


@contextlib.contextmanager
def requires_grad_preserved(model: nn.Module, requires_grad: bool) -> Iterator[None]:
    """Set `requires_grad` of every parameter; afterwards each has its own flag again."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in flags:
            parameter.requires_grad_(requires_grad)
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _buffers_preserved(model: nn.Module) -> Iterator[None]:
    """Put back the values of buffers that were written, and the buffers that were bound anew."""
    values = {buffer: (buffer._version, buffer.clone()) for buffer in model.buffers()}
    bindings = {module: dict(module._buffers) for module in model.modules()}
    try:
        yield
    finally:
        for module, binding in bindings.items():
            module._buffers.update(binding)
        with torch.no_grad():
            for buffer, (version, value) in values.items():
                # Kernels (batch_norm's) may write without counting a version.
                if buffer._version != version or not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextlib.contextmanager
def _random_preserved(devices: list[torch.device]) -> Iterator[None]:
    """Put back the states of torch's, NumPy's and Python's global generators."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def state_preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` in eval mode with parameters that take no gradient, and put everything back afterwards.

    Every module's own mode, every `requires_grad`, the values of the buffers and the global random states (torch's,
    NumPy's and Python's) come out as they went in, whatever happens meanwhile (an interrupt included).
    """
    tensors = (*model.parameters(), *model.buffers())
    devices = list({tensor.device for tensor in tensors if tensor.device.type == "cuda"})
    with (
        _buffers_preserved(model),
        _random_preserved(devices),
        evaluating(model),
        requires_grad_preserved(model, False),
    ):
        yield model


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
    """Return a deep copy, also of a network that holds weights computed from others (masks, weight normalization).

    Args:
        model: any network.
        memo: {id: object} of what the copy shares with the original, as `copy.deepcopy` takes it.
    """
    memo = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def clone_output(result: Any) -> Any:
    """Return a module's result with a copy of its first tensor in its place, for what follows to change."""
    if isinstance(result, Tensor):
        return result.clone()
    if type(result) in (tuple, list) and result and isinstance(result[0], Tensor):
        return type(result)((result[0].clone(), *result[1:]))
    return result


@contextlib.contextmanager
def hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
