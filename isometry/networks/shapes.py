"""The inputs that a network takes: what it says of itself, or what it accepts when tried."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data.nests import map_tensors, tensors_in
from isometry.errors import signed
from isometry.networks.candidates import Candidates, InputSpec, list_candidates
from isometry.networks.checks import check_initialized
from isometry.networks.modules import CONVOLUTIONS, clone, hooked, unwrap
from isometry.networks.preservation import state_preserved

__all__ = ["example_inputs", "find_inputs", "input_shape", "placed", "required_inputs"]

_ENTRIES = 2**22  # of two inputs: larger ones are tried on the meta device alone
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def find_inputs(model: nn.Module, call: str = "measure(model, inputs)") -> InputSpec:
    """Return what one input of a network is like.

    That is the model's own `input_shape`, where it has one. Otherwise inputs are tried that its configuration and first
    layers suggest: features, sequences, images of 32, 28, 64, 96, 128, 224, 256, 299, 384 and 512 pixels, token ids. The
    first is taken that a forward pass accepts; of several sizes the first that leaves at least 2x2 before the head (at
    the outputs of all convolutions but 1x1 and of all max pools).

    Tries run on the meta device, which computes shapes alone; the last, and those of networks that need numbers, run on
    two inputs. Modes, buffers and random states come out as they went in.

    Args:
        model: any module.
        call: the call to recommend in the error, with `inputs` for the missing argument.

    Raises:
        ValueError: nothing is accepted.
    """
    model = unwrap(model)
    known = getattr(model, "input_shape", None)
    if isinstance(known, tuple | list) and all(isinstance(size, int) for size in known):
        return InputSpec(tuple(known))
    with signed(call.split("(")[0]):
        check_initialized(model)  # a try would do that
    every = list(list_candidates(model))
    narrow: list[InputSpec] = []
    refusals: list[tuple[InputSpec, Exception]] = []
    with _trying(model) as respond:
        for candidates in every:
            for spec in candidates.specs:
                response = respond(spec, confirm=not candidates.sized)
                if response.error is None and response.extent >= 2 and not response.confirmed:
                    response = respond(spec, confirm=True)
                if response.error is not None:
                    refusals.append((spec, response.error))
                elif candidates.sized and response.extent < 2:
                    narrow.append(spec)
                else:
                    return _described(spec, response, candidates)
        for spec in narrow:
            if (response := respond(spec, confirm=True)).error is None:
                return replace(spec, reason=f"{spec.reason}: the first size accepted")
    raise ValueError(_refusal(model, every, refusals, call))


def input_shape(model: nn.Module, call: str = "measure(model, inputs)") -> tuple[int, ...]:
    """Return the shape of one input; see `find_inputs`."""
    return find_inputs(model, call).shape


def example_inputs(model: nn.Module, count: int, *, seed: int = 0, call: str = "measure(model, inputs)") -> Tensor:
    """Return inputs like those that `find_inputs` finds: [count, ...], standard normal, or uniform token ids.

    They have the model's device and the dtype of its first floating point parameter.

    Args:
        model: any network.
        count: how many.
        seed: of the draw; the global generator is left alone.
        call: the call to recommend in the error, as in `find_inputs`.

    Raises:
        ValueError: no input is accepted.
    """
    return find_inputs(model, call).draw(model, count, seed)


def placed(inputs: Any, model: nn.Module) -> Any:
    """Return `inputs` on the model's device; floating point inputs in a dtype that some of its parameters have.

    Args:
        inputs: a tensor, or a tuple or dict of tensors.
        model: any network.
    """
    floating: list[Tensor] = [p for p in model.parameters() if p.is_floating_point()] or tensors_in(inputs)

    def place(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype in {p.dtype for p in floating}:
            return tensor.to(floating[0].device)
        return tensor.to(floating[0].device, floating[0].dtype)

    return map_tensors(inputs, place)


def required_inputs(model: nn.Module) -> list[str] | None:
    """Return the names of the arguments that a forward pass needs; None where it takes any number, or that is not known."""
    try:
        arguments = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(argument.kind is argument.VAR_POSITIONAL for argument in arguments):
        return None
    return [
        argument.name for argument in arguments if argument.kind in positional and argument.default is argument.empty
    ]


@dataclass(frozen=True)
class _Response:
    """How a network took an input.

    Attributes:
        error: that of the forward pass, or None.
        extent: the smallest spatial extent before the head; infinite where there is none.
        embedding: the first module that embedded the input as token ids.
        confirmed: whether that was the model itself, rather than its copy on the meta device.
    """

    error: Exception | None = None
    extent: float = math.inf
    embedding: str | None = None
    confirmed: bool = False


@contextlib.contextmanager
def _trying(model: nn.Module) -> Iterator[Callable[..., _Response]]:
    """Lend a function (spec, confirm) -> `_Response`; the model and all random states come out as they went in.

    On the meta device no numbers are computed, and indices not checked: what is accepted there is confirmed by a pass of
    the model itself.
    """
    with warnings.catch_warnings(), state_preserved(model), torch.no_grad():
        warnings.simplefilter("ignore")
        abstract = _abstract_copy(model)

        def respond(spec: InputSpec, confirm: bool) -> _Response:
            if abstract is not None:
                dtype = torch.int64 if spec.vocabulary is not None else spec.draw(model, 0).dtype
                with torch.device("meta"):  # what the forward pass makes itself, too
                    response = _run(abstract, torch.empty(2, *spec.shape, dtype=dtype))
                needs_numbers = response.error is not None and _is_abstract_alone(response.error)
                if not needs_numbers and (response.error is not None or not confirm):
                    return response
            if 2 * math.prod(spec.shape) > _ENTRIES:
                return _Response(ValueError("too large to be tried"))
            return replace(_run(model, spec.draw(model, 2)), confirmed=True)

        yield respond


def _abstract_copy(model: nn.Module) -> nn.Module | None:
    """Return a copy on the meta device, made without copying a tensor; None where the model cannot be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*vars(module).values(), *module._parameters.values(), *module._buffers.values()):
            if isinstance(value, Tensor):
                shell = torch.empty_like(value, device="meta", requires_grad=False)
                memo[id(value)] = nn.Parameter(shell, False) if isinstance(value, nn.Parameter) else shell
    try:
        return clone(model, memo)
    except Exception:  # whatever a model's own copying raises: the model itself is tried then
        return None


