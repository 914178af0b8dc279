"""Checks: why a network has no per-sample Jacobian, and which of its modules causes that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isometry.errors import AdjointError, InvalidValueError, NonFiniteError, is_out_of_memory
from isometry.measurement.batch import Batch
from isometry.measurement.function import NetworkFunction
from isometry.networks.modules import hooked

__all__ = ["check_per_sample", "describe_nonfinite", "readable_errors", "rounding", "trace_modules"]

# Operations whose derivative torch defines to be zero everywhere.
_FLAT = ("SignBackward", "SgnBackward", "RoundBackward", "FloorBackward", "CeilBackward", "TruncBackward")


@contextmanager
def readable_errors(function: NetworkFunction, batch: Batch) -> Iterator[None]:
    """Turn what goes wrong with the numbers of a Jacobian at `batch` into a ValueError that says what to do."""
    try:
        yield
    except AdjointError as error:
        raise InvalidValueError(
            f"found <u, J v> and <Jᵀu, v> to differ by {error.gap:.1e} of their size: an operation of the model has a wrong "
            "derivative, is not deterministic or is computed in half precision. Check its custom autograd functions, or use "
            "measure(model, inputs, method='exact'), which needs Jᵀ alone."
        ) from error
    except NonFiniteError as error:
        if error.place == "outputs":
            raise InvalidValueError(describe_nonfinite(function, batch)) from error
        raise InvalidValueError(
            "found a Jacobian with NaN or infinite entries although the outputs are finite: an operation of the network has "
            "no derivative at these inputs (sqrt or norm at 0, for instance). Shift the inputs a little: "
            "measure(model, inputs + 1e-6 * torch.randn_like(inputs))."
        ) from error


def check_per_sample(function: NetworkFunction, pair: Batch, outputs: Tensor) -> None:
    """Refuse a network that mixes samples, is not deterministic, or whose outputs carry no gradient.

    Two samples are enough: the gradient of the first one's output must vanish at the second one's input.

    Args:
        function: of the network, its state preserved.
        pair: two samples.
        outputs: [2, ...], the outputs of an earlier pass at the same two.

    Raises:
        ValueError: the message names the module or operation and the way out.
    """
    value = function.differentiated_input(pair)
    run = function.bound_to(pair)
    with function.differentiable():
        inputs = value.clone().requires_grad_(True)
        again = _run_with_gradients(run, inputs)
    if not again.numel():
        raise InvalidValueError(
            f"got outputs of shape {tuple(again.shape)}, which hold nothing; it takes a model with at least one output, e.g. "
            "logits [B, classes], or output= to select others."
        )
    difference = (again.detach() - outputs).abs().max()
    if bool(difference > 50 * torch.finfo(again.dtype).eps * outputs.abs().max()):
        raise InvalidValueError(
            f"found that two forward passes at the same inputs differ by {float(difference):.1e}: "
            f"{_culprit(function, pair, pair)} is random or keeps state in eval mode. Make it deterministic, or measure with "
            "a fixed draw: fork and seed the generator inside its forward."
        )
    if not again.requires_grad:
        _refuse_detached(function, run, value, outputs)
        return
    gradients = [_gradient(again, inputs, sample) for sample in (0, 1)]
    known = [(sample, gradient) for sample, gradient in enumerate(gradients) if gradient is not None]
    mixed = any(bool((gradient[1 - sample].nan_to_num(0.0) != 0).any()) for sample, gradient in known)
    if mixed or _depends_on_batch(function, pair, value, outputs):
        raise InvalidValueError(
            f"found that {_culprit(function, pair, pair.with_second_sample_moved())} mixes the samples of a batch, so there "
            "is no per-sample Jacobian. Make it independent of the batch (running statistics for a BatchNorm, "
            "batch_first=True for a recurrent or attention layer), e.g. nn.LSTM(8, 8, batch_first=True)."
        )
    if len(known) == 2 and not any(bool(gradient.any()) for _, gradient in known) and (flat := _flat_operation(again)):
        raise InvalidValueError(
            f"found a Jacobian of zeros, as {flat} between the inputs and the outputs has a derivative of 0 everywhere. "
            "Measure the part before or behind it, e.g. measure(model, inputs, at='module'), or give it a straight-through "
            "gradient."
        )


def _run_with_gradients(run: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    try:
        return run(inputs.clone())
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise InvalidValueError(
            f"got a model that runs without gradients, but not with them ({error}). Remove what stands in their way (a full "
            "backward hook before an operation in place, for instance), e.g. handle.remove()."
        ) from error


def rounding(outputs: Tensor) -> float:
    """Return the difference, as a share of the largest output, that rounding in other batches explains."""
    return 2e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3


def _gradient(outputs: Tensor, inputs: Tensor, sample: int) -> Tensor | None:
    """Return the gradient of a random sum of one sample's outputs at the inputs; None where no reverse mode exists."""
    cotangent = torch.zeros_like(outputs)
    cotangent[sample] = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    try:
        return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, materialize_grads=True)[0]
    except (RuntimeError, NotImplementedError):
        return None  # the Jacobian's ladder of routes deals with that


