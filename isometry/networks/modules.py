"""Any network's modules: their kinds, eval mode lent and put back, hooks, copies."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "UNIT_LAYERS",
    "call",
    "clone",
    "clone_output",
    "evaluating",
    "feeding_layers",
    "first_tensor",
    "hooked",
    "is_transposed",
    "modes_preserved",
    "random_preserved",
    "replace_first_tensor",
    "requires_grad_preserved",
    "restoring",
    "state_preserved",
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
    """Return what a network gives at `inputs`: one argument, or a tuple of positional or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextlib.contextmanager
def restoring(restore: Callable[[], object]) -> Iterator[None]:
    """Call `restore`, which may be called twice, at the end; once more where an interrupt reaches it meanwhile."""
    try:
        yield
    finally:
        try:
            restore()
        except BaseException:
            restore()
            raise


def modes_preserved(*models: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Give every module of the models its own train or eval mode back afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}

    def restore() -> None:
        for module, mode in modes.items():
            module.training = mode

    return restoring(restore)


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

    def restore() -> None:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)

    with restoring(restore):
        for parameter in flags:
            parameter.requires_grad_(requires_grad)
        yield


def _buffers_preserved(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put back the values of buffers that were written, and the buffers that were bound anew."""
    values = {buffer: (buffer._version, buffer.clone()) for buffer in model.buffers()}
    bindings = {module: dict(module._buffers) for module in model.modules()}

    def restore() -> None:
        for module, binding in bindings.items():
            module._buffers.update(binding)
        with torch.no_grad():
            for buffer, (version, value) in values.items():
                # Kernels (batch_norm's) may write without counting a version.
                if buffer._version != version or not torch.equal(buffer, value):
                    buffer.copy_(value)

    return restoring(restore)


def _attributes_preserved(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put back hooks, and the tensors that modules hold as plain attributes."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    hooks = [
        (hooks, dict(hooks))
        for before in attributes.values()
        for name, hooks in before.items()
        if isinstance(hooks, dict) and "_hooks" in name
    ]

    def restore() -> None:
        for present, before in hooks:
            if present != before:
                present.clear()
                present.update(before)
        for module, before in attributes.items():
            now = vars(module)
            for name in {**before, **now}:
                if now.get(name) is before.get(name) or not isinstance(now.get(name, before.get(name)), Tensor):
                    continue
                if name in before:
                    now[name] = before[name]
                else:
                    del now[name]

    return restoring(restore)


def random_preserved(devices: Sequence[torch.device]) -> contextlib.AbstractContextManager[None]:
    """Put back the states of torch's, NumPy's and Python's global generators."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state, device_states = torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices}

    def restore() -> None:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        for device, device_state in device_states.items():
            torch.cuda.set_rng_state(device_state, device)

    return restoring(restore)


@contextlib.contextmanager
def state_preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` in eval mode with parameters that take no gradient, and put everything back afterwards.

    Every module's own mode, every `requires_grad`, buffers, hooks, tensors that modules hold and the global random states
    (torch's, NumPy's and Python's) come out as they went in, whatever happens meanwhile (an interrupt included).
    """
    tensors = (*model.parameters(), *model.buffers())
    devices = list({tensor.device for tensor in tensors if tensor.device.type == "cuda"})
    with (
        _buffers_preserved(model),
        _attributes_preserved(model),
        random_preserved(devices),
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
    if isinstance(result, Mapping):
        entries: Iterable[tuple[Any, Any]] = result.items()
    elif isinstance(result, tuple | list):
        entries = enumerate(result)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        entries = [(field.name, getattr(result, field.name)) for field in dataclasses.fields(result)]
    else:
        return None, result
    for key, part in entries:
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
