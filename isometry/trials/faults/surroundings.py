"""What a call must leave as it found it: networks in every detail, and the settings of torch, NumPy and Python."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["changes", "record"]

_TQDM = "tqdm_monitor"  # one daemon for all progress bars of a process, started by the first
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def record(*models: nn.Module) -> dict[str, Any]:
    """Return what a call must leave as it was, by name, in copies; see `changes`.

    Of every module: its identity, mode, hooks and attributes; of every parameter and buffer: its identity, values, layout,
    flags and gradient. Of the process: random states, default dtype and device, gradient modes, autocast, precisions,
    kernels, threads, warning filters, signal handlers, and the stacks of torch's modes and transforms.
    """
    found: dict[str, Any] = dict(_process())
    for index, model in enumerate(models):
        for name, module in model.named_modules(remove_duplicate=False):
            found |= {f"model {index}: {name or 'itself'}: {key}": value for key, value in _module(module)}
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs between two results of `record`."""
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if name not in before or name not in after or not _same(before[name], after[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        kinds = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
        return kinds and torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # NaN equals itself
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(np.array_equal(one, other))


def _module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield "identity", id(module)
    for key, value in vars(module).items():
        if isinstance(value, dict) and key in ("_parameters", "_buffers"):
            for name, tensor in value.items():
                yield name, _tensor(tensor, identity=True)
        elif isinstance(value, dict):  # hooks, modules
            yield key, tuple((str(name), id(entry)) for name, entry in value.items())
        elif isinstance(value, _PLAIN):
            yield key, value
        elif isinstance(value, Tensor):  # computed from others in every pass, by weight normalization for instance
            yield key, _tensor(value, identity=False)
        else:
            yield key, id(value)


def _tensor(tensor: Tensor | None, *, identity: bool) -> Any:
    if tensor is None:
        return None
    values = tensor.detach().clone().contiguous().reshape(-1)
    if not identity:
        return values
    hooks = tuple((getattr(tensor, "_backward_hooks", None) or {}).keys())
    flags = (id(tensor), str(tensor.dtype), str(tensor.device), tensor.shape, tensor.stride(), tensor.requires_grad)
    return *flags, hooks, values, _gradient(tensor)


def _gradient(tensor: Tensor) -> Any:
    gradient = tensor.grad if tensor.is_leaf else None
    return None if gradient is None else (id(gradient), gradient.detach().clone().reshape(-1))


def _process() -> Iterator[tuple[str, Any]]:
    yield "torch's random state", torch.get_rng_state()
    yield "NumPy's random state", repr(np.random.get_state())  # noqa: NPY002
    yield "Python's random state", repr(random.getstate())
    for kind in ("cpu", "cuda"):
        yield f"autocast on {kind}", (torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind)))
    backends: Any = torch.backends
    settings = {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": (torch.get_num_threads(), tuple(sorted(t.name for t in threading.enumerate() if t.name != _TQDM))),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast's cache": torch.is_autocast_cache_enabled(),
        "deterministic algorithms": torch.get_deterministic_debug_mode(),
        "precision of products": torch.get_float32_matmul_precision(),
        "cuDNN": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "oneDNN": backends.mkldnn.enabled,
        "attention kernels": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "warning filters": repr(warnings.filters),
        "NumPy's errors": repr(np.geterr()),
        "handler of SIGINT": id(signal.getsignal(signal.SIGINT)),
        "garbage collection": gc.isenabled(),
        "environment": repr(sorted(os.environ.items())),
        "working folder": os.getcwd(),
    }
    yield from settings.items()
    yield from _stacks()


def _stacks() -> Iterator[tuple[str, Any]]:
    """Yield what torch's own context managers push and pop, and hooks on all modules."""
    core: Any = torch._C
    yield "transforms", core._functorch.peek_interpreter_stack() is None
    yield "modes", (core._len_torch_function_stack(), core._len_torch_dispatch_stack())
    yield "forward differentiation", forward_ad._current_level
    for name, hooks in vars(nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield name, tuple(hooks)
