"""CUDA graphs without the hardware: kernels are recorded, and run again on the memory that they were recorded with.

As on a device, capturing computes nothing (what it wrote is put back, what it made holds NaN until the first replay), a
replay runs no Python code, and numbers that were no tensors stay what they were. Memory of intermediate results is not used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeStream:
    """A stream; all work is in order anyway."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, other: FakeStream) -> None:
        """Do nothing."""


class FakeGraph:
    """What `torch.cuda.CUDAGraph` is.

    Attributes:
        kernels: (function, arguments, keyword arguments, result) in the order of the capture.
        replays: how often it was replayed.
        made: all since the fake device was entered.
    """

    made: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        self.kernels: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self) -> None:
        """Run the kernels again, each on the memory of its capture."""
        self.replays += 1
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for function, args, kwargs, result in self.kernels:
                again = function(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if old.numel() and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorder(TorchDispatchMode):
    """Records kernels into a graph, and what the memory that they did not make held before."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[Any, Any]] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made | self.before:
                self.before[storage.data_ptr()] = (storage, storage.clone())
        result = func(*args, **kwargs)
        self.graph.kernels.append((func, args, kwargs, result))
        for tensor in _tensors(result):
            if (place := tensor.untyped_storage().data_ptr()) not in self.before:
                self.made.setdefault(place, tensor)
        return result

    def undo(self) -> None:
        """Leave the memory as if nothing had been computed."""
        for storage, content in self.before.values():
            storage.copy_(content)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for tensor in self.made.values():
                if tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)


def replacements(device: Any) -> dict[str, Any]:
    """Return what stands for functions and classes of torch.cuda, by name.

    Args:
        device: the fake device: its `capturing` says whether the host may wait, its `mode` what happens when it does.
    """

    @contextmanager
    def graph(
        graph: FakeGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        recorder, state = Recorder(graph), torch.get_rng_state()
        device.capturing = True
        try:
            with recorder:
                yield
        finally:
            device.capturing = False
            recorder.undo()
            torch.set_rng_state(state)

    FakeGraph.made.clear()
    return {
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "stream": lambda _: nullcontext(),
        "current_stream": FakeStream,
        "get_sync_debug_mode": lambda: device.mode,
        "set_sync_debug_mode": lambda mode: setattr(device, "mode", mode),
    }


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