def _is_abstract_alone(error: Exception) -> bool:
    """Whether a forward pass failed on the meta device because that holds no numbers."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _run(model: nn.Module, inputs: Tensor) -> _Response:
    extents: list[int] = []
    embeddings: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                if args and isinstance(args[0], Tensor) and args[0].shape == inputs.shape:
                    embeddings.append(name)
            elif isinstance(result, Tensor) and result.ndim == inputs.ndim:
                extents.append(min(result.shape[2:], default=1))

        return hook

    handles = [
        module.register_forward_hook(note(name)) for name, module in model.named_modules() if _is_watched(module)
    ]
    try:
        with hooked(*handles):
            model(inputs)
    except Exception as error:  # a forward pass may raise anything
        return _Response(error)
    return _Response(None, min(extents, default=math.inf), embeddings[0] if embeddings else None)


def _is_watched(module: nn.Module) -> bool:
    """Whether a module embeds tokens, or leaves less extent than it gets without being a head."""
    if isinstance(module, CONVOLUTIONS):
        return max(module.kernel_size) > 1
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag, *_MAX_POOLS))


def _described(spec: InputSpec, response: _Response, candidates: Candidates) -> InputSpec:
    """Return what was accepted with the reason why it was chosen, and where token ids are embedded."""
    if not candidates.sized:
        return replace(spec, embedding=response.embedding if spec.vocabulary is not None else None)
    least = "x".join(["2"] * (len(spec.shape) - 1))
    return replace(spec, reason=f"{spec.reason}: the first size accepted that leaves at least {least} before the head")


def _refusal(model: nn.Module, every: list[Candidates], refusals: list[tuple[InputSpec, Exception]], call: str) -> str:
    """Return the message of the error where nothing was accepted."""
    verb = call.split("(")[0]
    needed = required_inputs(model)
    if needed is not None and len(needed) > 1:
        return (
            f"{verb}() cannot infer the inputs of a model that takes {len(needed)}, {', '.join(needed)}. Pass inputs, e.g. "
            + _filled(call, f"({', '.join(needed)})" + (", wrt=0" if verb == "measure" else ""))
            + "."
        )
    if not refusals:
        return (
            f"{verb}() cannot infer an input shape from a model without parameters. Pass inputs, e.g. "
            f"{_filled(call, 'torch.randn(64, ...)')}."
        )
    spec, error = refusals[0]
    text = " ".join(str(error).split())[:120]
    draw = "torch.randn(64, *shape)" if spec.vocabulary is None else f"torch.randint({spec.vocabulary}, (64, *shape))"
    return (
        f"{verb}() cannot infer an input shape from {every[0].layer}: none of {len(refusals)} was accepted, {spec.shape} for "
        f"instance ({type(error).__name__}: {text.rstrip('.')}). Pass inputs of the shape it was built for, e.g. "
        f"{_filled(call, draw)}."
    )


def _filled(call: str, inputs: str) -> str:
    """Return `call` with `inputs` instead of its last argument."""
    return call.removesuffix("inputs)") + inputs + ")"
