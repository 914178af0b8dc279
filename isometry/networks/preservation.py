"""What a network and the process hold, lent and put back: modes, gradients' flags, buffers, hooks, random states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "evaluating",
    "modes_preserved",
    "random_preserved",
    "random_states_of",
    "requires_grad_preserved",
    "restoring",
    "state_preserved",
]


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


def random_states_of(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put back the states of the global generators, those of the devices of a network among them."""
    tensors = (*model.parameters(), *model.buffers())
    return random_preserved(list({tensor.device for tensor in tensors if tensor.device.type == "cuda"}))


@contextlib.contextmanager
def state_preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` in eval mode with parameters that take no gradient, and put everything back afterwards.

    Every module's own mode, every `requires_grad`, buffers, hooks, tensors that modules hold and the global random states
    (torch's, NumPy's and Python's) come out as they went in, whatever happens meanwhile (an interrupt included).
    """
    with (
        _buffers_preserved(model),
        _attributes_preserved(model),
        random_states_of(model),
        evaluating(model),
        requires_grad_preserved(model, False),
    ):
        yield model
