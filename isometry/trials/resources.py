"""The peak memory of a computation."""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["can_measure_memory", "peak_memory"]

_STATUS = Path("/proc/self/status")


def can_measure_memory() -> bool:
    """Whether `peak_memory` works here: on Linux only."""
    return _STATUS.exists()


def peak_memory(call: Callable[..., object], warm_up: Callable[..., object], *arguments: Any) -> float:
    """Return the growth of the peak memory of a fresh process over one call, in MiB.

    Args:
        call: a function of a module, called with `arguments`.
        warm_up: likewise, called before; what it loads does not count.
        arguments: anything that torch.save takes.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "arguments.pt")
        torch.save(arguments, file)
        process = context.Process(target=_measure_growth, args=(call, warm_up, file, queue))
        process.start()
        growth = queue.get(timeout=600)
        process.join()
    return float(growth)


def _measure_growth(call: Callable[..., object], warm_up: Callable[..., object], file: str, queue: Any) -> None:
    arguments = torch.load(file, weights_only=False)
    warm_up(*arguments)
    before = _high_water()
    call(*arguments)
    queue.put(_high_water() - before)


def _high_water() -> float:
    """Return the peak memory of this process in MiB. Not by getrusage, whose maximum starts from the parent's size."""
    return float(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[0]) / 1024
