"""Diagnosis: why a network has no per-sample Jacobian, and which of its modules is to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isometry.measurement.function import Batch, NetworkFunction, each
from isometry.networks.modules import hooked

__all__ = ["check", "nonfinite"]

# Operations whose derivative torch defines to be zero everywhere.
_FLAT = ("SignBackward", "SgnBackward", "RoundBackward", "FloorBackward", "CeilBackward", "TruncBackward")


def check(view: NetworkFunction, batch: Batch, again: Tensor) -> None:
    """Refuse a network that mixes samples, is not deterministic, or whose outputs carry no gradient.

    Two samples are enough: the gradient of the first one's output must vanish at the second one's leaf.

    Args:
        view: of the network, frozen.
        batch: holds two samples.
        again: [2, ...], the outputs of another pass at the same two.

    Raises:
        ValueError: the message names the module or operation and the way out.
    """
    value = view.leaf(batch)
    function = view.function(batch)
    with view.differentiable():
        leaf = value.clone().requires_grad_(True)
        outputs = function(leaf.clone())
    if not outputs.numel():
        raise ValueError(
            f"measure() got outputs of shape {tuple(outputs.shape)}, which hold nothing; it takes a model with at least one "
            "output, e.g. logits [B, classes], or output= to select others."
        )
    spread = (outputs.detach() - again).abs().max()
    noise = 50 * torch.finfo(outputs.dtype).eps * again.abs().max()
    if bool(spread > noise):
        raise ValueError(
            f"measure() found that two forward passes at the same inputs differ by {float(spread):.1e}: "
            f"{_culprit(view, batch, batch)} is random or keeps state in eval mode. Make it deterministic, or measure "
            "with a fixed draw: fork and seed the generator inside its forward."
        )
    if not outputs.requires_grad:
        _refuse_detached(view, function, value, again)
        return
    gradients = [_pulled(outputs, leaf, sample) for sample in (0, 1)]
    mixed = any(bool((g[1 - sample].nan_to_num(0.0) != 0).any()) for sample, g in enumerate(gradients) if g is not None)
    if mixed or _couples(view, batch, value, again):
        raise ValueError(
            f"measure() found that {_culprit(view, batch, _shifted(batch))} mixes the samples of a batch, so "
            "there is no per-sample Jacobian. Make it independent of the batch (running statistics for a BatchNorm, "
            "batch_first=True for a recurrent or attention layer), e.g. nn.LSTM(8, 8, batch_first=True)."
        )
    if all(g is not None and not bool(g.any()) for g in gradients) and (flat := _flat(outputs)):
        raise ValueError(
            f"measure() found a Jacobian of zeros, as {flat} on the way from the inputs to the outputs has no derivative but "
            "0. Measure the part before or behind it, e.g. measure(model, inputs, at='module'), or give it a "
            "straight-through gradient."
        )


def _pulled(outputs: Tensor, leaf: Tensor, sample: int) -> Tensor | None:
    """Return the gradient of a random sum of one sample's outputs at the leaf; None where no reverse mode exists."""
    cotangent = torch.zeros_like(outputs)
    cotangent[sample] = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    try:
        return torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True, materialize_grads=True)[0]
    except (RuntimeError, NotImplementedError):
        return None  # the ladder of routes deals with that


def _couples(view: NetworkFunction, batch: Batch, value: Tensor, outputs: Tensor) -> bool:
    """Whether a sample's output is another one without the other sample, which need not show in a gradient."""
    for sample in (0, 1):
        try:
            with torch.no_grad():
                alone = view.function(_alone(batch, sample))(value[sample : sample + 1].clone())[0]
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError):
            return False  # it takes no single sample, so that there is nothing to compare
        rounding = 2e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if bool((alone - outputs[sample]).abs().max() > rounding * outputs.abs().max()):
            return True
    return False


def _refuse_detached(
    view: NetworkFunction, function: Callable[[Tensor], Tensor], value: Tensor, outputs: Tensor
) -> None:
    """Tell a constant network, which is fine, from one whose output is computed outside autograd."""
    if view.at is not None:
        raise ValueError(
            f"measure() found that the outputs do not depend on the (first) output of {view.at}, where at= starts. Name a "
            "module whose output is used further on, e.g. the one behind it."
        )
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    with torch.no_grad():
        moved = [function(value + scale * (value.abs().mean() + 1) * noise) for scale in (0.37, 3.7)]
    if not all(torch.equal(one, outputs) for one in moved):
        raise ValueError(
            "measure() found that the outputs change with the inputs but carry no gradient: an operation of the model "
            "is not differentiable (argmax, rounding, detach, NumPy). Measure the part before it, e.g. "
            "measure(model, inputs, output=lambda result: result.logits)."
        )


