"""Removal of a plan's units, and the check that the pruned network equals the masked one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from isometry.networks import placed
from isometry.networks.precision import full_precision
from isometry.surgery.groups import Graph, UnitGroup, output_tensors, trace
from isometry.surgery.plan import Plan

__all__ = ["find_inexact", "mask", "remove", "to_plan"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def remove(model: nn.Module, plan: Plan, inputs: Tensor) -> nn.Module:
    """Return a physically smaller copy of `model` without the plan's units; `model` is left alone.

    The copy's outputs at `inputs` are compared with those of the masked network, the one whose consumers ignore the
    units that leave; LayerNorm and GroupNorm over removed channels make that comparison void and are exempt.

    Args:
        model: the network the plan was made for.
        plan: units that leave, in the indices of `model`.
        inputs: [B, ...], a batch that the model accepts, for the trace and the check.

    Raises:
        ValueError: the plan names layers or widths that `model` does not have, or breaks a group apart.
        RuntimeError: the pruned and the masked network differ: this network cannot be cut exactly.
    """
    inputs = placed(inputs, model)
    graph = trace(copy.deepcopy(model), inputs)
    _cut(model, graph, units_of(graph, plan), inputs)
    return graph.model


def find_inexact(model: nn.Module, chosen: list[tuple[UnitGroup, tuple[int, ...]]], inputs: Tensor) -> dict[str, str]:
    """Return {root of a group: why it cannot be cut} for those of `chosen` whose units cannot leave exactly.

    All are tried at once; where that fails, halves are tried until the culprits stand alone.

    Args:
        model: left alone.
        chosen: groups of a trace of `model`, with units to try.
        inputs: [B, ...], a batch that it accepts.
    """
    if not chosen:
        return {}
    graph = trace(copy.deepcopy(model), inputs)
    fresh = {group.root: group for group in graph.groups}
    try:
        _cut(model, graph, [(fresh[group.root], units) for group, units in chosen], inputs)
    except RuntimeError as error:
        if len(chosen) == 1:
            return {chosen[0][0].root: str(error).split("; ")[0]}
        half = len(chosen) // 2
        return find_inexact(model, chosen[:half], inputs) | find_inexact(model, chosen[half:], inputs)
    return {}


def to_plan(chosen: list[tuple[UnitGroup, tuple[int, ...]]]) -> Plan:
    """Return the plan that takes the chosen units out of every layer of their groups."""
    removed, widths = {}, {}
    for group, units in chosen:
        for member in group.of("units"):
            removed[member.layer] = tuple(member.take(units))
            widths[member.layer] = sum(map(len, member.indices.values()))
    return Plan(removed, widths)


def _cut(model: nn.Module, graph: Graph, chosen: list[tuple[UnitGroup, tuple[int, ...]]], inputs: Tensor) -> None:
    """Cut the traced copy of `model` in place and compare it with the masked network.

    Groups that normalize over channels are cut last, for the others to be compared before.
    """
    exact = [(group, units) for group, units in chosen if not group.mixes]
    mixing = [(group, units) for group, units in chosen if group.mixes]
    for part, masked in ((exact, True), (mixing, False)):
        if not part:
            continue
        layers = ", ".join(layer for group, units in part if units for layer in group.layers)
        try:
            for group, units in part:
                graph.cut(group, units)
            _check(graph.model, mask(model, part) if masked else None, inputs, layers)
        except (IndexError, RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"The units of {layers} cannot leave ({error}); this network cannot be cut exactly there. Leave the "
                "layer out, e.g. prune(..., skip=['pattern'])."
            ) from error


def mask(model: nn.Module, chosen: list[tuple[UnitGroup, tuple[int, ...]]]) -> nn.Module:
    """Return a copy of `model` of unchanged shape in which every consumer ignores the chosen units.

    Whatever a unit adds (weights, bias, a BatchNorm's shift) is thereby gone, as if the unit had left.
    """
    masked = copy.deepcopy(model)
    for group, units in chosen:
        _ignore(masked, group, units)
    return masked


@torch.no_grad()
def _ignore(model: nn.Module, group: UnitGroup, units: tuple[int, ...]) -> None:
    for member in group.of("inputs"):
        _zero_inputs(model.get_submodule(member.layer), member.take(units))


def _zero_inputs(layer: nn.Module, channels: list[int]) -> None:
    weight = layer.get_parameter("weight")
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        weight[channels] = 0
    elif (groups := getattr(layer, "groups", 1)) == 1:
        weight[:, channels] = 0
    else:
        share_in, share_out = weight.shape[1], weight.shape[0] // groups
        for channel in channels:
            group = channel // share_in
            weight[group * share_out : (group + 1) * share_out, channel % share_in] = 0


def units_of(graph: Graph, plan: Plan) -> list[tuple[UnitGroup, tuple[int, ...]]]:
    """Return the groups and units that a plan speaks of; refuse a plan that does not fit the network."""
    chosen, covered = [], set()
    for group in graph.groups:
        named = [member for member in group.of("units") if plan.removed.get(member.layer)]
        if not named:
            continue
        gone = set(plan.removed[named[0].layer])
        units = tuple(unit for unit, indices in named[0].indices.items() if gone.issuperset(indices))
        for member in group.of("units"):
            width = sum(map(len, member.indices.values()))
            if plan.widths.get(member.layer) != width or set(plan.removed[member.layer]) != set(member.take(units)):
                raise ValueError(
                    f"The plan does not fit the network at {member.layer}: it has {width} units, coupled with "
                    f"{', '.join(group.layers)}; the plan was made for {plan.widths.get(member.layer)} units there. "
                    "Apply a plan to the network it was made for."
                )
            covered.add(member.layer)
        chosen.append((group, units))
    if missing := sorted(layer for layer, units in plan.removed.items() if units and layer not in covered):
        reasons = "; ".join(f"{layer}: {graph.fixed.get(layer, 'no such layer')}" for layer in missing)
        raise ValueError(f"The plan does not fit the network: {reasons}. Apply a plan to the network it was made for.")
    return chosen


@torch.no_grad()
def _check(pruned: nn.Module, masked: nn.Module | None, inputs: Tensor, layers: str) -> None:
    """Raise a RuntimeError unless the pruned network runs and equals the masked one, where there is one."""
    nets = [pruned] if masked is None else [pruned, masked]
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in pruned.parameters()):  # rounding would hide a difference
        nets = [copy.deepcopy(net).float() for net in nets]
        inputs = placed(inputs, nets[0])
    modes = {module: module.training for net in nets for module in net.modules()}
    try:
        with full_precision(), torch.autocast(inputs.device.type, enabled=False):
            outputs = [output_tensors(net.eval()(inputs)) for net in nets]
    finally:
        for module, mode in modes.items():
            module.training = mode
    for small, large in zip(*outputs, strict=True) if masked is not None else ():
        if not bool(torch.isfinite(large).all()):
            raise RuntimeError(f"the outputs of the network at inputs of shape {tuple(inputs.shape)} are not finite")
        gap = float((small - large).abs().max() / large.abs().max().clamp_min(torch.finfo(large.dtype).tiny))
        if not gap <= _TOLERANCE.get(large.dtype, 2e-2):  # half precision inside
            raise RuntimeError(f"the pruned network differs from the masked one by {gap:.1e} (relative) at {layers}")
