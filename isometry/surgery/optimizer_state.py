"""The state of an optimizer, transferred to the network after surgery."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.networks import example_inputs, placed
from isometry.networks.modules import clone, unwrap
from isometry.surgery.graph import trace
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import to_selection

__all__ = ["transfer_optimizer_state"]


@signed("transfer_optimizer_state")
def transfer_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, result: Applied, *, inputs: Any = None
) -> torch.optim.Optimizer:
    """Return an optimizer of the pruned network that goes on where `optimizer` stood; both arguments are left alone.

    After surgery an optimizer still holds the parameters of the network before. The new one has the same class, groups
    and options, and of every state tensor the entries that belong to the weights that are kept.

    Args:
        optimizer: of parameters of `model`.
        model: the network before pruning.
        result: what `prune(model, ...)` returned, or anything with a `model` and its `plan`.
        inputs: [B, ...], a batch that `model` accepts, for the trace; None draws one of a shape that it is
            found to take.

    Raises:
        ValueError: the optimizer holds parameters that are not the model's, or state of other shapes than theirs; or its
            class takes arguments that its groups do not hold.
    """
    if not (isinstance(getattr(result, "model", None), nn.Module) and isinstance(getattr(result, "plan", None), Plan)):
        raise InvalidTypeError(
            f"got {type(result).__name__} as result; it takes what prune() returned, with its model and plan, e.g. "
            "transfer_optimizer_state(optimizer, model, isometry.prune(model, isometry.L1(), 0.5))."
        )
    model = unwrap(model)
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _check_transferable(optimizer, parameters, names)
    if inputs is None:
        inputs = example_inputs(model, 2, call="transfer_optimizer_state(optimizer, model, result, inputs=inputs)")
    after = dict(unwrap(result.model).named_parameters())
    after |= {name.removesuffix("_orig"): p for name, p in after.items() if name.endswith("_orig")}  # behind a mask
    transferred = _alike(optimizer, {id(p): after[names[id(p)]] for p in parameters})
    kept: dict[str, Tensor] = {}
    if any(_is_shaped(value, p) for p in parameters for value in optimizer.state.get(p, {}).values()):
        kept = _kept_entries(model, result.plan, inputs)
    for p in parameters:
        name = names[id(p)]
        state: dict[str, Any] = {
            key: torch.empty_like(after[name], dtype=value.dtype).copy_(value.flatten()[kept[name]])
            if _is_shaped(value, p)
            else copy.deepcopy(value)
            for key, value in optimizer.state.get(p, {}).items()
        }
        if state:
            transferred.state[after[name]] = state
    return transferred


def _check_transferable(optimizer: torch.optim.Optimizer, parameters: list[Tensor], names: dict[int, str]) -> None:
    """Raise an error unless the parameters are the model's and the state has their shapes."""
    if strangers := sum(id(p) not in names for p in parameters):
        raise InvalidValueError(
            f"got an optimizer of which {strangers} of {len(parameters)} parameters are not the model's; it takes the "
            "optimizer of the network before pruning, e.g. transfer_optimizer_state(optimizer, model, "
            "isometry.prune(model, isometry.L1(), 0.5))."
        )
    foreign = {
        key
        for p in parameters
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.ndim and value.shape != p.shape
    }
    if foreign:
        name = type(optimizer).__name__
        raise InvalidValueError(
            f"got {name}, whose state ({', '.join(sorted(foreign))}) is not of its parameters' shapes and cannot be "
            f"cut like them. Start a new one on the pruned network: torch.optim.{name}(pruned.model.parameters())."
        )


def _alike(optimizer: torch.optim.Optimizer, parameters: dict[int, nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer of the same class, groups and options, without state.

    Args:
        optimizer: left alone.
        parameters: {id of a parameter of `optimizer`: the parameter in its place}.
    """
    groups = [{**group, "params": [parameters[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    make: Any = type(optimizer)
    known = {key: value for key, value in optimizer.defaults.items() if key in inspect.signature(make).parameters}
    try:
        other = make(groups, **known)
    except TypeError as error:
        raise InvalidValueError(
            f"cannot make another {make.__name__} from the groups and defaults of this one ({error}). Start a new one on the pruned "
            "network, e.g. torch.optim.SGD(pruned.model.parameters(), lr=0.01)."
        ) from error
    other.defaults.update(optimizer.defaults)
    return other


def _is_shaped(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0


@torch.no_grad()
def _kept_entries(model: nn.Module, plan: Plan, inputs: Any) -> dict[str, Tensor]:
    """Return {parameter: the entries of the flattened original that are kept, in the shape after surgery}.

    A copy of the network is cut whose weights are their own positions; float64 holds them exactly.
    """
    if not any(plan.removed.values()):
        return {name: torch.arange(p.numel(), device=p.device).view(p.shape) for name, p in model.named_parameters()}
    graph = trace(clone(model), placed(inputs, model))
    for p in graph.model.parameters():
        p.data = torch.arange(p.numel(), dtype=torch.float64, device=p.device).view(p.shape)
    for group, units in to_selection(graph, plan):
        graph.cut(group, units)
    return {name: p.detach().long() for name, p in graph.model.named_parameters()}
