"""Modes that a network or torch may be in when a verb is called, and measurements in them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from isometry.measurement import measure
from isometry.measurement.report import Report
from isometry.trials.faults.restarts import CRASHED, REFUSED, SAME, WRONG
from isometry.trials.faults.specimens import Specimen
from isometry.trials.faults.surroundings import changes, record

__all__ = ["MODES", "measure_in", "mixed"]


@contextlib.contextmanager
def _hooked(model: nn.Module) -> Iterator[None]:
    """Register a forward hook, a hook before it and one of gradients on every module."""
    handles = [
        register(lambda *_: None)
        for module in model.modules()
        for register in (
            module.register_forward_hook,
            module.register_forward_pre_hook,
            module.register_full_backward_hook,
        )
    ]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def mixed(model: nn.Module) -> Iterator[None]:
    """Put every other module in train mode and freeze every other parameter."""
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    yield


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put all modules in train mode."""
    model.train()
    yield


@contextlib.contextmanager
def _with_gradients(model: nn.Module) -> Iterator[None]:
    """Give every parameter a gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    yield


@contextlib.contextmanager
def _settings(model: nn.Module) -> Iterator[None]:
    """Set what torch has settings for: deterministic algorithms, precision, kernels, threads, warnings."""
    backends: Any = torch.backends
    threads, attention = torch.get_num_threads(), backends.cuda.math_sdp_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.enabled, backends.cudnn.benchmark = False, True
    backends.cuda.enable_math_sdp(False)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("ignore")
        yield
    backends.cuda.enable_math_sdp(attention)
    backends.cudnn.enabled, backends.cudnn.benchmark = True, False
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@contextlib.contextmanager
def _default_dtype(model: nn.Module) -> Iterator[None]:
    """Make float64 the default."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[nn.Module], contextlib.AbstractContextManager[Any]]] = {
    "eval mode": lambda _: contextlib.nullcontext(),
    "train mode": _training,
    "mixed modes, frozen parameters": mixed,
    "gradients present": _with_gradients,
    "hooks on every module": _hooked,
    "torch.no_grad": lambda _: torch.no_grad(),
    "torch.autocast": lambda _: torch.autocast("cpu", torch.bfloat16),
    "torch.inference_mode": lambda _: torch.inference_mode(),
    "settings of torch": _settings,
    "float64 by default": _default_dtype,
}


def measure_in(mode: str, specimen: Specimen, **options: Any) -> str:
    """Measure a network in a mode and in none, and return what came of it.

    Args:
        mode: one of `MODES`.
        specimen: the network.
        options: of `measure`.

    Returns:
        Wrong also where something has changed, or where the measurement was refused in no mode and not in this one.
    """

    def attempt(model: nn.Module) -> Report | Exception:
        try:
            return measure(model, inputs, progress=False, **specimen.options, **options)
        except Exception as error:
            return error

    model, inputs = specimen.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attempt(specimen.make()[0])
        with MODES[mode](model):
            before = record(model)
            found = attempt(model)
            changed = changes(before, record(model))
    if isinstance(found, Exception):
        named = isinstance(found, ValueError | TypeError) and str(found).startswith("measure() ")
        return WRONG if changed else REFUSED if named else CRASHED
    same = isinstance(expected, Report) and np.isclose(found.mean_jsv, expected.mean_jsv, rtol=1e-5, atol=0)
    return SAME if same and not changed else WRONG
