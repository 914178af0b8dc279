"""The peak memory and the time of a computation, in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["can_measure_memory", "peak_memory", "use"]

_STATUS = Path("/proc/self/status")


def can_measure_memory() -> bool:
    """Whether `peak_memory` works here: on Linux only."""
    return _STATUS.exists()


def peak_memory(call: Callable[..., object], warm_up: Callable[..., object], *arguments: Any) -> float:
    """Return the growth of the peak memory of a fresh process over one call, in MiB; see `use`."""
    return use(call, warm_up, *arguments)[0]


def use(
    call: Callable[..., object], warm_up: Callable[..., object], *arguments: Any, timeout: float = 3600
) -> tuple[float, float]:
    """Return the growth of the peak memory of a fresh process over one call, in MiB, and its CPU seconds.

    CPU seconds, user and system of all threads, depend little on what else the machine does.

    Args:
        call: a function of a module, called with `arguments`.
        warm_up: likewise, called before; what it loads does not count.
        arguments: anything that torch.save takes.
        timeout: seconds to wait.

    Raises:
        RuntimeError: the process ended without a result, out of memory for instance.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "arguments.pt")
        torch.save(arguments, file)
        process = context.Process(target=_measure_use, args=(call, warm_up, file, sender))
        process.start()
        sender.close()
        try:
            if not receiver.poll(timeout):
                raise RuntimeError(f"{call.__name__}{arguments} took longer than {timeout:g} s")
            growth, seconds = receiver.recv()
            process.join()
        except EOFError as error:
            process.join()
            raise RuntimeError(f"{call.__name__}{arguments} ended with exit code {process.exitcode}") from error
        finally:
            process.kill()
            process.join()
    return growth, seconds


def _measure_use(call: Callable[..., object], warm_up: Callable[..., object], file: str, sender: Any) -> None:
    arguments = torch.load(file, weights_only=False)
    warm_up(*arguments)
    before, start = _high_water(), time.process_time()
    call(*arguments)
    sender.send((_high_water() - before, time.process_time() - start))


def _high_water() -> float:
    """Return the peak memory of this process in MiB. Not by getrusage, whose maximum starts from the parent's size."""
    return float(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[0]) / 1024
