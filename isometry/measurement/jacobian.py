"""Jacobian: a differentiable function at B leaves, seen as B linear maps, by the best route that it supports."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isometry.spectra import Operator

__all__ = ["BACKWARD", "FORWARD", "AdjointError", "Jacobian"]

BACKWARD = ("batched", "loop", "replicated", "one by one", "differences")
"""Routes to Jᵀu, from the first tried to the last resort."""
FORWARD = ("linearize", "double vjp", "jvp", "differences")
"""Routes to J v, likewise; `linearize` pays only over very many products and is tried where those are announced."""

_LINEARIZE_FROM = 200
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


class AdjointError(ArithmeticError):
    """<u, J v> and <Jᵀu, v> differ, by a share of their size: one of the two derivatives is wrong."""


class Jacobian(Operator):
    """The Jacobians d output / d leaf of `function` at every sample of a batch, from one forward pass.

    Outputs and leaf are flattened: m output entries, n leaf entries a sample. Samples must not influence each other.
    When a route fails (an operation without the derivative it needs, a graph that cannot be used twice), the next one
    of the ladder is taken, and `routes` says which ones were.

    Args:
        function: leaf [B, ...] -> outputs [B, ...].
        leaf: [B, ...], floating point.
        backward: start the ladder for Jᵀu at this route; None starts at "batched" on CUDA, at "loop" elsewhere.
        forward: start the ladder for J v at this route; None starts at "double vjp".
        among: indices of samples [b] (which may repeat) -> `function` for those samples alone, where it holds more of
            them than the leaf; None where `function` takes leaves of any number of samples.
        expected: about how many products J v will be asked for; very many make "linearize" worth its set-up.

    Raises:
        FloatingPointError: an output or a gradient is NaN or infinite; the message is "outputs" or "gradient".
        AdjointError: by no route is J the transpose of Jᵀ.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        leaf: Tensor,
        *,
        backward: str | None = None,
        forward: str | None = None,
        expected: int = 0,
        among: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self.function = function
        self.among = among or (lambda samples: function)
        self.leaf = leaf.detach().requires_grad_(True)
        with torch.enable_grad():
            # The clone lets a function change its argument in place.
            self.outputs = function(self.leaf.clone())
        if not bool(torch.isfinite(self.outputs).all()):
            raise FloatingPointError("outputs")
        self.batch = len(leaf)
        self.rows, self.columns = self.outputs[0].numel(), leaf[0].numel()
        self.dtype, self.device = leaf.dtype, leaf.device
        self.products = 0.0
        self.chunk = 8
        self.routes: set[str] = set()
        self.backward = backward or ("batched" if leaf.is_cuda else "loop")
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
                raise FloatingPointError("gradient")
            return result

    def _pull(self, u: Tensor) -> Tensor:
        count = u.shape[1]
        cotangents = u.reshape(self.batch, count, *self.outputs.shape[1:])
        if self.backward == "differences":
            return u.to(self.dtype) @ self._by_differences()
        result = torch.empty(self.batch, count, self.columns, dtype=self.dtype, device=self.device)
        if self.backward == "loop":
            for k in range(count):
                result[:, k] = self.pullback(cotangents[:, k])[0].reshape(self.batch, -1)
        elif self.backward == "batched":
            for part in torch.arange(count).split(self.chunk):
                stacked = cotangents[:, part].transpose(0, 1)
                (gradient,) = torch.autograd.grad(
                    self.outputs, self.leaf, stacked, retain_graph=True, is_grads_batched=True, materialize_grads=True
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

    def pullback(self, cotangent: Tensor, taps: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Return the gradients of one cotangent [B, ...] at the leaf and at every tapped activation."""
        return torch.autograd.grad(
            self.outputs, (self.leaf, *taps), cotangent, retain_graph=True, materialize_grads=True
        )

    def _afresh(self, samples: Tensor, cotangents: Tensor) -> Tensor:
        """Return [b, k, n] by a forward and a backward pass over samples repeated k times, keeping no graph."""
        count = cotangents.shape[1]
        repeated = samples.repeat_interleave(count)
        copies = self.leaf.detach()[repeated.to(self.device)].requires_grad_(True)
        with torch.enable_grad():
            # Plain backward: it runs where autograd.grad does not (re-entrant checkpointing).
            self.among(repeated)(copies.clone()).backward(cotangents.flatten(0, 1))
        assert copies.grad is not None
        return copies.grad.reshape(len(samples), count, -1)

    def matvec(self, v: Tensor) -> Tensor:
        """Apply J to k vectors: v [B, k, n] -> [B, k, m]."""
        self.products += v.shape[1]
        out = torch.zeros(self.batch, v.shape[1], self.rows, dtype=self.dtype, device=self.device)
        if not self.outputs.requires_grad:
            return out
        tangents = v.to(self.leaf).reshape(self.batch, v.shape[1], *self.leaf.shape[1:])
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
                raise FloatingPointError("gradient")
            return out

    def _checked(self, push: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return `push` if <u, J v> = <Jᵀu, v> for random signs u and v: a route can be wrong without an error.

        A once-differentiable function, for instance, silently drops out of a second backward pass; operations in place
        change what torch.func.linearize replays, so that it is right once only.
        """
        generator = torch.Generator().manual_seed(0)

        def signs(like: Tensor) -> Tensor:
            return (2.0 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like.detach())

        v, u = signs(self.leaf), signs(self.outputs)
        pushed = push(v).detach()
        again = push(v).detach() if self.forward == "linearize" else pushed
        pulled = self.rmatvec(u.reshape(self.batch, 1, -1)).view(self.leaf.shape)
        self.products += 2 if self.forward == "linearize" else 1

        def sums(x: Tensor) -> Tensor:
            return x.reshape(self.batch, -1).sum(1)

        gap = (sums(u * pushed).to(self.device) - sums(pulled * v)).abs()
        # Either side is a sum of terms of random sign; its size is the norm of the terms, not their sum.
        size = (sums(pushed.square()).sqrt().to(self.device) + sums(pulled.square()).sqrt()).clamp_min(1e-30)
        gap = torch.maximum(gap, sums((pushed - again).square()).sqrt().to(self.device))
        allowed = 2e-2 if self.forward == "differences" else 1e4 * torch.finfo(self.dtype).eps
        if bool((gap > allowed * size).any()):
            raise AdjointError(float((gap / size).max()))
        return push

    def _pusher(self) -> Callable[[Tensor], Tensor]:
        if self.forward == "linearize":
            with _quiet():
                return torch.func.linearize(self.function, self.leaf.detach())[1]
        if self.forward == "double vjp":
            # u -> Jᵀu is linear, so its own gradient along v is J v, at any u.
            dummy = torch.zeros_like(self.outputs, requires_grad=True)
            with torch.enable_grad():
                (pulled,) = torch.autograd.grad(
                    self.outputs, self.leaf, dummy, create_graph=True, materialize_grads=True
                )
            if not pulled.requires_grad:
                raise NotImplementedError("the backward pass has no derivative")
            return lambda v: torch.autograd.grad(pulled, dummy, v, retain_graph=True, materialize_grads=True)[0]
        if self.forward == "jvp":
            return self._jvp
        return self._difference

    def _jvp(self, v: Tensor) -> Tensor:
        with _quiet(), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(self.function(forward_ad.make_dual(self.leaf.detach(), v))).tangent
        return torch.zeros_like(self.outputs) if tangent is None else tangent

    @torch.no_grad()
    def _difference(self, v: Tensor) -> Tensor:
        """Return a central difference along v; relative error about eps^(2/3), 2e-5 in float32."""
        leaf = self.leaf.detach()
        # One step length a sample, relative to the size of leaf and direction.
        leaf_size, v_size = (x.reshape(self.batch, -1).abs().amax(1) for x in (leaf, v))
        step = torch.finfo(leaf.dtype).eps ** (1 / 3) * (leaf_size + 1) / v_size.clamp_min(1e-30)
        moved = step.reshape(-1, *[1] * (leaf.ndim - 1)) * v
        ends = [self.function(leaf + sign * moved) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step.reshape(-1, *[1] * (self.outputs.ndim - 1)).to(ends[0]))

    def _by_differences(self) -> Tensor:
        """Return J [B, m, n], column by column."""
        columns = torch.empty(self.batch, self.rows, self.columns, dtype=self.dtype, device=self.device)
        unit = torch.zeros_like(self.leaf, memory_format=torch.contiguous_format)
        for column in range(self.columns):
            unit.view(self.batch, -1)[:, column] = 1
            columns[..., column] = self._difference(unit).reshape(self.batch, -1)
            unit.view(self.batch, -1)[:, column] = 0
        return columns

    def _next(self, ladder: tuple[str, ...], route: str, error: BaseException) -> str:
        """Return the route to take after `route` failed; a batch of classes is halved first where memory ran out."""
        if out_of_memory(error):
            if ladder is BACKWARD and route in ("batched", "replicated") and self.chunk > 1:
                self.chunk //= 2
                if self.leaf.is_cuda:
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


@contextlib.contextmanager
def explained(nonfinite: Callable[[], str]) -> Iterator[None]:
    """Turn what goes wrong with the numbers of a Jacobian into a ValueError that says what to do."""
    try:
        yield
    except AdjointError as error:
        raise ValueError(
            f"measure() found <u, J v> and <Jᵀu, v> to differ by {error.args[0]:.1e} of their size: an operation of the "
            "model has a wrong derivative, is not deterministic or is computed in half precision. Check its custom autograd "
            "functions, or use measure(model, inputs, method='exact'), which needs Jᵀ alone."
        ) from error
    except FloatingPointError as error:
        if str(error) != "gradient":
            raise ValueError(nonfinite()) from error
        raise ValueError(
            "measure() found a Jacobian with NaN or infinite entries although the outputs are finite: an operation of the "
            "network has no derivative at these inputs (sqrt or norm at 0, for instance). Shift the inputs a little: "
            "measure(model, inputs + 1e-6 * torch.randn_like(inputs))."
        ) from error
