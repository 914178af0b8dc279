"""The state of an optimizer, carried across surgery."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from isometry.networks import example_inputs, placed
from isometry.surgery.groups import trace
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import units_of

__all__ = ["transfer_optimizer_state"]


def transfer_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, result: Applied, *, inputs: Tensor | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer of the pruned network that goes on where `optimizer` stood; both arguments are left alone.

    After surgery an optimizer still holds the parameters of the network before. The new one has the same class, groups
    and options, and of every state tensor the entries of the units that stayed: the state is put in the place of the
    weights and cut as they were.

    Args:
        optimizer: of parameters of `model`.
        model: the network before pruning.
        result: what `prune(model, ...)` returned, or anything with a `model` and its `plan`.
        inputs: [B, ...], a batch that `model` accepts, for the trace; None asks the first layer for the shape.

    Raises:
        ValueError: the optimizer holds parameters that are not the model's, or state of other shapes than theirs.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if strangers := sum(id(p) not in names for p in held):
        raise ValueError(
            f"transfer_optimizer_state() got an optimizer of which {strangers} of {len(held)} parameters are not the model's; it takes the "
            "optimizer of the network before pruning, e.g. transfer_optimizer_state(optimizer, model, isometry.prune(model, isometry.L1(), 0.5))."
        )
    foreign = {
        key
        for p in held
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.ndim and value.shape != p.shape
    }
    if foreign:
        raise ValueError(
            f"transfer_optimizer_state() got {type(optimizer).__name__}, whose state ({', '.join(sorted(foreign))}) is not of its parameters' "
            "shapes and cannot be cut like them. Start a new one on the pruned network: "
            f"torch.optim.{type(optimizer).__name__}(pruned.model.parameters())."
        )
    if inputs is None:
        inputs = example_inputs(model, 2, call="transfer_optimizer_state(optimizer, model, result, inputs=inputs)")
    fresh = dict(result.model.named_parameters())
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [fresh[names[id(p)]] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    make: Any = type(optimizer)
    try:
        carried = make(groups)
    except TypeError:  # some demand a rate of their own
        carried = make(groups, lr=groups[0]["lr"])
    keys = {key for p in held for key, value in optimizer.state.get(p, {}).items() if _shaped(value, p)}
    cut = {key: _cut(optimizer, key, model, result.plan, inputs) for key in keys}
    for p in held:
        name = names[id(p)]
        state: dict[str, Any] = {
            key: torch.empty_like(fresh[name]).copy_(cut[key][name]) if _shaped(value, p) else copy.deepcopy(value)
            for key, value in optimizer.state.get(p, {}).items()
        }
        if state:
            carried.state[fresh[name]] = state
    return carried


def _shaped(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0


def _cut(optimizer: torch.optim.Optimizer, key: str, model: nn.Module, plan: Plan, inputs: Tensor) -> dict[str, Tensor]:
    """Return the state tensors of one key after surgery, by the names of their parameters."""
    graph = trace(copy.deepcopy(model), placed(inputs, model))
    with torch.no_grad():
        for p, stand_in in zip(model.parameters(), graph.model.parameters(), strict=True):
            value = optimizer.state[p].get(key) if p in optimizer.state else None
            stand_in.copy_(value if isinstance(value, Tensor) else torch.zeros_like(p))
    for group, units in units_of(graph, plan):
        graph.cut(group, units)
    return {name: p.detach() for name, p in graph.model.named_parameters()}
