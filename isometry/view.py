"""View: a network seen as one differentiable function of one tensor, and what can be wrong with that."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["View", "frozen", "spared", "unwrapped"]

Batch = Tensor | tuple | list | Mapping
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` in eval mode with parameters that take no gradient, and put everything back afterwards.

    Every module's own mode, every `requires_grad`, the values of the buffers and the global random state come out as
    they went in, whatever happens meanwhile (an interrupt included).
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = {buffer: (buffer._version, buffer.clone()) for buffer in model.buffers()}
    bound = {module: dict(module._buffers) for module in model.modules()}
    devices = {p.device for p in (*flags, *buffers) if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            model.eval()
            for parameter in flags:
                parameter.requires_grad_(False)
            yield model
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
        for module, held in bound.items():
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, (version, value) in buffers.items():
                if buffer._version != version:
                    buffer.copy_(value)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


class View:
    """A network as a function of one tensor, the leaf [B, ...], to one output tensor [B, ...].

    Args:
        model: the network, to be used while `frozen`.
        output: which part of what it returns: a key, an index, an attribute's name or a function; None takes the
            tensor itself, or its `logits`.
        at: name of a module; the leaf is then its output instead of the input.
        wrt: which of several inputs is the leaf: a key or an index of the batch, which then holds all inputs.

    Raises:
        ValueError: `at` names no module; a quantised model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        output: str | int | Callable[[Any], Tensor] | None = None,
        at: str | None = None,
        wrt: str | int | None = None,
    ) -> None:
        self.model, self.output, self.at, self.wrt = model, output, at, wrt
        names = dict(model.named_modules())
        if at is not None and at not in names:
            known = ", ".join(name for name in names if name)
            raise ValueError(
                f"measure() got at={at!r}; the model's modules are {known}. E.g. at={known.split(', ')[0]!r}."
            )
        for name, module in names.items():
            if "quantized" in type(module).__module__:
                raise ValueError(
                    f"measure() cannot differentiate {name or 'the model'} ({type(module).__name__}), which is quantised. "
                    "Measure the floating point model it was made from."
                )

    def copied(self, dtype: torch.dtype) -> View:
        """Return the view of a copy of the model in another dtype."""
        try:
            model = copy.deepcopy(self.model).to(dtype)
        except RuntimeError as error:
            raise ValueError(
                f"measure() cannot copy the model to compute in {dtype} ({error}). Convert it yourself: "
                f"measure(model.to({dtype}), inputs)."
            ) from error
        return View(model, output=self.output, at=self.at, wrt=self.wrt)

    def leaf(self, batch: Batch) -> Tensor:
        """Return a copy of the tensor that is differentiated, detached: [B, ...]."""
        if self.at is None:
            return (batch if self.wrt is None else batch[self.wrt]).detach().clone()  # type: ignore[index, union-attr]
        caught: list[Tensor] = []
        module = self.model.get_submodule(self.at)

        def catch(_: nn.Module, args: object, result: Any) -> None:
            caught.append(_first_tensor(result).detach().clone())  # what follows may change it in place

        with torch.no_grad(), _hooked(module.register_forward_hook(catch)):
            self._call(batch)
        if len(caught) != 1:
            raise ValueError(
                f"measure() got at={self.at!r}, which runs {len(caught)} times in a forward pass; it must run once. Name "
                "another module."
            )
        return caught[0]

    def function(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return leaf -> outputs [B, ...], everything else of `batch` held fixed."""

        def from_input(leaf: Tensor) -> Tensor:
            return self._select(self._call(self._with_leaf(batch, leaf)), len(leaf))

        def from_module(leaf: Tensor) -> Tensor:
            def replace(_: nn.Module, args: object, result: Any) -> Any:
                return leaf if isinstance(result, Tensor) else (leaf, *result[1:])

            with _hooked(self.model.get_submodule(str(self.at)).register_forward_hook(replace)):
                return self._select(self._call(batch), len(leaf))

        return from_input if self.at is None else from_module

    def to_module(self, batch: Batch, name: str) -> Callable[[Tensor], Tensor]:
        """Return leaf -> the output of the module `name` [B, ...]."""

        def run(leaf: Tensor) -> Tensor:
            caught: list[Tensor] = []

            def catch(_: nn.Module, args: object, result: Any) -> Any:
                caught.append(_first_tensor(result))
                return spared(result)

            with _hooked(self.model.get_submodule(name).register_forward_hook(catch)):
                self.function(batch)(leaf)
            return caught[0]

        return run

    def _with_leaf(self, batch: Batch, leaf: Tensor) -> Batch:
        if self.wrt is None:
            return leaf
        if isinstance(batch, Mapping):
            return {**batch, self.wrt: leaf}
        parts: Any = list(batch)
        parts[self.wrt] = leaf
        return tuple(parts)

    def _call(self, batch: Batch) -> Any:
        # Copies: a network may change its inputs in place.
        if isinstance(batch, Tensor):
            return self.model(batch.clone())
        if isinstance(batch, Mapping):
            return self.model(**{key: _copied(part) for key, part in batch.items()})
        return self.model(*map(_copied, batch))

    def _select(self, result: Any, count: int) -> Tensor:
        chosen = result
        if callable(self.output):
            chosen = self.output(result)
        elif self.output is not None:
            try:
                attribute = not isinstance(result, Mapping) and hasattr(result, str(self.output))
                chosen = getattr(result, str(self.output)) if attribute else result[self.output]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"measure() got output={self.output!r}, but the model returns {_told(result)}; it takes one of these, "
                    "e.g. output=0, or a function, e.g. output=lambda result: result[0]."
                ) from error
        elif not isinstance(result, Tensor):
            found = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
            if found is None and isinstance(result, tuple | list) and len(result) == 1:
                found = result[0]
            if found is None:
                raise TypeError(
                    f"measure() got a model that returns {_told(result)}. Say which part is meant, e.g. "
                    f"measure(model, inputs, output={_example_key(result)!r})."
                )
            chosen = found
        if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
            kind = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
            raise TypeError(
                f"measure() got a model whose output is {kind}; it takes one that returns a floating point tensor [B, ...], "
                "e.g. logits, or output= to select one."
            )
        if chosen.ndim == 0 or len(chosen) != count:
            raise ValueError(
                f"measure() got outputs of shape {tuple(chosen.shape)} for {count} inputs; the first dimension of inputs "
                "and outputs must be the batch, e.g. logits [B, classes] (batch_first=True for recurrent and attention "
                "layers)."
            )
        return chosen

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Choose kernels that have the derivatives needed: attention in plain matrix products, no cuDNN for RNNs."""
        recurrent = any(isinstance(module, _RECURRENT) for module in self.model.modules())
        kernels = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent)
        with warnings.catch_warnings(), torch.enable_grad(), kernels, cudnn:
            # Re-entrant checkpoints say so in every forward pass that needs no gradient.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            yield

    def check(self, batch: Batch, call: str = "measure(model, inputs)") -> None:
        """Refuse a model that mixes samples, is not deterministic, or whose outputs cut the gradient.

        Two samples are enough: the gradient of the first one's output must vanish at the second one's leaf.

        Args:
            batch: holds two samples.
            call: named in the errors.

        Raises:
            ValueError: the message names the module and the way out.
        """
        value = self.leaf(batch)
        function = self.function(batch)
        with self.differentiable():
            leaf = value.clone().requires_grad_(True)
            outputs = function(leaf.clone())
            again = function(value.clone()).detach()
        spread = (outputs.detach() - again).abs().max() if outputs.numel() else torch.zeros(())
        noise = 50 * torch.finfo(outputs.dtype).eps * again.abs().max()
        if bool(spread > noise):
            raise ValueError(
                f"measure() found that two forward passes at the same inputs differ by {float(spread):.1e}: "
                f"{self._culprit(batch, batch)} is random or keeps state in eval mode. Make it deterministic, or measure "
                "with a fixed draw: fork and seed the generator inside its forward."
            )
        if not outputs.requires_grad:
            self._refuse_cut(function, value, again)
            return
        if _leaks(outputs, leaf, 0) or _leaks(outputs, leaf, 1) or self._couples(batch, value, again):
            raise ValueError(
                f"measure() found that {self._culprit(batch, _shifted(batch))} mixes the samples of a batch, so "
                "there is no per-sample Jacobian. Make it independent of the batch (running statistics for a BatchNorm, "
                "batch_first=True for a recurrent or attention layer) or measure one sample at a time: "
                f"{call.replace('inputs', 'inputs[:1]')}."
            )

    def _couples(self, batch: Batch, value: Tensor, outputs: Tensor) -> bool:
        """Whether a sample's output is another one without the other sample, which need not show in a gradient."""
        for sample in (0, 1):
            try:
                with torch.no_grad():
                    alone = self.function(_alone(batch, sample))(value[sample : sample + 1].clone())[0]
            except (RuntimeError, ValueError, IndexError):
                return False  # it takes no single sample, so that there is nothing to compare
            rounding = 2e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
            if bool((alone - outputs[sample]).abs().max() > rounding * outputs.abs().max()):
                return True
        return False

    def _refuse_cut(self, function: Callable[[Tensor], Tensor], value: Tensor, outputs: Tensor) -> None:
        """Tell a constant network, which is fine, from one whose output is computed outside autograd."""
        with torch.no_grad():
            moved = function(value + 0.37 * (value.abs().mean() + 1))
        if not torch.equal(moved, outputs):
            raise ValueError(
                "measure() found that the outputs change with the inputs but carry no gradient: an operation of the model "
                "is not differentiable (argmax, rounding, detach, NumPy). Measure the part before it, e.g. "
                "measure(model, inputs, output=lambda result: result.logits)."
            )

    def nonfinite(self, batch: Batch) -> str:
        """Return a message that names the first module with a NaN or infinite output."""
        for name, output in self._leaf_outputs(batch).items():
            if not bool(torch.isfinite(output).all()):
                return (
                    f"measure() found NaN or infinite values in the output of {name}, the first module to produce them. "
                    "Check its weights and the scale of the inputs: measure(model, inputs) needs a finite forward pass."
                )
        return (
            "measure() found NaN or infinite values in the output of the model, computed outside its submodules. "
            "measure(model, inputs) needs a finite forward pass."
        )

    def _culprit(self, batch: Batch, other: Batch) -> str:
        """Return the name of the first leaf module whose output for a sample that `other` shares is not the same there.

        `other` shares sample 0; a second look swaps the two samples, for what only mixes backwards.
        """
        for swap in (False, True):
            one, two = (_swapped(part) if swap else part for part in (batch, other))
            changed = self._leaf_outputs(two)
            for name, output in self._leaf_outputs(one).items():
                same = changed.get(name)
                shared = 1 if swap else 0
                if (
                    same is not None
                    and output.ndim
                    and (len(output) != 2 or not torch.equal(output[shared], same[shared]))
                ):
                    return name
        return "an operation outside its submodules"

    @torch.no_grad()
    def _leaf_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return {name: first tensor output} of every leaf module, in the order of the forward pass."""
        seen: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def record(module: nn.Module, args: object, result: object) -> None:
                if (first := _first_tensor(result, strict=False)) is not None:
                    seen.setdefault(f"{name or 'the model'} ({type(module).__name__})", first.clone())

            return record

        leaves = [(name, m) for name, m in self.model.named_modules() if not any(True for _ in m.children())]
        with contextlib.ExitStack() as stack:
            for name, module in leaves:
                stack.enter_context(_hooked(module.register_forward_hook(hook(name))))
            self._call(batch)
        return seen


def _leaks(outputs: Tensor, leaf: Tensor, sample: int) -> bool:
    """Return whether one sample's outputs have a gradient at the other sample's leaf."""
    cotangent = torch.zeros_like(outputs)
    cotangent[sample] = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    try:
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True, materialize_grads=True)
    except (RuntimeError, NotImplementedError):
        return False  # no reverse mode here: the ladder of routes deals with that
    return len(gradient) > 1 and bool((gradient[1 - sample].nan_to_num(0.0) != 0).any())


def spared(result: Any) -> Any:
    """Return a module's result with a copy of its first tensor in its place, for what follows to change."""
    if isinstance(result, Tensor):
        return result.clone()
    if type(result) in (tuple, list) and result and isinstance(result[0], Tensor):
        return type(result)((result[0].clone(), *result[1:]))
    return result


