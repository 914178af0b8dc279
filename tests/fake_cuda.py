"""A second device without the hardware: tensors that say they are on CUDA, and do not mix with those that are not.

Everything is computed on the CPU. What is checked is what a missing `.to(device)` breaks: that operations get tensors of
one device (0-dimensional CPU tensors and CPU indices are allowed, as torch allows them), that NumPy gets CPU tensors, and
that generators belong to the device on which they draw; how often the host waits for the device; and what CUDA graphs do
with memory and numbers: a capture computes nothing, and a replay runs the captured kernels, and no Python code, on the
memory that they were captured with. Kernels, speed and streams of CUDA are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # looks at signatures when first imported: before they are changed here
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from tests import fake_graphs

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
_MOVES = ("to", "cpu", "cuda")
_TO_NUMPY = ("numpy", "__array__")
_WAITING = (
    "item",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "tolist",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
)
_ACROSS = (
    "copy_",
    "_has_compatible_shallow_copy_type",
    "__get__",
    "__set__",
    "__repr__",
    "__format__",
    "__deepcopy__",
    "backward",
)


class FakeCuda(TorchFunctionMode):
    """While entered, `.to("cuda")` and `device="cuda"` give tensors that count as CUDA's.

    Attributes:
        waits: how often the host has waited for the device: for a number, an unknown shape, a copy to or from pageable memory.
        mode: as `torch.cuda.set_sync_debug_mode` sets it; "error" refuses to wait.
        capturing: whether a graph is captured; it refuses, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: Any = WeakTensorKeyDictionary()
        self.waits, self.mode, self.capturing = 0, "default", False

    def _wait(self, name: str) -> None:
        self.waits += 1
        if self.mode == "error" or self.capturing:
            raise RuntimeError(f"{name}: called a synchronizing CUDA operation")

    def on_cuda(self, tensor: Tensor) -> bool:
        """Whether a tensor counts as CUDA's; inside a functorch transform, whether the one that it wraps does."""
        functorch = torch._C._functorch
        while tensor not in self.held and functorch.is_functorch_wrapped_tensor(tensor):
            tensor = functorch.get_unwrapped(tensor)
        return tensor in self.held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = (resolve_name(func) or getattr(func, "__qualname__", "")).removeprefix("torch.")
        last = name.rsplit(".", 1)[-1]
        if last == "__get__" and (found := self._attribute(name, args[0])) is not None:
            return found
        if name == "Tensor.get_device":
            return 0 if self.on_cuda(args[0]) else -1
        if last == "_parse_to" and args and isinstance(args[0], Tensor):  # of module.to(tensor)
            return (CUDA if self.on_cuda(args[0]) else CPU, *func(*args, **kwargs)[1:])
        if last in _MOVES and args and isinstance(args[0], Tensor):
            return self._moved(func, last, args, kwargs)
        if last in _TO_NUMPY and self.on_cuda(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if (last in _WAITING and self.on_cuda(args[0])) or self._picks(last, args):
            self._wait(name)
        given = kwargs.get("device")
        if given is not None:
            if last in ("tensor", "as_tensor") and torch.device(given).type == "cuda":
                self._wait(name)
            kwargs["device"] = CPU
            result, cuda = func(*args, **kwargs), torch.device(given).type == "cuda"
        else:
            self._refuse_mixed(name, last, tensors, args)
            first = args[0] if args and last in _ACROSS else None
            cuda = self.on_cuda(first) if isinstance(first, Tensor) else any(map(self.on_cuda, tensors))
            result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != ("cuda" if cuda else "cpu"):
            raise RuntimeError(f"{name}: expected a {'cuda' if cuda else 'cpu'} generator, got {generator.device}")
        if name == "Tensor.data.__set__":
            self._mark(args[0], self.on_cuda(args[1]))
        if cuda or given is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._mark(leaf, cuda)
        return result

    def _picks(self, last: str, args: Any) -> bool:
        """Whether entries are picked by a mask, so that their number is unknown until it is computed."""
        if last not in ("__getitem__", "__setitem__") or not self.on_cuda(args[0]):
            return False
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool and leaf.ndim for leaf in tree_leaves(args[1]))

    def _attribute(self, name: str, tensor: Tensor) -> Any:
        attribute = name.split(".")[-2]
        if attribute == "device":
            return CUDA if self.on_cuda(tensor) else None
        return {"is_cuda": self.on_cuda(tensor), "is_cpu": not self.on_cuda(tensor)}.get(attribute)

    def _moved(self, func: Callable[..., Tensor], last: str, args: Any, kwargs: Any) -> Tensor:
        source, *rest = args
        if last == "to" and (isinstance(kwargs.get("other", rest[0] if rest else None), Tensor)):
            cuda = self.on_cuda(kwargs.get("other", rest[0] if rest else None))
            result = func(*args, **kwargs)
        elif last == "to":
            wanted = {key: value for key, value in kwargs.items() if key != "copy"}
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **wanted)
            cuda = self.on_cuda(source) if device is None else device.type == "cuda"
            chosen = {"memory_format": layout} if layout is not None else {}
            result = func(source, CPU, dtype or source.dtype, non_blocking, kwargs.get("copy", False), **chosen)
        else:
            cuda, result = last == "cuda", source
        if cuda != self.on_cuda(source):
            self._wait(last)
            result = source.clone() if result is source else result
        self._mark(result, cuda)
        return result

    def _refuse_mixed(self, name: str, last: str, tensors: list[Tensor], args: Any) -> None:
        if last in _ACROSS:
            return
        if last in ("__getitem__", "__setitem__") and self.on_cuda(args[0]):  # indices may stay on the CPU
            moved = isinstance(args[1], Tensor) and last == "__setitem__" and args[2:] and isinstance(args[2], Tensor)
            tensors = [args[0], args[2]] if moved else [args[0]]
        there = [self.on_cuda(t) for t in tensors]
        if any(there) and not all(on or not t.ndim for on, t in zip(there, tensors, strict=True)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found at least two")

    def _mark(self, tensor: Tensor, cuda: bool) -> None:
        if cuda:
            self.held[tensor] = True
        else:
            self.held.pop(tensor, None)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Lend a fake CUDA device; its generator is the CPU's."""
    device = FakeCuda()
    subclass = torch.Tensor._make_subclass

    def parameter(
        kind: type, data: Tensor, *args: Any, **options: Any
    ) -> Tensor:  # what nn.Parameter calls, past the mode
        made = subclass(kind, data, *args, **options)
        device._mark(made, device.on_cuda(data))
        return made

    state = {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda new, *_: torch.set_rng_state(new),
    }
    state["get_device_name"] = lambda *_: "a fake"
    state |= fake_graphs.replacements(device)
    made_by = mock.patch.object(torch.Tensor, "_make_subclass", staticmethod(parameter))
    cudnn = mock.patch("torch.backends.cudnn.is_acceptable", return_value=False)
    with mock.patch.multiple(torch.cuda, **state), mock.patch("torch.cuda.empty_cache"), cudnn, made_by, device:
        yield device
