"""NetworkFunction: a network seen as one differentiable function of one tensor."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isometry.networks.modules import clone, clone_output, hooked
from isometry.networks.precision import full_precision

__all__ = ["Batch", "NetworkFunction", "each"]

Batch = Tensor | tuple | list | Mapping
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a batch with every part of it changed: a tensor, or a tuple or dict of all the model's inputs."""
    if isinstance(batch, Mapping):
        return {key: change(part) for key, part in batch.items()}
    return tuple(map(change, batch)) if isinstance(batch, tuple | list) else change(batch)


class NetworkFunction:
    """A network as a function of one tensor, the leaf [B, ...], to one output tensor [B, ...].

    Args:
        model: the network, to be used while `frozen`.
        output: which part of what it returns: a key, an index, an attribute's name or a function; None takes the
            tensor itself, or its `logits`.
        at: name of a module; the leaf is then its output instead of the input.
        wrt: which of several inputs is the leaf: a key or an index of the batch, which then holds all inputs.

    Raises:
        ValueError: `at` names no module; a quantized model.
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
            if type(module).__module__.startswith("torch.") and "quantized" in type(module).__module__:
                raise ValueError(
                    f"measure() cannot differentiate {name or 'the model'} ({type(module).__name__}), which is quantized. "
                    "Measure the floating point model it was made from."
                )

    def copied(self, dtype: torch.dtype) -> NetworkFunction:
        """Return the view of a copy of the model in another dtype."""
        try:
            model = clone(self.model).to(dtype)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"measure() cannot copy the model to compute in {dtype} ({error}). Convert it yourself: "
                f"measure(model.to({dtype}), inputs)."
            ) from error
        return NetworkFunction(model, output=self.output, at=self.at, wrt=self.wrt)

    def leaf(self, batch: Batch) -> Tensor:
        """Return a copy of the tensor that is differentiated, detached: [B, ...]."""
        if self.at is None:
            return (batch if self.wrt is None else batch[self.wrt]).detach().clone()  # type: ignore[index, union-attr]
        caught: list[Tensor] = []
        module = self.model.get_submodule(self.at)

        def catch(_: nn.Module, args: object, result: Any) -> None:
            caught.append(_first_tensor(result).detach().clone())  # what follows may change it in place

        with torch.no_grad(), hooked(module.register_forward_hook(catch)):
            self.call(batch)
        if len(caught) != 1:
            raise ValueError(
                f"measure() got at={self.at!r}, which runs {len(caught)} times in a forward pass; it must run once. Name "
                "another module."
            )
        return caught[0]

    def function(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return leaf -> outputs [B, ...], everything else of `batch` held fixed."""

        def from_input(leaf: Tensor) -> Tensor:
            return self._select(self.call(self._with_leaf(batch, leaf)), len(leaf))

        def from_module(leaf: Tensor) -> Tensor:
            leaf = leaf.clone()  # what follows may change it in place

            def replace(_: nn.Module, args: object, result: Any) -> Any:
                if isinstance(result, Tensor):
                    return leaf
                parts = (leaf, *result[1:])
                return type(result)(*parts) if hasattr(result, "_fields") else parts

            with hooked(self.model.get_submodule(str(self.at)).register_forward_hook(replace)):
                return self._select(self.call(batch), len(leaf))

        return from_input if self.at is None else from_module

    def to_module(self, batch: Batch, name: str) -> Callable[[Tensor], Tensor]:
        """Return leaf -> the output of the module `name` [B, ...]."""

        def run(leaf: Tensor) -> Tensor:
            caught: list[Tensor] = []

            def catch(_: nn.Module, args: object, result: Any) -> Any:
                caught.append(_first_tensor(result))
                return clone_output(result)

            with hooked(self.model.get_submodule(name).register_forward_hook(catch)):
                self.function(batch)(leaf)
            if len(caught) != 1:
                raise RuntimeError(f"{name} ran {len(caught)} times")
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

    def call(self, batch: Batch) -> Any:
        """Run the model on copies, for a network may change its inputs in place."""
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
        """Choose kernels that have the derivatives and the precision needed.

        Attention in plain matrix products, no cuDNN for recurrent layers, float32 without shortcuts.
        """
        recurrent = any(isinstance(module, _RECURRENT) for module in self.model.modules())
        kernels = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with warnings.catch_warnings(), torch.enable_grad(), kernels, full_precision(cudnn=not recurrent):
            # Re-entrant checkpoints say so in every forward pass that needs no gradient.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            yield


def _copied(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _first_tensor(result: Any) -> Tensor:
    first = result[0] if isinstance(result, tuple | list) and result else result
    if isinstance(first, Tensor) and first.is_floating_point():
        return first
    raise ValueError(
        f"measure() got at= a module that returns {_told(result)}; it takes one that returns a floating tensor."
    )


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
