"""Removal of units, and the check that the pruned network equals the masked one."""

from __future__ import annotations

import contextlib
import math
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data.nests import describe
from isometry.errors import InvalidValueError, join_names
from isometry.networks import placed
from isometry.networks.modules import call, clone
from isometry.networks.precision import full_precision, no_fast_path
from isometry.networks.preservation import evaluating, random_states_of
from isometry.surgery.graph import Graph, output_tensors, trace
from isometry.surgery.groups import Selection, UnitGroup
from isometry.surgery.plan import Plan

__all__ = ["InexactError", "cut", "find_inexact", "mask", "remove", "to_plan", "to_selection"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class InexactError(RuntimeError):
    """The pruned and the masked network differ: this network cannot be cut exactly there.

    Attributes:
        reason: which units cannot be removed, and why.
        why: the same without the layers.
    """

    def __init__(self, layers: list[str], why: str) -> None:
        self.why = why
        self.reason = f"The units of {join_names(layers)} cannot be removed ({why})"
        super().__init__(
            f"{self.reason}; this network cannot be cut exactly there. Leave the layer out, e.g. "
            "prune(..., skip=['pattern'])."
        )


def remove(model: nn.Module, plan: Plan, inputs: Any, *, check: bool = True) -> nn.Module:
    """Return a physically smaller copy of `model` without the plan's units; `model` is left alone.

    The copy's outputs at `inputs` are compared with those of the masked network; see `cut`.

    Args:
        model: the network the plan was made for.
        plan: units to remove, in the indices of `model`.
        inputs: [B, ...], a batch that the model accepts, for the trace and the check.
        check: False leaves the comparison out, where the weights are not those that the plan was made for.

    Raises:
        ValueError: the plan names layers or widths that `model` does not have, or breaks a group apart.
        InexactError: the pruned and the masked network differ.
    """
    inputs = placed(inputs, model)
    graph = trace(clone(model), inputs)
    selection = to_selection(graph, plan)
    if check:
        cut(graph, selection, inputs)
    else:
        for group, units in selection:
            graph.cut(group, units)
    return graph.model


def cut(graph: Graph, selection: Selection, inputs: Any) -> None:
    """Remove units from a traced network in place and compare it with the masked network.

    The masked network is the one whose consumers ignore the units, and whose LayerNorms and GroupNorms take their
    statistics over what is kept. Where a normalization is not one of torch's modules with weights, that comparison is
    void; such groups are cut last, so that the others are compared before.

    Args:
        graph: of the network to cut.
        selection: groups of `graph` with the units to remove.
        inputs: [B, ...], a batch that the network accepts, for the check.

    Raises:
        InexactError: the pruned and the masked network differ, or the pruned network does not run.
    """
    comparable = [(group, units) for group, units in selection if _maskable(graph.model, group)]
    others = [(group, units) for group, units in selection if not _maskable(graph.model, group)]
    for part in filter(None, (comparable, others)):
        layers = [layer for group, units in part if units for layer in group.layers]
        try:
            masked = mask(graph.model, part) if part is comparable else None
            for group, units in part:
                graph.cut(group, units)
            _check_equal(graph.model, masked, inputs)
        except (IndexError, RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise InexactError(layers, textwrap.shorten(str(error), 200)) from error


def find_inexact(graph: Graph, selection: Selection, inputs: Any) -> dict[str, str]:
    """Return {root of a group: why it cannot be cut} for those of `selection` whose units cannot be removed exactly.

    All are tried at once; where that fails, halves are tried together with what was found good until then, so that what
    is not returned can be cut together.

    Args:
        graph: left alone; copies of its network are cut.
        selection: groups of the graph, with units to try.
        inputs: [B, ...], a batch that the network accepts.
    """
    good: Selection = []
    inexact: dict[str, str] = {}

    def add(part: Selection) -> None:
        try:
            cut(graph.copy(), [*good, *part], inputs)
        except InexactError as error:
            if len(part) == 1:
                inexact[part[0][0].root] = InexactError(part[0][0].layers, error.why).reason
            else:
                half = len(part) // 2
                add(part[:half])
                add(part[half:])
        else:
            good.extend(part)

    if selection:
        add(selection)
    return inexact


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
        removed = {member.layer: set(plan.removed[member.layer]) for member in named}
        units = tuple(
            unit
            for unit in range(group.units)
            if any(unit in member.indices for member in named)
            and all(removed[member.layer].issuperset(member.indices.get(unit, ())) for member in named)
        )
        for member in group.of("units"):
            planned = plan.widths.get(member.layer), set(plan.removed.get(member.layer, ()))
            if planned != (member.width, set(member.take(units))):
                if planned[0] == member.width and set(group.layers) <= plan.removed.keys() and len(group.layers) == 1:
                    together = join_names([str(index) for index in member.indices[0]])
                    raise InvalidValueError(
                        f"got a plan that does not fit the network at {member.layer}: its units can only be removed in sets "
                        f"such as {together}. Apply a plan to the network it was made for."
                    )
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

    Whatever a unit adds (weights, bias, a BatchNorm's shift) thereby has no effect, as if the unit were removed; nor does
    it on the statistics of a `torch.nn.LayerNorm` or `torch.nn.GroupNorm` with weights.
    """
    masked = clone(model)
    ignored: dict[str, set[int]] = {}
    for group, units in selection:
        _zero_readers(masked, group, units)
        for cut in group.cuts:
            name, _, key = cut.tensor.rpartition(".")
            if name in group.mixes and key == "weight":
                ignored.setdefault(name, set()).update(cut.take(units))
    for name, gone in ignored.items():
        module = masked.get_submodule(name)
        if _normalizes(module) and gone:
            kept = [index for index in range(len(module.weight)) if index not in gone]  # type: ignore[arg-type]
            module.register_forward_hook(_Normalization(kept))
    return masked


def _normalizes(module: nn.Module) -> bool:
    """Whether a module is torch's LayerNorm or GroupNorm over channels, with weights."""
    weight = getattr(module, "weight", None)
    return type(module) in (nn.LayerNorm, nn.GroupNorm) and isinstance(weight, Tensor) and weight.ndim == 1


def _maskable(model: nn.Module, group: UnitGroup) -> bool:
    return all(_normalizes(model.get_submodule(name)) for name in group.mixes)


@dataclass(frozen=True)
class _Normalization:
    """A forward hook that normalizes over some channels alone, and gives zeros for the others."""

    kept: list[int]

    def __call__(self, module: Any, args: Any, result: Tensor) -> Tensor:
        kept = torch.tensor(self.kept, device=result.device)
        layer = isinstance(module, nn.LayerNorm)
        dim = -1 if layer else 1
        source = args[0].index_select(dim, kept)
        weight, bias = (None if tensor is None else tensor[kept] for tensor in (module.weight, module.bias))
        if layer:
            part = nn.functional.layer_norm(source, (len(kept),), weight, bias, module.eps)
        else:
            part = nn.functional.group_norm(source, module.num_groups, weight, bias, module.eps)
        return torch.zeros_like(result).index_copy_(dim % result.ndim, kept, part)


def _zero_readers(model: nn.Module, group: UnitGroup, units: tuple[int, ...]) -> None:
    """Zero the weights by which the layers behind a group read its units, in place."""
    for cut in group.cuts:
        if cut.read:
            owner, _, key = cut.tensor.rpartition(".")
            tensor = getattr(model.get_submodule(owner), key)
            tensor.index_fill_(cut.dim, torch.tensor(cut.take(units), dtype=torch.long, device=tensor.device), 0)


@torch.no_grad()
def _check_equal(pruned: nn.Module, masked: nn.Module | None, inputs: Any) -> None:
    """Raise a RuntimeError unless the pruned network runs and equals the masked one, where there is one.

    Where they differ in single precision, double precision tells rounding from a wrong cut.
    """
    nets = [pruned] if masked is None else [pruned, masked]
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in pruned.parameters()):  # rounding would hide a difference
        nets = [clone(net).float() for net in nets]
        inputs = placed(inputs, nets[0])
    outputs = _run(nets, inputs)
    if masked is None:
        return
    gap, dtype = _gap(outputs)
    if dtype == torch.float32 and gap > _TOLERANCE[dtype]:
        with contextlib.suppress(RuntimeError, TypeError):  # a precision that the network's code fixes
            nets = [clone(net).double() for net in nets]
            gap, dtype = _gap(_run(nets, placed(inputs, nets[0])))
    if not gap <= _TOLERANCE.get(dtype, 2e-2):  # half precision inside
        raise RuntimeError(f"the pruned network differs from the masked one by {gap:.1e} (relative)")


def _run(nets: list[nn.Module], inputs: Any) -> list[list[Tensor]]:
    """Return the outputs of the networks in eval mode, without reduced precision, with the same random numbers."""
    with evaluating(*nets), full_precision(), no_fast_path():
        outputs = [_outputs(net, inputs) for net in nets]
    # Infinite ones may be meant, as scores of what is ruled out.
    if len(nets) == 2 and any(output.isnan().any() or output.isinf().all() for output in outputs[1]):
        raise RuntimeError(f"the outputs of the network at inputs of {describe(inputs)} are not finite")
    return outputs


def _outputs(net: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the outputs of a network, after which the generators stand where they stood before."""
    with random_states_of(net):
        return output_tensors(call(net, inputs))


def _gap(outputs: list[list[Tensor]]) -> tuple[float, torch.dtype]:
    """Return the largest relative difference between the outputs of two networks, and their precision."""
    gap, dtype = 0.0, torch.float64
    for small, large in zip(*outputs, strict=True):
        finite, dtype = large.isfinite(), large.dtype
        if small.shape != large.shape or not torch.equal(small[~finite], large[~finite]):
            return math.inf, dtype
        differences, sizes = (small - large)[finite].abs(), large[finite].abs()
        found = float(differences.max() / sizes.max().clamp_min(torch.finfo(dtype).tiny))
        gap = found if found > gap or math.isnan(found) else gap
    return gap, dtype
