"""Preparation: a network made ready to be pruned, and the steps from there to the smaller one.

`prune` takes them at once and trains in between; `Pruning` takes them while the user trains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import Batches, read_data
from isometry.data.nests import first_samples, tensors_in
from isometry.errors import InvalidTypeError, InvalidValueError, join_names
from isometry.networks import describe_inputs, example_inputs, placed, size
from isometry.networks.checks import check_module
from isometry.networks.modules import UNIT_LAYERS, clone, unwrap
from isometry.networks.preservation import random_preserved
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.pruners.result import Pruned
from isometry.pruners.selection import check_request, listed, requested_ratios, select
from isometry.surgery import Graph, InexactError, Selection, check_supported, cut, find_inexact, remove, to_plan, trace
from isometry.training.objective import Loss, Metric

__all__ = ["Preparation", "prepare", "samples_of"]


@dataclass(frozen=True)
class Preparation:
    """A network made ready to be pruned, with the steps that remain.

    In their order: `pruner.train_before_selection(context)`, `select`, `pruner.train_after_selection(context,
    selection)`, `remove`, `describe`.

    Attributes:
        model: the original network, left alone.
        pruner: selects the units.
        graph: the trace of the copy that is pruned, `context.model`.
        ratios: {root of a group: fraction of its units to remove}; groups that are not named keep all.
        uncuttable: {root of a group: why it cannot be cut exactly} of requested groups that are left alone.
        inputs: [B, ...], a batch that the network accepts, or a tuple or dict of its arguments.
        context: what the pruner is given.
        flops: the fraction of FLOPs to remove in place of the ratios, or None.
        round_to: kept units are rounded up to a multiple of it.
    """

    model: nn.Module
    pruner: Pruner
    graph: Graph
    ratios: dict[str, float]
    uncuttable: dict[str, str]
    inputs: Any
    context: PruningContext
    flops: float | None = None
    round_to: int = 1

    def select(self) -> Selection:
        """Return the units to remove from `context.model` as it is now."""
        groups = self.context.groups
        scores = {group.root: self.pruner.importance(self.context, group) for group in groups}
        if self.flops is None:
            return self._select(scores, self.ratios)
        return self._select_by_flops(scores, self.flops)

    def _select(self, scores: Mapping[str, Tensor], ratios: Mapping[str, float], clamp: bool = False) -> Selection:
        pruner = self.pruner
        return select(
            self.context.groups,
            ratios,
            scores,
            scope=pruner.scope,
            floor=pruner.floor,
            round_to=self.round_to,
            clamp=clamp,
        )

    def _select_by_flops(self, scores: Mapping[str, Tensor], flops: float) -> Selection:
        """Return the selection at the smallest ratio that removes the fraction `flops`, to a thousandth of a ratio."""
        network = self.context.model
        before = size(network, self.inputs).flops

        def select_at(ratio: float) -> Selection:
            return self._select(scores, dict.fromkeys(self.ratios, ratio), clamp=True)

        def removed(ratio: float) -> float:
            """Return the fraction of FLOPs; 1 where so much cannot be cut exactly, a layer of a single unit for instance."""
            try:
                smaller = remove(network, to_plan(select_at(ratio)), self.inputs)
            except InexactError:
                return 1.0
            return 1 - size(smaller, self.inputs).flops / before

        low, high = 0.0, 0.999
        if (most := removed(high)) < flops:
            raise InvalidValueError(
                f"got flops={flops}, but at most {most:.3f} of the FLOPs can be removed from the layers that may lose "
                f"units. Request less, e.g. prune(model, pruner, flops={most * 0.9:.2f})."
            )
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if removed(middle) >= flops else (middle, high)
        return select_at(high)

    def remove(self, selection: Selection) -> nn.Module:
        """Cut the selected units out of `context.model`, in place, and return it in eval mode.

        The trace made before any training is used: training changes the weights and not the graph.
        """
        self.graph.model.zero_grad()  # gradients of the training, if there was one
        cut(self.graph, [(group, units) for group, units in selection if units], self.inputs)
        return self.graph.model.eval()

    def remove_from_copy(self, selection: Selection) -> nn.Module:
        """Return a copy of `context.model` without the selected units, in eval mode."""
        model = self.context.model
        return remove(model, to_plan([(group, units) for group, units in selection if units]), self.inputs).eval()

    def describe(self, selection: Selection, pruned: nn.Module) -> Pruned:
        """Return the result: the pruned network with its plan, history and sizes, and why layers were left alone."""
        from pandas import DataFrame  # takes long to import

        left_alone = self.graph.fixed | {
            layer: self.uncuttable.get(group.root, "not requested")
            for group in self.graph.groups
            if group.root not in self.ratios
            for layer in group.layers
        }
        left_alone |= {
            layer: "none of its units can be removed at this ratio, floor and rounding"
            for group, units in selection
            if not units and self.ratios[group.root]
            for layer in group.layers
        }
        return Pruned(
            pruned,
            to_plan(selection),
            DataFrame(self.context.records),
            size(self.model, self.inputs),
            size(pruned, self.inputs),
            left_alone,
            tuple(sorted({name for group, units in selection if units for name in group.mixes})),
            describe_inputs(self.inputs),
        )


def prepare(
    model: nn.Module,
    pruner: Pruner,
    ratio: float | Mapping[str, float] | None = None,
    *,
    flops: float | None = None,
    data: Any = None,
    inputs: Any = None,
    layers: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    round_to: int = 1,
    loss: Loss | None = None,
    metric: Metric | None = None,
    autocast: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    own_loop: bool = False,
    steps_per_epoch: int | None = None,
) -> Preparation:
    """Check the arguments, trace a copy of the network and find out what can be removed; see `prune` for all of them.

    What cannot be requested is refused here, before any training. With `own_loop` the user trains, as with `Pruning`:
    no data are needed, and `steps_per_epoch` is how many of the user's steps are an epoch.
    """
    check_module(model, "prune(isometry.networks.build('lenet-5-relu'), isometry.L1(), 0.5)")
    model, layers, skip = unwrap(model), listed(layers), listed(skip)
    check_request(ratio=ratio, flops=flops, round_to=round_to, layers=layers, skip=skip, seed=seed)
    _check_arguments(pruner, ratio, flops, inputs)
    if pruner.needs_data and data is None and not own_loop:
        name = type(pruner).__name__
        raise ValueError(
            f"{name} trains before it removes and got no data. Pass some, e.g. "
            f"prune(model, isometry.{name}(), 0.8, data=isometry.data.load('digits'))."
        )
    check_supported(model)
    if inputs is None:
        call = f"{'Pruning' if own_loop else 'prune'}(model, pruner, ratio, inputs=inputs)"
        inputs = example_inputs(model, 2, call=call) if data is None else samples_of(data)
    inputs = placed(inputs, model)
    graph = trace(clone(model), inputs)
    requested = requested_ratios(graph, 0.5 if ratio is None else ratio, layers, skip)
    if not requested:
        raise InvalidValueError(
            f"got ratio={ratio}, layers={layers}, skip={skip}, which leave no layer to prune of "
            f"{join_names([layer for group in graph.groups for layer in group.layers])}. Request at least one, e.g. "
            "layers='*', skip=None."
        )
    unsuited = _find_unsuited(graph, requested, pruner)
    suited = {root: value for root, value in requested.items() if root not in unsuited}
    uncuttable = unsuited | _find_uncuttable(graph, suited, inputs, floor=pruner.floor, round_to=round_to)
    ratios = {root: value for root, value in requested.items() if root not in uncuttable}
    if not ratios:
        raise InvalidValueError(f"found nothing that can be cut exactly: {join_names(list(uncuttable.values()))}.")
    groups = [group for group in graph.groups if group.root in ratios]
    context = PruningContext(
        graph.model,
        groups,
        data,
        seed,
        progress,
        checkpoint,
        autocast,
        inputs=inputs,
        steps_per_epoch=steps_per_epoch,
        loss=loss,
        metric=metric,
    )
    preparation = Preparation(model, pruner, graph, ratios, uncuttable, inputs, context, flops, round_to)
    if pruner.trains:
        preparation.select()
    return preparation


def _check_arguments(pruner: object, ratio: object, flops: object, inputs: object) -> None:
    if not isinstance(pruner, Pruner):
        raise InvalidTypeError(f"got {pruner!r} as pruner; it takes a Pruner, e.g. prune(model, isometry.L1(), 0.8).")
    if (ratio is None) == (flops is None):
        raise InvalidValueError(
            f"got ratio={ratio}, flops={flops}; it takes either a ratio in [0, 1) or a fraction of FLOPs removed in (0, 1), "
            "e.g. prune(model, isometry.L1(), flops=0.5)."
        )
    nested = isinstance(inputs, Tensor | tuple | Mapping)
    if inputs is not None and not (nested and tensors_in(inputs)):
        raise InvalidTypeError(
            f"got inputs of type {type(inputs).__name__}; it takes a tensor [B, ...], or a tuple or dict of all of the network's "
            "arguments, e.g. torch.randn(2, 3, 32, 32)."
        )


def _find_unsuited(graph: Graph, ratios: Mapping[str, float], pruner: Pruner) -> dict[str, str]:
    """Return {root of a group: why} of those with layers whose weights a pruner that trains does not know."""
    if not pruner.trains:
        return {}
    reasons = {}
    for group in graph.groups:
        others = [name for name in group.layers if not isinstance(graph.model.get_submodule(name), UNIT_LAYERS)]
        if others and group.root in ratios:
            reasons[group.root] = (
                f"{type(pruner).__name__} regularizes linear layers and convolutions only, not {join_names(others)}"
            )
    return reasons


def samples_of(data: Any) -> Any:
    """Return the first two samples of data, on which the network is traced; no random state changes."""
    with random_preserved([]):
        batches = read_data(data)
        inputs = batches.first().inputs if isinstance(batches, Batches) else batches.inputs
    return first_samples(inputs, 2)


def _find_uncuttable(
    graph: Graph, ratios: Mapping[str, float], inputs: Any, *, floor: int, round_to: int
) -> dict[str, str]:
    """Return {root of a group: why} of those that cannot be cut exactly, by trying it on copies with random units."""
    scores = {group.root: torch.rand(group.units, generator=torch.Generator().manual_seed(0)) for group in graph.groups}
    for values in scores.values():
        values[0] = -1  # the first unit among those that are removed: the one that a broadcast would read
    selection = select(graph.groups, ratios, scores, floor=floor, round_to=round_to, clamp=True)
    return find_inexact(graph, selection, inputs)
