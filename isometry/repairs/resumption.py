"""Resumption: a network run over many samples part by part, batch by batch, without beginning anew at every part."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data.nests import count_samples, tensors_in
from isometry.networks.modules import call, hooked, output_leaves

__all__ = ["Course", "Passes", "Stop", "find_cuts", "follow"]

_IN_MEMORY = 2**30  # bytes of activations that are kept in memory; more of them go to a file


class Stop(BaseException):  # no Exception: a network that catches errors is not to catch it
    """Raised in a hook to end a forward pass."""


@dataclass(frozen=True)
class Course:
    """How a network runs.

    Attributes:
        inputs: of the run.
        outputs: {module that runs once: what it returns}, in the order in which modules finish.
        before: {module: how many modules of `outputs` have finished when it starts}.
        result: what the network returns.
    """

    inputs: Any
    outputs: dict[str, Any]
    before: dict[str, int]
    result: Any


def follow(model: nn.Module, inputs: Any) -> Course:
    """Run a network at inputs, a tensor [B, ...] or a tuple or dict of its arguments, and return its course."""
    finished: list[tuple[str, Any]] = []
    starts: dict[str, int] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            starts.setdefault(name, len(finished))

        return hook

    def leave(name: str) -> Callable[..., None]:
        return lambda module, args, result: finished.append((name, result))

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in named]
    handles += [module.register_forward_hook(leave(name)) for name, module in named]
    with hooked(*handles):
        result = call(model, inputs)
    names = [name for name, _ in finished]
    once = {name: output for name, output in finished if names.count(name) == 1}
    return Course(inputs, once, {name: sum(n in once for n in names[:count]) for name, count in starts.items()}, result)


@contextlib.contextmanager
def _resumed(model: nn.Module, course: Course, cut: str, output: Tensor) -> Iterator[Any]:
    """Let a module return `output`, and all that finish before it what they return in `course`, without computing.

    Yields the inputs to call the network with, those of the course.
    """
    returned = {}
    for name, result in course.outputs.items():
        returned[name] = output if name == cut else result
        if name == cut:
            break
    modules = [(model.get_submodule(name), result) for name, result in returned.items()]
    own = [(module, vars(module).get("forward")) for module, _ in modules]
    try:
        for module, result in modules:
            vars(module)["forward"] = lambda *args, result=result, **kwargs: result
        yield course.inputs
    finally:
        for module, forward in own:
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def find_cuts(model: nn.Module, course: Course, inputs: Any, layers: Sequence[str]) -> list[str | None]:
    """Return, for every layer, a module that finishes before it and that everything passes through; None where none is found.

    That is tried: with the outputs of the modules before it those of another input, the network must return the same. One
    module is tried for every layer, the largest one since the last cut.

    Args:
        model: in eval mode.
        course: of the network at another single sample.
        inputs: of several samples.
        layers: in the order in which they start.
    """
    full = follow(model, inputs)
    order = list(course.outputs)
    place = {name: index for index, name in enumerate(order)}
    largest = {name: sum(1 for _ in model.get_submodule(name).modules()) for name in order}
    cuts: list[str | None] = []
    cut, first, tried = None, 0, set()
    for layer in layers:
        candidates = [name for name in order[first : course.before[layer]] if name not in tried]
        if candidates:
            name = max(candidates, key=lambda name: (largest[name], place[name]))
            tried.add(name)
            if _separates(model, course, full, name):
                cut, first = name, place[name] + 1
        cuts.append(cut)
    return cuts


def _separates(model: nn.Module, course: Course, full: Course, name: str) -> bool:
    """Whether the network returns the same from the output of a module alone, with the inputs of another course."""
    output = full.outputs.get(name)
    if not isinstance(output, Tensor) or not output.ndim or len(output) != count_samples(full.inputs):
        return False
    try:
        with _resumed(model, course, name, output.clone()) as inputs:
            result = call(model, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    pairs = list(zip(output_leaves(full.result), output_leaves(result), strict=False))
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return bool(tensors) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * a.abs().max()) for a, b in tensors
    )


class Passes:
    """Forward passes of a network over batches, each of them from the last cut on.

    What the cut returns for every batch is kept, in memory or, where that is too much, in a temporary file.

    Args:
        model: in eval mode.
        course: of the network at a single sample.
        batches: inputs, a tensor [B, ...] or a tuple or dict of arguments each.
    """

    def __init__(self, model: nn.Module, course: Course, batches: Sequence[Any]) -> None:
        self.model, self.course, self.batches = model, course, batches
        self._cut: str | None = None
        self._kept: list[Tensor] = []

    def run(self) -> Iterator[int]:
        """Yield the number of every batch after a forward pass, which a hook may have ended by `Stop`."""
        for number, batch in enumerate(self.batches):
            with contextlib.suppress(Stop):
                if self._cut is None:
                    call(self.model, batch)
                else:
                    output = self._kept[number].to(tensors_in(batch)[0].device, copy=True)
                    with _resumed(self.model, self.course, self._cut, output) as inputs:
                        call(self.model, inputs)
            yield number

    def advance(self, cut: str) -> None:
        """Make a module later than the present cut the next one."""
        last: list[Tensor] = []

        def keep(_: nn.Module, args: object, result: Tensor) -> None:
            last.append(result)
            raise Stop

        with hooked(self.model.get_submodule(cut).register_forward_hook(keep)):
            for number in self.run():
                output = last.pop()
                spill = output.numel() * output.element_size() * len(self.batches) > _IN_MEMORY
                self._kept[number : number + 1] = [_in_file(output) if spill else output.cpu()]
        self._cut = cut


def _in_file(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor whose memory is a temporary file, which goes with it."""
    with tempfile.NamedTemporaryFile() as file:
        flat = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    dense = tensor.contiguous() if tensor.stride() != torch.empty_like(tensor).stride() else tensor
    return flat.as_strided(dense.size(), dense.stride()).copy_(dense)
