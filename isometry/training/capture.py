"""Captured steps: the gradients of a training step as one CUDA graph, launched at once instead of kernel by kernel.

A network of many small layers, such as ResNet-56 on 32x32 images, leaves a GPU waiting for the next kernel to be launched.
Captured are the forward pass, the loss, the regularizer and the backward pass. What depends on the number of the step stays
outside: augmentation, penalties, the optimizer with its learning rate, projections, and the sums over the epoch.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isometry.data.nests import map_tensors, tensors_in
from isometry.networks.preservation import restoring

__all__ = ["CapturedGradients", "Result", "capture_steps"]

_WARM_UP = 3  # steps before a capture, in which libraries choose their kernels and allocate what they keep
_TOLERANCE = {False: 1e-3, True: 1e-2}  # by whether the network runs in bfloat16; rounding alone stays far below
_captures: ContextVar[bool] = ContextVar("captures", default=False)


class Result(NamedTuple):
    """What the gradients of a step leave besides them.

    Attributes:
        outputs: of the network.
        targets: as the loss took them.
        loss: a scalar, without the regularizer.
    """

    outputs: Any
    targets: Any
    loss: Tensor


@contextlib.contextmanager
def capture_steps(enabled: bool = True) -> Iterator[None]:
    """Let trainings that begin inside, of networks on a CUDA device, replay their steps from a CUDA graph.

    Results agree with those of ordinary steps to rounding: the first captured step is taken both ways and compared. Where
    they differ, where a step waits for the device, or where a penalty has a loss of its own, the training goes on with
    ordinary steps, and a warning says why. What a replay does not do is run Python code: networks, losses and regularizers
    must do the same in every step, without hooks that count or coins that Python throws.

    Args:
        enabled: False is for trainings that another `capture_steps` around this one would capture.
    """
    token = _captures.set(enabled)
    try:
        yield
    finally:
        _captures.reset(token)


class CapturedGradients:
    """A function that computes gradients, replayed from a CUDA graph where that has been asked for and is possible.

    Args:
        compute: (inputs, targets) -> `Result`; sets the gradients of the parameters anew.
        model: the network; captured again whenever its parameters or buffers have moved.
        device: where it is.
        autocast: whether it runs in bfloat16.
    """

    def __init__(
        self, compute: Callable[[Any, Any], Result], model: nn.Module, device: torch.device, *, autocast: bool
    ) -> None:
        self._compute, self._model, self._device = compute, model, device
        self._tolerance = _TOLERANCE[autocast]
        self.active = _captures.get() and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.active else None
        self._layout: list[tuple[Any, ...]] | None = None  # of the batches that are captured: that of the first one
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: Any = None
        self._result: Result | None = None
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        self._places: list[tuple[int, bool]] = []

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Compute on the stream that is captured; forget the graph if parameters or buffers have moved since."""
        if self._stream is None:
            yield
            return
        if self._graph is not None and self._places != self._find_places():
            self.release()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def release(self) -> None:
        """Let go of the graph and of its memory but for the gradients, which the parameters keep."""
        self._graph = self._static = self._result = None
        self._gradients = []

    def give_up(self, reason: str) -> None:
        """Go on with ordinary steps, and say so."""
        self.active = False
        self.release()
        warnings.warn(f"train() goes on without a CUDA graph: {reason}.", stacklevel=2)

    def __call__(self, inputs: Any, targets: Any) -> Result:
        """Set the gradients of the parameters, and return what the step leaves besides them.

        The tensors of a result that was replayed are written again by the next replay.
        """
        if not self.active:
            return self._compute(inputs, targets)
        layout = _layout([inputs, targets])
        self._layout, self._steps = self._layout or layout, self._steps + 1
        if layout != self._layout or self._steps <= _WARM_UP:
            return self._compute(inputs, targets)
        if self._graph is None:
            return self._first(inputs, targets)
        return self._replay(inputs, targets)

    def _first(self, inputs: Any, targets: Any) -> Result:
        """Take a step both ways; go on with the graph where both agree, else as if there had been none."""
        before = _State(self._model, self._device)
        try:
            with _waiting_refused():
                expected = self._compute(inputs, targets)
        except (RuntimeError, ValueError, TypeError) as error:
            before.restore()
            result = self._compute(inputs, targets)  # raises what has nothing to do with waiting
            self.give_up(f"a step waits for the device, or does what cannot be captured ({error})")
            return result
        gradients = [p.grad for p in self._parameters()]  # the capture puts its own in their places
        if not bool(torch.isfinite(expected.loss)):
            return expected
        after = _State(self._model, self._device)
        before.restore()
        try:
            self._capture(inputs, targets)
            result = self._replay(inputs, targets)
            if (distance := self._distance(result, expected, gradients)) <= self._tolerance:
                return result
            reason = f"its gradients differ from those of the same step without it by a relative {distance:.1e}"
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"the capture failed ({error})"
        after.restore()
        for p, gradient in zip(self._parameters(), gradients, strict=True):
            p.grad = gradient
        self.give_up(reason)
        return expected

    def _capture(self, inputs: Any, targets: Any) -> None:
        self._static = map_tensors((inputs, targets), torch.clone)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = self._compute(*self._static)
        self._gradients = [(p, p.grad) for p in self._parameters()]
        self._graph, self._places = graph, self._find_places()

    def _replay(self, inputs: Any, targets: Any) -> Result:
        for static, tensor in zip(tensors_in(self._static), tensors_in((inputs, targets)), strict=True):
            static.copy_(tensor)
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        for p, gradient in self._gradients:
            p.grad = gradient  # an ordinary step between two replays has put its own there
        return self._result

    def _distance(self, result: Result, expected: Result, gradients: list[Tensor | None]) -> float:
        """Return the largest relative difference, of the loss and of all gradients together; inf where one is missing."""
        found = [p.grad for p in self._parameters()]
        if any((a is None) != (b is None) for a, b in zip(found, gradients, strict=True)):
            return math.inf
        pairs = [(a, b) for a, b in zip(found, gradients, strict=True) if a is not None and b is not None]
        apart = torch.stack([(a - b).double().square().sum() for a, b in pairs]).sum().sqrt()
        size = torch.stack([b.double().square().sum() for _, b in pairs]).sum().sqrt()
        loss = ((result.loss - expected.loss).abs() / expected.loss.abs().clamp_min(1e-12)).double()
        worst = float(torch.maximum(apart / size.clamp_min(1e-30), loss))
        return math.inf if math.isnan(worst) else worst

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]

    def _find_places(self) -> list[tuple[int, bool]]:
        """Return the addresses that a graph reads and writes, and which parameters are trained."""
        return [(t.data_ptr(), t.requires_grad) for t in (*self._model.parameters(), *self._model.buffers())]


class _State:
    """What a step changes besides gradients: buffers, and the device's generator."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._random = torch.cuda.get_rng_state(device)

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, value in self._buffers:
            buffer.copy_(value)
        torch.cuda.set_rng_state(self._random, self._device)


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """Raise an error where the host waits for the device: a capture would end in a state that torch does not leave."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    with restoring(lambda: torch.cuda.set_sync_debug_mode(mode)):
        yield


def _layout(values: Any) -> list[tuple[Any, ...]]:
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors_in(values)]
