"""The groups of a network's units, found by following them through a forward pass, and their removal."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

from isometry.data.nests import describe, tensors_in
from isometry.errors import InvalidValueError
from isometry.networks.attention import can_lose_heads
from isometry.networks.modules import call, clone, hooked, output_leaves
from isometry.networks.precision import no_fast_path
from isometry.networks.preservation import evaluating, random_states_of, state_preserved
from isometry.surgery.grouping import OUTPUT, find_groups
from isometry.surgery.groups import UnitGroup
from isometry.surgery.propagation import Propagation
from isometry.surgery.support import check_supported
from isometry.surgery.widths import Convolution, Widths, original_convolutions

__all__ = ["Graph", "output_tensors", "trace"]

_LONGEST = 200
_RIGID = (nn.RNNBase, nn.MultiheadAttention)
"""Modules whose inputs keep their width."""


@dataclass
class Graph:
    """A traced network: its groups, and what has been cut of it.

    Training changes the weights and not the graph: a network that is trained in place need not be traced again.

    Attributes:
        model: the network, changed in place by `cut`.
        groups: in the network's order.
        fixed: {layer: why its units cannot be removed}.
    """

    model: nn.Module
    groups: list[UnitGroup]
    fixed: dict[str, str]
    _convolutions: dict[str, Convolution] = field(default_factory=dict, repr=False)
    _kept: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    def copy(self) -> Graph:
        """Return the same graph of a copy of the network."""
        return replace(self, model=clone(self.model), _kept=dict(self._kept))

    @torch.no_grad()
    def cut(self, group: UnitGroup, units: Sequence[int]) -> None:
        """Remove `units` of a group from the traced model, in place."""
        widths = Widths(self.model, group, self._convolutions)
        for cut in group.cuts:
            owner, _, key = cut.tensor.rpartition(".")
            module = self.model.get_submodule(owner)
            gone = torch.tensor(cut.take(units), dtype=torch.long)
            kept = self._kept.get((cut.tensor, cut.dim))
            if kept is None:
                kept = torch.arange(widths.before(cut))
            places = torch.isin(kept, gone, invert=True).nonzero().flatten()
            self._kept[cut.tensor, cut.dim] = kept[places]
            tensor = getattr(module, key)
            if not isinstance(tensor, Tensor):  # what a normalization without weights says of its size
                widths.shorten_shape(module, len(places))
                continue
            smaller = tensor.index_select(cut.dim, places.to(tensor.device))
            if key in module._parameters:
                smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
                if tensor.grad is not None:
                    smaller.grad = tensor.grad.index_select(cut.dim, places.to(tensor.device))
            setattr(module, key, smaller)
        widths.adapt(len(units))


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Follow the units of `model` through a forward pass of `inputs` and return its groups; `model` is left alone.

    Args:
        model: any module.
        inputs: [B, ...], a batch that it accepts, or a tuple or dict of its arguments.

    Returns:
        `Graph`; `fixed` says of each layer whose units cannot be removed why that is.

    Raises:
        ValueError: inputs that are empty or that the network does not accept; tied weights, weight_norm or other
            parametrizations, masks of torch.nn.utils.prune, by the name of the layer and with the call that resolves
            it.
    """
    check_supported(model)
    if not all(tensor.numel() for tensor in tensors_in(inputs)):
        raise InvalidValueError(
            f"got inputs of {describe(inputs)}, which hold nothing; it takes a batch that the network "
            "accepts, e.g. inputs=torch.randn(2, 3, 32, 32)."
        )
    followed = _propagate(model, inputs)
    groups, fixed = find_groups(model, followed)
    return Graph(model, groups, fixed, original_convolutions(model))


def _propagate(model: nn.Module, inputs: Any) -> Propagation:
    """Run the network and follow its units."""
    followed = Propagation(model)
    try:
        with (
            no_fast_path(),
            random_states_of(model),
            evaluating(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            hooked(*_hooks(model, followed)),
            followed,
        ):
            outputs = call(model, inputs)
    except (RuntimeError, TypeError, IndexError) as error:
        raise InvalidValueError(
            f"cannot follow the forward pass at inputs of {describe(inputs)} "
            f"({textwrap.shorten(str(error), _LONGEST)}). Pass a batch that the network accepts, of the shape it was built for, "
            "e.g. inputs=torch.randn(2, *shape)."
        ) from error
    output_tensors(outputs)
    followed.fix(output_leaves(outputs), OUTPUT)
    if any(id(parameter) not in followed.used for parameter in model.parameters()):
        _follow_training(model, followed, inputs)
    followed.settle()
    return followed


def _follow_training(model: nn.Module, followed: Propagation, inputs: Any) -> None:
    """Follow also what only training reaches, so that an auxiliary head for instance still fits what it reads.

    Layers stay in eval mode; what a network asks for besides, targets for instance, ends this quietly.
    """
    used = set(followed.used)
    with state_preserved(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), hooked(*_hooks(model, followed)):
        for module in model.modules():
            module.training = any(True for _ in module.children())
        with contextlib.suppress(Exception), followed:
            followed.fix(output_leaves(call(model, inputs)), OUTPUT)
    followed.leave_all()
    followed.used = used


def _hooks(model: nn.Module, followed: Propagation) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Register hooks that tell which module runs, and that fix what enters modules of one width."""

    def enter(name: str) -> Any:
        return lambda module, args: followed.enter(name)

    def count(name: str) -> Any:
        return lambda module, args: followed.count(name, args[0], args[0].ndim - module._get_no_batch_dim())

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        followed.leave()

    def stop(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            followed.fix((args, kwargs), f"its units meet {name or 'a layer'} ({type(module).__name__})")
            if not can_lose_heads(module):
                followed.forget(result)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        yield module.register_forward_pre_hook(enter(name))
        yield module.register_forward_hook(leave)
        if isinstance(module, InstanceNorm):
            yield module.register_forward_pre_hook(count(name))
        if isinstance(module, _RIGID):
            yield module.register_forward_hook(stop(name), with_kwargs=True)


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating point tensors of a network's output: a tensor, or containers or an object that hold some."""
    tensors = [leaf for leaf in output_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise InvalidValueError(
            f"got a network that returns {type(output).__name__} without floating point tensors; it takes one that "
            "returns a tensor, or a tuple, list or dict of them, e.g. model=torch.nn.Linear(4, 2)."
        )
    return tensors
