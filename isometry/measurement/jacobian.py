"""Jacobian: a differentiable function at B samples, seen as B linear maps, by the best route that it supports."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isometry.errors import AdjointError, NonFiniteError, is_out_of_memory
from isometry.measurement.differences import central_difference, jacobian_by_differences
from isometry.spectra import Operator

__all__ = ["BACKWARD", "CHECK", "FORWARD", "AdjointError", "Jacobian", "NonFiniteError"]

BACKWARD = ("batched", "loop", "replicated", "one by one", "differences")
"""Routes to Jᵀu, from the first tried to the last resort."""
FORWARD = ("linearize", "double vjp", "jvp", "differences")
"""Routes to J v, likewise; "linearize" pays off only over very many products and is tried where those are expected."""
CHECK = 2
"""Products per sample that compare J with Jᵀ before the first product J v."""

_LINEARIZE_FROM = 200


class Jacobian(Operator):
    """The Jacobians d output / d input of `function` at every sample of a batch, from one forward pass.

    Outputs and inputs are flattened: m output entries, n input entries per sample. Samples must not influence each
    other. When a route fails (an operation without the derivative it needs, a graph that cannot be used twice), the
    next one of the ladder is taken, and `routes` says which ones were used.

    Args:
        function: inputs [B, ...] -> outputs [B, ...].
        inputs: [B, ...], floating point: where `function` is differentiated.
        backward: start the ladder for Jᵀu at this route; None starts at "batched" on CUDA, at "loop" elsewhere.
        forward: start the ladder for J v at this route; None starts at "double vjp".
        select: indices of samples [b] (which may repeat) -> `function` for those samples alone, where it holds the other
            inputs of all samples; None where `function` takes any number of samples.
        expected: approximate number of products J v that will be needed; very many make "linearize" worth its set-up.

    Raises:
        NonFiniteError: an output or a gradient is NaN or infinite.
        AdjointError: by no route is J the transpose of Jᵀ.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        inputs: Tensor,
        *,
        backward: str | None = None,
        forward: str | None = None,
        expected: int = 0,
        select: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self.function = function
        self.select = select or (lambda samples: function)
        self.inputs = inputs.detach().requires_grad_(True)
        with torch.enable_grad():
            # The clone lets a function change its argument in place.
            self.outputs = function(self.inputs.clone())
        if not bool(torch.isfinite(self.outputs).all()):
            raise NonFiniteError("outputs")
        self.batch = len(inputs)
        self.rows, self.columns = self.outputs[0].numel(), inputs[0].numel()
        self.dtype, self.device = inputs.dtype, inputs.device
        self.products = 0.0
        self.chunk = 8
        self.routes: set[str] = set()
        self.backward = backward or ("batched" if inputs.is_cuda else "loop")
        self.forward = forward or ("linearize" if expected >= _LINEARIZE_FROM else "double vjp")
        self._pushed: Callable[[Tensor], Tensor] | None = None

    def rmatvec(self, u: Tensor) -> Tensor:
        """Apply Jᵀ to k vectors: u [B, k, m] -> [B, k, n], each about one backward pass."""
        self.products += u.shape[1]
        if not self.outputs.requires_grad:
            return u.new_zeros(self.batch, u.shape[1], self.columns).to(self.dtype)
        while True:
            try:
                result = self._pull(u.to(self.outputs))
            except (RuntimeError, NotImplementedError) as error:
                self.backward = self._next(BACKWARD, self.backward, error)
                continue
            self.routes.add(self.backward)
            if not bool(torch.isfinite(result).all()):
                raise NonFiniteError("gradient")
            return result

    def _pull(self, u: Tensor) -> Tensor:
        count = u.shape[1]
        cotangents = u.reshape(self.batch, count, *self.outputs.shape[1:])
        if self.backward == "differences":
            return u.to(self.dtype) @ jacobian_by_differences(self.function, self.inputs.detach(), self.rows)
        result = torch.empty(self.batch, count, self.columns, dtype=self.dtype, device=self.device)
        if self.backward == "loop":
            for k in range(count):
                result[:, k] = self.pullback(cotangents[:, k])[0].reshape(self.batch, -1)
        elif self.backward == "batched":
            for part in torch.arange(count).split(self.chunk):
                stacked = cotangents[:, part].transpose(0, 1)
                (gradient,) = torch.autograd.grad(
                    self.outputs, self.inputs, stacked, retain_graph=True, is_grads_batched=True, materialize_grads=True
                )
                result[:, part] = gradient.reshape(len(part), self.batch, -1).transpose(0, 1)
        elif self.backward == "replicated":
            for part in torch.arange(count).split(self.chunk):
                result[:, part] = self._afresh(torch.arange(self.batch), cotangents[:, part])
        else:
            for b in range(self.batch):
                for k in range(count):
                    result[b, k] = self._afresh(torch.tensor([b]), cotangents[b : b + 1, k : k + 1])[0, 0]
        return result

    def pullback(self, cotangent: Tensor, activations: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Return the gradients for one cotangent [B, ...], with respect to the inputs and to every activation."""
        return torch.autograd.grad(
            self.outputs, (self.inputs, *activations), cotangent, retain_graph=True, materialize_grads=True
        )

    def _afresh(self, samples: Tensor, cotangents: Tensor) -> Tensor:
        """Return [b, k, n] by a forward and a backward pass over samples repeated k times, keeping no graph."""
        count = cotangents.shape[1]
        repeated = samples.repeat_interleave(count)
        copies = self.inputs.detach()[repeated.to(self.device)].requires_grad_(True)
        with torch.enable_grad():
            # Plain backward: it runs where autograd.grad does not (re-entrant checkpointing).
            self.select(repeated)(copies.clone()).backward(cotangents.flatten(0, 1))
        assert copies.grad is not None
        return copies.grad.reshape(len(samples), count, -1)

    def matvec(self, v: Tensor) -> Tensor:
        """Apply J to k vectors: v [B, k, n] -> [B, k, m]."""
        self.products += v.shape[1]
        out = torch.zeros(self.batch, v.shape[1], self.rows, dtype=self.dtype, device=self.device)
        if not self.outputs.requires_grad:
            return out
        tangents = v.to(self.inputs).reshape(self.batch, v.shape[1], *self.inputs.shape[1:])
        while True:
            try:
                push = self._pushed or self._checked(self._pusher())
                for k in range(v.shape[1]):
                    out[:, k] = push(tangents[:, k]).detach().reshape(self.batch, -1)
            except (RuntimeError, NotImplementedError, TypeError, AdjointError) as error:
                self._pushed = None
                self.forward = self._next(FORWARD, self.forward, error)
                continue
            self._pushed = push
            self.routes.add(self.forward)
            if not bool(torch.isfinite(out).all()):
                raise NonFiniteError("gradient")
            return out

    def dense(self) -> Tensor:
        """Return J or Jᵀ as in `Operator`; where there are more outputs than inputs and no J is the transpose of Jᵀ, by Jᵀ.

        Cancellation can leave nothing but rounding errors of a sample's Jacobian, where groups of two are normalized for
        instance, and then no two routes agree.
        """
        try:
            return super().dense()
        except AdjointError:
            self.routes.add("Jᵀ alone")
            eye = torch.eye(self.rows, dtype=self.dtype, device=self.device)
            return self.rmatvec(eye.expand(self.batch, -1, -1)).mT

    def _checked(self, push: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return `push` if <u, J v> = <Jᵀu, v> for random signs u and v: a route can be wrong without an error.

        A once-differentiable function, for instance, silently drops out of a second backward pass; operations in place
        change what torch.func.linearize replays, so that it is right once only.
        """
        generator = torch.Generator().manual_seed(0)

        def signs(like: Tensor) -> Tensor:
            return (2.0 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like.detach())

        v, u = signs(self.inputs), signs(self.outputs)
        pushed = push(v).detach()
        again = push(v).detach() if self.forward == "linearize" else pushed
        pulled = self.rmatvec(u.reshape(self.batch, 1, -1)).view(self.inputs.shape)
        self.products += 2 if self.forward == "linearize" else 1

        def sums(x: Tensor) -> Tensor:  # in float64, as squares of small numbers vanish in float32
            return x.reshape(self.batch, -1).double().sum(1)

        gap = (sums(u.double() * pushed.double()).to(self.device) - sums(pulled.double() * v.double())).abs()
        # Either side is a sum of terms of random sign; its size is the norm of the terms, not their sum.
        size = (
            sums(pushed.double().square()).sqrt().to(self.device) + sums(pulled.double().square()).sqrt()
        ).clamp_min(1e-300)
        gap = torch.maximum(gap, sums((pushed - again).double().square()).sqrt().to(self.device))
        allowed = 2e-2 if self.forward == "differences" else 1e4 * torch.finfo(self.dtype).eps
        if bool((gap > allowed * size).any()):
            raise AdjointError(float((gap / size).max()))
        return push

    def _pusher(self) -> Callable[[Tensor], Tensor]:
        if self.forward == "linearize":
            with _quiet():
                return torch.func.linearize(self.function, self.inputs.detach())[1]
        if self.forward == "double vjp":
            # u -> Jᵀu is linear, so its own gradient along v is J v, at any u.
            dummy = torch.zeros_like(self.outputs, requires_grad=True)
            with torch.enable_grad():
                (pulled,) = torch.autograd.grad(
                    self.outputs, self.inputs, dummy, create_graph=True, materialize_grads=True
                )
            if not pulled.requires_grad:
                raise NotImplementedError("the backward pass has no derivative")
            return lambda v: torch.autograd.grad(pulled, dummy, v, retain_graph=True, materialize_grads=True)[0]
        if self.forward == "jvp":
            return self._jvp
        return partial(central_difference, self.function, self.inputs.detach())

    def _jvp(self, v: Tensor) -> Tensor:
        with _quiet(), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(self.function(forward_ad.make_dual(self.inputs.detach(), v))).tangent
        return torch.zeros_like(self.outputs) if tangent is None else tangent

    def _next(self, ladder: tuple[str, ...], route: str, error: BaseException) -> str:
        """Return the route to take after `route` failed; a batch of classes is halved first where memory ran out."""
        if is_out_of_memory(error):
            if ladder is BACKWARD and route in ("batched", "replicated") and self.chunk > 1:
                self.chunk //= 2
                if self.inputs.is_cuda:
                    torch.cuda.empty_cache()
                return route
            raise error
        if route == ladder[-1]:
            raise error
        return ladder[ladder.index(route) + 1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's own forward mode and tracing warn of in torch itself (deprecated internals)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
