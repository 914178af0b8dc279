"""NetworkFunction: a network as one differentiable function of one tensor."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.measurement.batch import Batch, map_entries
from isometry.networks.modules import clone, clone_output, first_tensor, hooked, replace_first_tensor
from isometry.networks.precision import full_precision, no_fast_path

__all__ = ["NetworkFunction"]

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, eq=False)
class NetworkFunction:
    """A network as a function from one tensor, the differentiated input [B, ...], to one output tensor [B, ...].

    Attributes:
        model: the network, to be used within `state_preserved`.
        output: which part of what it returns: a key, an index, an attribute's name or a function; None takes the
            tensor itself, or its `logits`.
        at: name of a module; the differentiated input is then its output instead of the network's input.
    """

    model: nn.Module
    output: str | int | Callable[[Any], Tensor] | None = None
    at: str | None = None

    def in_dtype(self, dtype: torch.dtype) -> NetworkFunction:
        """Return the function of a copy of the model in another dtype."""
        try:
            model = clone(self.model).to(dtype)
        except (RuntimeError, TypeError) as error:
            raise InvalidValueError(
                f"cannot copy the model to compute in {dtype} ({error}). Convert it yourself: "
                f"measure(model.to({dtype}), inputs)."
            ) from error
        return replace(self, model=model)

    def differentiated_input(self, batch: Batch) -> Tensor:
        """Return a detached copy of the tensor that is differentiated: [B, ...]."""
        if self.at is None:
            return batch.differentiated.detach().clone()
        return self._output_of(self.at, batch)

    def _output_of(self, name: str, batch: Batch) -> Tensor:
        captured: list[Tensor] = []

        def capture(_: nn.Module, args: object, result: Any) -> None:
            captured.append(_first_tensor(result).detach().clone())  # later operations may change it in place

        with torch.no_grad(), hooked(self.model.get_submodule(name).register_forward_hook(capture)):
            self.call(batch.values)
        if len(captured) != 1:
            raise InvalidValueError(
                f"got at={name!r}, which runs {len(captured)} times in a forward pass; it must run once. Name another "
                "module."
            )
        return captured[0]

    def bound_to(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return x -> outputs [B, ...], with x [B, ...] the differentiated input and all other inputs those of `batch`."""

        def from_input(x: Tensor) -> Tensor:
            return self._select(self.call(batch.with_differentiated(x)), len(x))

        def from_module(x: Tensor) -> Tensor:
            x = x.clone()  # later operations may change it in place

            def replace_output(_: nn.Module, args: object, result: Any) -> Any:
                return replace_first_tensor(result, lambda _: x)

            with hooked(self.model.get_submodule(str(self.at)).register_forward_hook(replace_output)):
                return self._select(self.call(batch.values), len(x))

        return from_input if self.at is None else from_module

    def up_to(self, name: str, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return x -> the output of the module `name` [B, ...]."""

        def run(x: Tensor) -> Tensor:
            captured: list[Tensor] = []

            def capture(_: nn.Module, args: object, result: Any) -> Any:
                captured.append(_first_tensor(result))
                return clone_output(result)

            with hooked(self.model.get_submodule(name).register_forward_hook(capture)):
                self.bound_to(batch)(x)
            if len(captured) != 1:
                raise RuntimeError(f"{name} ran {len(captured)} times")
            return captured[0]

        return run

    def outputs(self, batch: Batch) -> Tensor:
        """Return the outputs [B, ...] without a graph."""
        with torch.no_grad():
            return self.bound_to(batch)(self.differentiated_input(batch))

    def call(self, values: Any) -> Any:
        """Run the model on copies of its inputs, as a network may change them in place."""
        copies = map_entries(values, lambda part: part.clone() if isinstance(part, Tensor) else part)
        if isinstance(values, Tensor):
            return self.model(copies)
        return self.model(**copies) if isinstance(values, Mapping) else self.model(*copies)

    def _select(self, result: Any, samples: int) -> Tensor:
        """Return the tensor that `output` names, checked: floating point, with the samples first."""
        if callable(self.output):
            selected = self.output(result)
        elif self.output is not None:
            selected = self._entry(result)
        else:
            selected = result if isinstance(result, Tensor) else _logits(result)
        if not isinstance(selected, Tensor) or not selected.is_floating_point():
            kind = selected.dtype if isinstance(selected, Tensor) else type(selected).__name__
            raise InvalidTypeError(
                f"got a model whose output is {kind}; it takes one that returns a floating point tensor [B, ...], e.g. "
                "logits, or output= to select one."
            )
        if selected.ndim == 0 or len(selected) != samples:
            raise InvalidValueError(
                f"got outputs of shape {tuple(selected.shape)} for {samples} inputs; the first dimension of inputs and "
                "outputs must be the batch, e.g. logits [B, classes] (batch_first=True for recurrent and attention layers)."
            )
        return selected

    def _entry(self, result: Any) -> Any:
        try:
            attribute = not isinstance(result, Mapping) and hasattr(result, str(self.output))
            return getattr(result, str(self.output)) if attribute else result[self.output]
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidValueError(
                f"got output={self.output!r}, but the model returns {_description(result)}; it takes one of these, e.g. "
                "output=0, or a function, e.g. output=lambda result: result[0]."
            ) from error

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Choose kernels that have the derivatives and the precision needed.

        Attention in plain matrix products, no cuDNN for recurrent layers, full float32 also where the caller uses autocast.
        """
        recurrent = any(isinstance(module, _RECURRENT) for module in self.model.modules())
        kernels = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        precise = full_precision(cudnn=not recurrent)
        with warnings.catch_warnings(), torch.enable_grad(), kernels, precise, no_fast_path():
            # Re-entrant checkpoints say so in every forward pass that needs no gradient.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            # Torch's own forward differentiation loads scripts, which it discourages on Python 3.14.
            warnings.filterwarnings("ignore", ".torch.jit.script. is not supported in Python 3.14", FutureWarning)
            yield


def _logits(result: Any) -> Any:
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if logits is None and isinstance(result, tuple | list) and len(result) == 1:
        logits = result[0]
    if logits is None:
        key = next(iter(result), "logits") if isinstance(result, Mapping) else "logits"
        example = 0 if isinstance(result, tuple | list) else key
        raise InvalidTypeError(
            f"got a model that returns {_description(result)}. Say which part is meant, e.g. "
            f"measure(model, inputs, output={example!r})."
        )
    return logits


def _first_tensor(result: Any) -> Tensor:
    first = first_tensor(result)
    if first is not None and first.is_floating_point():
        return first
    raise InvalidValueError(
        f"got at= a module that returns {_description(result)}; it takes one that returns a floating point tensor."
    )


def _description(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"a dict with the keys {', '.join(map(repr, result))}"
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {len(result)}"
    return f"a {type(result).__name__}"
