"""Removal of units, and the check that the pruned network equals the masked one."""

from __future__ import annotations

import copy
import textwrap
from typing import Any

import torch
from torch import nn

from isometry.data.nests import describe, tensors_in
from isometry.errors import InvalidValueError, join_names
from isometry.networks import placed
from isometry.networks.modules import call, evaluating, is_transposed
from isometry.networks.precision import full_precision
from isometry.surgery.graph import Graph, output_tensors, trace
from isometry.surgery.groups import Selection, UnitGroup
from isometry.surgery.plan import Plan

__all__ = ["InexactError", "cut", "find_inexact", "mask", "remove", "to_plan", "to_selection"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class InexactError(RuntimeError):
    """The pruned and the masked network differ: this network cannot be cut exactly there.

    Attributes:
        reason: which units cannot be removed, and why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; this network cannot be cut exactly there. Leave the layer out, e.g. "
            "prune(..., skip=['pattern'])."
        )
        self.reason = reason


def remove(model: nn.Module, plan: Plan, inputs: Any) -> nn.Module:
    """Return a physically smaller copy of `model` without the plan's units; `model` is left alone.

    The copy's outputs at `inputs` are compared with those of the masked network; see `cut`.

    Args:
        model: the network the plan was made for.
        plan: units to remove, in the indices of `model`.
        inputs: [B, ...], a batch that the model accepts, for the trace and the check.

    Raises:
        ValueError: the plan names layers or widths that `model` does not have, or breaks a group apart.
        InexactError: the pruned and the masked network differ.
    """
    inputs = placed(inputs, model)
    graph = trace(copy.deepcopy(model), inputs)
    cut(graph, to_selection(graph, plan), inputs)
    return graph.model


def cut(graph: Graph, selection: Selection, inputs: Any) -> None:
    """Remove units from a traced network in place and compare it with the masked network.

    The masked network is the one whose consumers ignore the units; LayerNorm and GroupNorm over removed channels make
    that comparison void. Groups with such layers are cut last, so that the others are compared before.

    Args:
        graph: of the network to cut.
        selection: groups of `graph` with the units to remove.
        inputs: [B, ...], a batch that the network accepts, for the check.

    Raises:
        InexactError: the pruned and the masked network differ, or the pruned network does not run.
    """
    comparable = [(group, units) for group, units in selection if not group.mixes]
    mixing = [(group, units) for group, units in selection if group.mixes]
    for part in filter(None, (comparable, mixing)):
        layers = join_names([layer for group, units in part if units for layer in group.layers])
        try:
            masked = mask(graph.model, part) if part is comparable else None
            for group, units in part:
                graph.cut(group, units)
            _check_equal(graph.model, masked, inputs, layers)
        except (IndexError, RuntimeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise InexactError(f"The units of {layers} cannot be removed ({reason})") from error


def find_inexact(model: nn.Module, selection: Selection, inputs: Any) -> dict[str, str]:
    """Return {root of a group: why it cannot be cut} for those of `selection` whose units cannot be removed exactly.

    All are tried at once; where that fails, halves are tried until the culprits stand alone.

    Args:
        model: left alone; copies of it are cut.
        selection: groups of a trace of `model`, with units to try.
        inputs: [B, ...], a batch that it accepts.
    """
    if not selection:
        return {}
    graph = trace(copy.deepcopy(model), inputs)
    groups = {group.root: group for group in graph.groups}
    try:
        cut(graph, [(groups[group.root], units) for group, units in selection], inputs)
    except InexactError as error:
        if len(selection) == 1:
            return {selection[0][0].root: error.reason}
        half = len(selection) // 2
        return find_inexact(model, selection[:half], inputs) | find_inexact(model, selection[half:], inputs)
    return {}


def to_plan(selection: Selection) -> Plan:
    """Return the plan that removes the selected units of every layer of their groups."""
    removed, widths = {}, {}
    for group, units in selection:
        for member in group.of("units"):
            removed[member.layer] = tuple(member.take(units))
            widths[member.layer] = member.width
    return Plan(removed, widths)


def to_selection(graph: Graph, plan: Plan) -> Selection:
    """Return the groups and units that a plan names; raise a ValueError for a plan that does not fit the network."""
    selection: Selection = []
    covered: set[str] = set()
    for group in graph.groups:
        named = [member for member in group.of("units") if plan.removed.get(member.layer)]
        if not named:
            continue
        removed = set(plan.removed[named[0].layer])
        units = tuple(unit for unit, indices in named[0].indices.items() if removed.issuperset(indices))
        for member in group.of("units"):
            planned = plan.widths.get(member.layer), set(plan.removed.get(member.layer, ()))
            if planned != (member.width, set(member.take(units))):
                raise InvalidValueError(
                    f"got a plan that does not fit the network at {member.layer}: it has {member.width} units, coupled "
                    f"with {join_names(group.layers)}; the plan was made for {planned[0]} units there. Apply a plan to "
                    "the network it was made for."
                )
            covered.add(member.layer)
        selection.append((group, units))
    if missing := sorted(layer for layer, units in plan.removed.items() if units and layer not in covered):
        reasons = [f"{layer}: {graph.fixed.get(layer, 'no such layer')}" for layer in missing]
        raise InvalidValueError(
            f"got a plan that does not fit the network: {join_names(reasons)}. Apply a plan to the network it was made "
            "for."
        )
    return selection


@torch.no_grad()
def mask(model: nn.Module, selection: Selection) -> nn.Module:
    """Return a copy of `model` of unchanged shape in which every consumer ignores the selected units.

    Whatever a unit adds (weights, bias, a BatchNorm's shift) thereby has no effect, as if the unit were removed.
    """
    masked = copy.deepcopy(model)
    for group, units in selection:
        _zero_readers(masked, group, units)
    return masked


def _zero_readers(model: nn.Module, group: UnitGroup, units: tuple[int, ...]) -> None:
    """Zero the weights by which the layers behind a group read its units, in place."""
    for member in group.of("inputs"):
        layer, channels = model.get_submodule(member.layer), member.take(units)
        weight = layer.get_parameter("weight")
        if is_transposed(layer):
            weight[channels] = 0
        elif (groups := getattr(layer, "groups", 1)) == 1:
            weight[:, channels] = 0
        else:
            inputs, outputs = weight.shape[1], weight.shape[0] // groups  # of each group of the convolution
            for channel in channels:
                index = channel // inputs
                weight[index * outputs : (index + 1) * outputs, channel % inputs] = 0


@torch.no_grad()
def _check_equal(pruned: nn.Module, masked: nn.Module | None, inputs: Any, layers: str) -> None:
    """Raise a RuntimeError unless the pruned network runs and equals the masked one, where there is one."""
    nets = [pruned] if masked is None else [pruned, masked]
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in pruned.parameters()):  # rounding would hide a difference
        nets = [copy.deepcopy(net).float() for net in nets]
        inputs = placed(inputs, nets[0])
    with evaluating(*nets), full_precision(), torch.autocast(tensors_in(inputs)[0].device.type, enabled=False):
        outputs = [output_tensors(call(net, inputs)) for net in nets]
    for small, large in zip(*outputs, strict=True) if masked is not None else ():
        if not bool(torch.isfinite(large).all()):
            raise RuntimeError(f"the outputs of the network at inputs of {describe(inputs)} are not finite")
        gap = float((small - large).abs().max() / large.abs().max().clamp_min(torch.finfo(large.dtype).tiny))
        if not gap <= _TOLERANCE.get(large.dtype, 2e-2):  # half precision inside
            raise RuntimeError(f"the pruned network differs from the masked one by {gap:.1e} (relative) at {layers}")