def _flat(outputs: Tensor) -> str | None:
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


def nonfinite(view: NetworkFunction, batch: Batch) -> str:
    """Return a message that names the first module, parameter or operation with a NaN or infinite value."""
    bad = next((n for n, p in view.model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    # Infinity goes into modules by right, in a mask for instance.
    where = _first(view, batch, lambda _, t: not bool(torch.isfinite(t).all()), lambda _, t: bool(torch.isnan(t).any()))
    hint = f" Its parameter {bad} holds such values." if bad is not None else ""
    if where is None and bad is not None:
        return (
            f"measure() found NaN or infinite values in the parameter {bad} and in the derivatives behind it. "
            "measure(model, inputs) needs finite weights."
        )
    return (
        f"measure() found NaN or infinite values in the output of {where or 'the model, computed outside its submodules'}, "
        f"the first to produce them.{hint} Check its weights and the scale of the inputs: measure(model, inputs) needs a finite "
        "forward pass."
    )


def _culprit(view: NetworkFunction, batch: Batch, other: Batch) -> str:
    """Return what comes first whose output for a sample that `other` shares is not the same there.

    `other` shares sample 0; a second look swaps the two samples, for what only mixes backwards.
    """
    for swap in (False, True):
        one, two = (_swapped(part) if swap else part for part in (batch, other))
        changed = _passed(view, two)
        shared = 1 if swap else 0

        def differs(index: int, tensor: Tensor, changed: list[Any] = changed, shared: int = shared) -> bool:
            if index >= len(changed) or tensor.shape != changed[index][2].shape:
                return index < len(changed)
            return tensor.ndim > 0 and len(tensor) == 2 and not torch.equal(tensor[shared], changed[index][2][shared])

        if (found := _first(view, one, differs, differs)) is not None:
            return found
    return "an operation outside its submodules"


def _first(
    view: NetworkFunction, batch: Batch, bad: Callable[[int, Tensor], bool], bad_input: Callable[[int, Tensor], bool]
) -> str | None:
    """Return the module whose output is the first bad tensor, or the operation before the one whose input is."""
    for index, (came_out, name, tensor) in enumerate(_passed(view, batch)):
        if (bad if came_out else bad_input)(index, tensor):
            told = f"{name or 'the model'} ({type(view.model.get_submodule(name)).__name__})"
            return told if came_out else f"an operation of {name.rpartition('.')[0] or 'the model'} before {told}"
    return None


@torch.no_grad()
def _passed(view: NetworkFunction, batch: Batch) -> list[tuple[bool, str, Tensor]]:
    """Return (whether it came out, module, tensor) for all tensors into and out of modules, in the order of the pass."""
    passed: list[tuple[bool, str, Tensor]] = []

    def note(name: str, came_out: bool, parts: Any) -> None:
        floats = [t for t in tree_leaves(parts) if isinstance(t, Tensor) and t.is_floating_point()]
        passed.extend((came_out, name, tensor.clone()) for tensor in floats)

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: note(name, False, (args, kwargs)) if name else None

    def after(name: str) -> Callable[..., None]:
        return lambda module, args, result: note(name, True, result)

    with contextlib.ExitStack() as stack:
        for name, module in view.model.named_modules():
            stack.enter_context(hooked(module.register_forward_pre_hook(before(name), with_kwargs=True)))
            stack.enter_context(hooked(module.register_forward_hook(after(name))))
        view.call(batch)
    return passed


def _paired(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim > 0 and len(part) == 2


def _alone(batch: Batch, sample: int) -> Batch:
    return each(batch, lambda part: part[sample : sample + 1] if _paired(part) else part)


def _swapped(batch: Batch) -> Batch:
    return each(batch, lambda part: part.flip(0) if _paired(part) else part)


def _shifted(batch: Batch) -> Batch:
    """Return `batch` with its second sample moved, the first one as it was."""

    def move(part: Any) -> Any:
        if not _paired(part) or (part.ndim < 2 and not part.is_floating_point()):
            return part
        second = part[1] + 1 + part[1].abs() if part.is_floating_point() else part[1].flip(0)
        return torch.stack([part[0], second])

    return each(batch, move)
