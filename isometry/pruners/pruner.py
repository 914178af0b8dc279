"""Pruner: what a pruner owes; prune: the verb that runs one."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isometry.data import Data, Split
from isometry.networks import example_inputs
from isometry.surgery import Family, Graph, Plan, refuse, remove, trace

__all__ = ["Pruned", "Pruner", "Run", "Size", "magnitude", "prune"]


@dataclass(frozen=True)
class Size:
    """What a network weighs: parameters (count), FLOPs of one sample's forward pass (2 a multiply-add), bytes."""

    parameters: int
    flops: int
    bytes: int


@dataclass
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the physically smaller network, in eval mode.
        plan: the units that left, in the indices of the network given.
        history: what the pruner logged while it trained, a row an epoch; empty for one-shot pruners.
        before, after: `Size` of the network given and of `model`.
        left_alone: {layer: why none of its units left}.
    """

    model: nn.Module
    plan: Plan
    history: pd.DataFrame
    before: Size
    after: Size
    left_alone: dict[str, str]

    def __str__(self) -> str:
        return (
            f"{self.plan}\nparameters {self.before.parameters:,} -> {self.after.parameters:,}, "
            f"FLOPs {self.before.flops:,} -> {self.after.flops:,}, bytes {self.before.bytes:,} -> {self.after.bytes:,}"
        )


@dataclass
class Run:
    """One call of `prune`, as a pruner sees it: the copy it may train, and what there is to train it with.

    Attributes:
        model: a copy of the user's network, to be trained in place.
        graph: the traced families of `model`.
        data: the training split; None unless the caller gave one.
        seed: of everything random.
        progress: False silences the progress bar, None shows it in terminals and notebooks.
        checkpoint: file that lets an interrupted training go on, or None.
        records: rows for the history.
    """

    model: nn.Module
    graph: Graph
    data: Split | None
    seed: int
    progress: bool | None
    checkpoint: str | os.PathLike[str] | None
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Pruner:
    """What a pruner owes: an importance for every unit and, if it trains, training before or after the choice.

    A pruner is a frozen dataclass of hyperparameters. Write a new one by overriding `importance`, or `condition` and
    `recede` where units are to be trained towards leaving.
    """

    trains: ClassVar[bool] = False

    def condition(self, run: Run) -> None:
        """Train `run.model` in place before units are chosen; nothing by default."""

    def importance(self, run: Run, family: Family) -> Tensor:
        """Return a score for every unit of `family`: [units]; the lowest leave. Magnitude by default."""
        return magnitude(run.model, family)

    def recede(self, run: Run, chosen: list[tuple[Family, tuple[int, ...]]]) -> None:
        """Train `run.model` in place after the choice, before removal; nothing by default."""


def magnitude(model: nn.Module, family: Family) -> Tensor:
    """Return the mean absolute weight of every unit, averaged over the family's layers: [units] float64.

    A layer's score of a unit is the mean of |w| over its row (the L1 norm up to a factor).
    Source: Li et al., ICLR 2017; the mean and the averaging over coupled layers as in the TPP reference.
    """
    total = torch.zeros(family.units, dtype=torch.float64)
    members = family.of("units")
    for member in members:
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight").detach().double().cpu()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)
        scores = weight.abs().flatten(1).mean(1)
        for unit, indices in member.indices.items():
            total[unit] += scores[list(indices)].mean()
    return total / len(members)


def prune(
    model: nn.Module,
    pruner: Pruner,
    ratio: float | Mapping[str, float],
    *,
    data: Data | Split | tuple[Tensor, Tensor] | None = None,
    inputs: Tensor | None = None,
    layers: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Pruned:
    """Return a physically smaller copy of `model`, pruned by `pruner`; `model` is left alone.

    In every layer that may lose units, ceil(ratio x units) of them leave, at least one stays. The output layer keeps
    its units always. Afterwards the pruned network's outputs are compared with the masked network's.

    Args:
        model: any network that Torch-Pruning can trace.
        pruner: for instance `isometry.L1()`.
        ratio: the fraction of units removed, in [0, 1); or {layer name pattern: fraction}, in which later patterns
            win and layers that match none keep their units.
        data: what a pruner that trains is to train on: a `Data` (its training part), a `Split`, or (inputs, targets).
        inputs: [B, ...], a batch for tracing; taken from `data` or from the first layer's shape when None.
        layers: name patterns (fnmatch) of the layers that may lose units; None means all that can.
        seed: of everything random.
        progress: False silences the progress bar; None shows it in terminals and notebooks.
        checkpoint: a file that lets an interrupted training go on where it was.

    Returns:
        `Pruned`: model, plan, history, before, after.

    Raises:
        ValueError: a ratio outside [0, 1) or so high that a layer would be left empty, a pattern that matches
            nothing, two ratios in one family, a pruner that needs data without data, a model in which nothing can be
            pruned, and whatever the trace refuses (tied weights, masks, parametrisations).
    """
    if not isinstance(pruner, Pruner):
        raise TypeError(f"prune() got {pruner!r} as pruner; it takes a Pruner, e.g. prune(model, isometry.L1(), 0.8).")
    split = data.train if isinstance(data, Data) else None if data is None else Split(*data)
    if pruner.trains and split is None:
        name = type(pruner).__name__
        raise ValueError(
            f"{name} trains before it removes and got no data. Pass some, e.g. "
            f"prune(model, isometry.{name}(), 0.8, data=isometry.data.load('digits'))."
        )
    refuse(model)
    work = copy.deepcopy(model)
    if inputs is None:
        call = "prune(model, pruner, ratio, inputs=inputs)"
        inputs = split.inputs[:2] if split is not None else example_inputs(model, 2, call=call)
    inputs = inputs.to(next((p.device for p in model.parameters()), inputs.device))
    graph = trace(work, inputs)
    ratios = _ratios(graph, ratio, layers)
    run = Run(work, graph, split, seed, progress, checkpoint)
    pruner.condition(run)
    chosen = []
    for family in graph.families:
        if family.root in ratios:
            count = _count(family, ratios[family.root])
            order = pruner.importance(run, family).argsort(stable=True)
            chosen.append((family, tuple(sorted(order[:count].tolist()))))
    pruner.recede(run, chosen)
    plan = _plan(chosen)
    pruned = remove(work, plan, inputs).eval()
    alone = graph.fixed | {
        layer: "not asked for" for family in graph.families if family.root not in ratios for layer in family.layers
    }
    return Pruned(pruned, plan, pd.DataFrame(run.records), size(model, inputs), size(pruned, inputs), alone)


def size(model: nn.Module, inputs: Tensor) -> Size:
    """Return the `Size` of a network; FLOPs are counted on the first of `inputs` [B, ...]."""
    modes = {module: module.training for module in model.modules()}
    with FlopCounterMode(display=False) as counter:
        try:
            # With gradients enabled: fused attention would hide its FLOPs from the counter otherwise.
            model.eval()(inputs[:1])
        finally:
            for module, mode in modes.items():
                module.training = mode
    tensors = [*model.parameters(), *model.buffers()]
    return Size(
        sum(p.numel() for p in model.parameters()),
        counter.get_total_flops(),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def _ratios(graph: Graph, ratio: float | Mapping[str, float], layers: str | Sequence[str] | None) -> dict[str, float]:
    """Return {root layer: ratio} of the families that are to lose units."""
    if not graph.families:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in graph.fixed.items()) or "it has no layers"
        raise ValueError(
            f"prune() found nothing to prune ({reasons}). It needs a layer whose units another layer consumes, e.g. "
            "isometry.networks.build('mlp-7-relu')."
        )
    wanted = {"*": ratio} if not isinstance(ratio, Mapping) else dict(ratio)
    for value in wanted.values():
        if not 0 <= value < 1:
            raise ValueError(
                f"prune() got the ratio {value}; it is the fraction of units removed, at least 0 and below 1, e.g. "
                "prune(model, isometry.L1(), 0.8)."
            )
    known = [layer for family in graph.families for layer in family.layers]
    only = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
    for pattern in [*wanted, *(only or [])]:
        if not any(fnmatchcase(layer, pattern) for layer in known):
            fixed = {layer: why for layer, why in graph.fixed.items() if fnmatchcase(layer, pattern)}
            because = "".join(f" {layer} matches, but {why}." for layer, why in fixed.items())
            raise ValueError(
                f"prune() got the layer pattern {pattern!r}, which matches none of the layers that can lose units: "
                f"{', '.join(known)}.{because} E.g. prune(model, pruner, {{{known[0]!r}: 0.5}})."
            )
    found: dict[str, float] = {}
    for family in graph.families:
        given: dict[str, float] = {}
        for layer in family.layers:
            if only is not None and not any(fnmatchcase(layer, pattern) for pattern in only):
                continue
            matches = [value for pattern, value in wanted.items() if fnmatchcase(layer, pattern)]
            if matches:
                given[layer] = matches[-1]
        if len(set(given.values())) > 1:
            (one, first), (other, second) = sorted(given.items(), key=lambda item: item[1])[:: len(given) - 1][:2]
            raise ValueError(
                f"prune() got the ratio {first} for {one} and {second} for {other}, but their units can only leave "
                f"together. Give both the same, e.g. {{{one!r}: {first}, {other!r}: {first}}}."
            )
        if given:
            found[family.root] = next(iter(given.values()))
    return found


def _count(family: Family, ratio: float) -> int:
    """Return how many units of a family leave: ceil(ratio x units), but all of them never."""
    count = math.ceil(ratio * family.units - 1e-9)
    if ratio * family.units > family.units - 0.5:
        raise ValueError(
            f"prune() got the ratio {ratio} for {', '.join(family.layers)}, which would leave none of its "
            f"{family.units} units. At most {family.units - 1} can leave: ratio={(family.units - 1) / family.units:.4g}."
        )
    return min(count, family.units - 1)


def _plan(chosen: list[tuple[Family, tuple[int, ...]]]) -> Plan:
    removed, widths = {}, {}
    for family, units in chosen:
        for member in family.of("units"):
            removed[member.layer] = tuple(member.take(units))
            widths[member.layer] = sum(map(len, member.indices.values()))
    return Plan(removed, widths)