def _copied(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _alone(batch: Batch, sample: int) -> Batch:
    def cut(x: Any) -> Any:
        return x[sample : sample + 1] if isinstance(x, Tensor) and x.ndim and len(x) == 2 else x

    if isinstance(batch, Tensor):
        return cut(batch)
    return {k: cut(v) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(map(cut, batch))


def _swapped(batch: Batch) -> Batch:
    def swap(x: Any) -> Any:
        return x.flip(0) if isinstance(x, Tensor) and x.ndim and len(x) == 2 else x

    if isinstance(batch, Tensor):
        return swap(batch)
    return {k: swap(v) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(map(swap, batch))


def _shifted(batch: Batch) -> Batch:
    """Return `batch` with its second sample moved, the first one as it was."""

    def move(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point() and len(x) == 2:
            return torch.stack([x[0], x[1] + 1 + x[1].abs()])
        return torch.stack([x[0], x[1].flip(0)]) if isinstance(x, Tensor) and x.ndim > 1 and len(x) == 2 else x

    if isinstance(batch, Tensor):
        return move(batch)
    return {k: move(v) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(map(move, batch))


@contextlib.contextmanager
def _hooked(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _first_tensor(result: Any, strict: bool = True) -> Any:
    first = result[0] if isinstance(result, tuple | list) and result else result
    if isinstance(first, Tensor) and (first.is_floating_point() or not strict):
        return first
    if strict:
        raise ValueError(
            f"measure() got at= a module that returns {_told(result)}; it takes one that returns a floating tensor."
        )
    return None


def _told(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"a dict with the keys {', '.join(map(repr, result))}"
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {len(result)}"
    return f"a {type(result).__name__}"


def _example_key(result: Any) -> Any:
    return (
        next(iter(result), "logits")
        if isinstance(result, Mapping)
        else 0
        if isinstance(result, tuple | list)
        else "logits"
    )