def _depends_on_batch(function: NetworkFunction, pair: Batch, value: Tensor, outputs: Tensor) -> bool:
    """Whether a sample's output changes without the other sample, which need not show in a gradient."""
    for sample in (0, 1):
        try:
            with torch.no_grad():
                alone = function.bound_to(pair.part(sample, sample + 1))(value[sample : sample + 1].clone())[0]
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError):
            return False  # it takes no single sample, so that there is nothing to compare
        if bool((alone - outputs[sample]).abs().max() > rounding(outputs) * outputs.abs().max()):
            return True
    return False


def _refuse_detached(
    function: NetworkFunction, run: Callable[[Tensor], Tensor], value: Tensor, outputs: Tensor
) -> None:
    """Tell a constant network, which is fine, from one whose output is computed outside autograd."""
    if function.at is not None:
        raise InvalidValueError(
            f"found that the outputs do not depend on the (first) output of {function.at}, where at= starts. Name a module "
            "whose output is used later, e.g. the next one."
        )
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    with torch.no_grad():
        shifted = [run(value + scale * (value.abs().mean() + 1) * noise) for scale in (0.37, 3.7)]
    if not all(torch.equal(one, outputs) for one in shifted):
        raise InvalidValueError(
            "found that the outputs change with the inputs but carry no gradient: an operation of the model is not "
            "differentiable (argmax, rounding, detach, NumPy). Measure the part before it, e.g. "
            "measure(model, inputs, output=lambda result: result.logits)."
        )


def _flat_operation(outputs: Tensor) -> str | None:
    """Return the operation in the graph of `outputs` whose derivative is zero by definition, if there is one."""
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(_FLAT):
            return node.name().partition("Backward")[0].lower()
        waiting += [parent for parent, _ in node.next_functions]
    return None


def describe_nonfinite(function: NetworkFunction, batch: Batch) -> str:
    """Return a message that names the first module, parameter or operation with a NaN or infinite value."""
    bad = next((n for n, p in function.model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    # Infinite inputs of a module can be intended, in a mask for instance.
    where = _first(
        function, batch, lambda _, t: not bool(torch.isfinite(t).all()), lambda _, t: bool(torch.isnan(t).any())
    )
    hint = f" Its parameter {bad} holds such values." if bad is not None else ""
    if where is None and bad is not None:
        return (
            f"found NaN or infinite values in the parameter {bad} and in the derivatives behind it. "
            "measure(model, inputs) needs finite weights."
        )
    return (
        f"found NaN or infinite values in the output of {where or 'the model, computed outside its submodules'}, the first to "
        f"produce them.{hint} Check its weights and the scale of the inputs: measure(model, inputs) needs a finite forward pass."
    )


def _culprit(function: NetworkFunction, pair: Batch, other: Batch) -> str:
    """Return the first module whose output for a sample that `other` shares is different there.

    `other` shares sample 0; a second look swaps the two samples, for what mixes only backwards.
    """
    swapped = torch.tensor([1, 0])
    for shared in (0, 1):
        one, two = (batch.select(swapped) if shared else batch for batch in (pair, other))
        changed = trace_modules(function, two)

        def differs(index: int, tensor: Tensor, changed: list[Any] = changed, shared: int = shared) -> bool:
            if index >= len(changed) or tensor.shape != changed[index][2].shape:
                return index < len(changed)
            return tensor.ndim > 0 and len(tensor) == 2 and not torch.equal(tensor[shared], changed[index][2][shared])

        if (found := _first(function, one, differs, differs)) is not None:
            return found
    return "an operation outside its submodules"


def _first(
    function: NetworkFunction,
    batch: Batch,
    bad: Callable[[int, Tensor], bool],
    bad_input: Callable[[int, Tensor], bool],
) -> str | None:
    """Return the module whose output is the first bad tensor, or the operation before the one whose input is."""
    for index, (is_output, name, tensor) in enumerate(trace_modules(function, batch)):
        if (bad if is_output else bad_input)(index, tensor):
            module = f"{name or 'the model'} ({type(function.model.get_submodule(name)).__name__})"
            return module if is_output else f"an operation of {name.rpartition('.')[0] or 'the model'} before {module}"
    return None


@torch.no_grad()
def trace_modules(function: NetworkFunction, batch: Batch) -> list[tuple[bool, str, Tensor]]:
    """Return (whether it is an output, module, tensor) for all inputs and outputs of modules, in order of the pass."""
    passed: list[tuple[bool, str, Tensor]] = []

    def note(name: str, is_output: bool, parts: Any) -> None:
        tensors = [t for t in tree_leaves(parts) if isinstance(t, Tensor) and t.is_floating_point()]
        passed.extend((is_output, name, tensor.clone()) for tensor in tensors)

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: note(name, False, (args, kwargs)) if name else None

    def after(name: str) -> Callable[..., None]:
        return lambda module, args, result: note(name, True, result)

    handles = []
    for name, module in function.model.named_modules():
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    with hooked(*handles):
        function.call(batch.values)
    return passed
