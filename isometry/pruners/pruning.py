"""prune: from a network and a pruner to a physically smaller network."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from isometry.data import Data, Split
from isometry.networks import Size, example_inputs, placed, size
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.pruners.selection import Selection, requested_ratios, select
from isometry.surgery import Plan, check_supported, find_inexact, remove, to_plan, trace

__all__ = ["Pruned", "prune"]


@dataclass
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the physically smaller network, in eval mode.
        plan: the units that left, in the indices of the network given.
        history: what the pruner logged while it trained, a row an epoch; empty for one-shot pruners.
        before, after: `Size` of the network given and of `model`.
        left_alone: {layer: why none of its units left}.
        inexact: layers that normalize over channels (LayerNorm, GroupNorm) of which some left: their statistics change,
            so that this removal is not exact.
    """

    model: nn.Module
    plan: Plan
    history: pd.DataFrame
    before: Size
    after: Size
    left_alone: dict[str, str]
    inexact: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """The fraction of filters and neurons removed over the layers of the plan.

        A floor or rounding may keep it below the one asked for; a global ranking counts coupled layers once.
        """
        return self.plan.ratio

    def __str__(self) -> str:
        reasons = {
            why: [layer for layer, other in self.left_alone.items() if other == why] for why in self.left_alone.values()
        }
        lines = [str(self.plan), *(f"left alone: {', '.join(layers)}: {why}" for why, layers in reasons.items())]
        if self.inexact:
            lines.append(f"not exact: {', '.join(self.inexact)} normalize over channels of which some left")
        sizes = (
            f"{name} {getattr(self.before, key):,} -> {getattr(self.after, key):,}"
            for name, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("bytes", "bytes"))
        )
        return "\n".join([*lines, f"{self.ratio:.1%} of the units left; {', '.join(sizes)}"])


def prune(
    model: nn.Module,
    pruner: Pruner,
    ratio: float | Mapping[str, float] | None = None,
    *,
    flops: float | None = None,
    data: Data | Split | tuple[Tensor, Tensor] | None = None,
    inputs: Tensor | None = None,
    layers: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    round_to: int = 1,
    autocast: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Pruned:
    """Return a physically smaller copy of `model`, pruned by `pruner`; `model` is left alone.

    In every layer that may lose units, ceil(ratio x units) of them leave (of all layers together where the pruner's
    scope is global), at least the pruner's floor stays. Layers that can only lose units together count as one, and so do
    those joined by a concatenation in front of a depthwise convolution: asking for one asks for all. The output layer keeps its units always. Before any training
    it is tried whether the layers can be cut exactly; those that cannot are left alone, with a warning. Afterwards the
    pruned network's outputs are compared with the masked network's.

    Args:
        model: any network that Torch-Pruning can trace.
        pruner: for instance `isometry.L1()`.
        ratio: the fraction of units removed, in [0, 1); or {layer name pattern: fraction}, in which later patterns
            win and layers that match none keep their units.
        flops: in place of a ratio, the fraction of FLOPs removed, in (0, 1): the smallest ratio that removes as much is
            found by bisection.
        data: what a pruner that trains is to train on: a `Data` (its training part), a `Split`, or (inputs, targets).
        inputs: [B, ...], a batch for tracing; taken from `data` or from the first layer's shape when None.
        layers: name patterns (fnmatch) of the layers that may lose units; None means all that can.
        skip: name patterns of layers that keep their units, and so do all that are coupled with them.
        round_to: the units kept in a layer are rounded up to a multiple of it (8 for instance, for speed).
        autocast: whether pruners that train do so in bfloat16.
        seed: of everything random.
        progress: False silences the progress bar; None shows it in terminals and notebooks.
        checkpoint: a file that lets an interrupted training go on where it was.

    Returns:
        `Pruned`: model, plan, history, before, after.

    Raises:
        ValueError: a ratio outside [0, 1) or so high that a layer would be left empty, FLOPs that cannot be removed, a
            pattern that matches nothing, two ratios in one group, a pruner that needs data without data, a model in
            which nothing can be pruned, and whatever the trace refuses (tied weights, masks, parametrizations).
        DivergedError: the pruner's training left the finite numbers.
    """
    held = data if data is None or isinstance(data, Data) else Split(*data)
    split = held.train if isinstance(held, Data) else held
    _check_arguments(pruner, ratio, flops, round_to, split, inputs)
    check_supported(model)
    work = copy.deepcopy(model)
    if inputs is None:
        call = "prune(model, pruner, ratio, inputs=inputs)"
        inputs = split.inputs[:2] if split is not None else example_inputs(model, 2, call=call)
    inputs = placed(inputs, model)
    graph = trace(work, inputs)
    ratios = requested_ratios(graph, 0.5 if ratio is None else ratio, layers, skip)
    trial = {f.root: torch.rand(f.units, generator=torch.Generator().manual_seed(0)) for f in graph.groups}
    for scores in trial.values():
        scores[0] = -1  # the first unit among those that leave: the one a broadcast would read
    uncut = find_inexact(
        work, select(graph.groups, ratios, trial, floor=pruner.floor, round_to=round_to, clamp=True), inputs
    )
    if not ratios:
        raise ValueError(
            f"prune() got ratio={ratio}, layers={layers}, skip={skip}, which leave no layer to prune of "
            f"{', '.join(layer for group in graph.groups for layer in group.layers)}. Ask for at least one."
        )
    if uncut:
        ratios = {root: value for root, value in ratios.items() if root not in uncut}
        if not ratios:
            raise ValueError(f"prune() found nothing that can be cut exactly: {'; '.join(uncut.values())}.")
        warnings.warn(f"prune() leaves alone what cannot be cut exactly: {'; '.join(uncut.values())}", stacklevel=2)
    groups = [group for group in graph.groups if group.root in ratios]
    run = PruningContext(work, groups, held, seed, progress, checkpoint, autocast)

    def choose() -> Selection:
        scores = {group.root: pruner.importance(run, group) for group in groups}
        how = partial(select, groups, scores=scores, scope=pruner.scope, floor=pruner.floor, round_to=round_to)
        if flops is None:
            return how(ratios)
        return _lighter(work, flops, inputs, lambda r: how(dict.fromkeys(ratios, r), clamp=True))

    if pruner.trains:
        choose()  # what cannot be asked for is refused before any training
    pruner.train_before_selection(run)
    chosen = choose()
    pruner.train_after_selection(run, chosen)
    plan = to_plan(chosen)
    pruned = remove(work, plan, inputs).eval()
    alone = graph.fixed | {
        layer: uncut.get(group.root, "not asked for")
        for group in graph.groups
        if group.root not in ratios
        for layer in group.layers
    }
    alone |= {
        layer: "none of its units can leave at this ratio, floor and rounding"
        for group, units in chosen
        if not units and ratios[group.root]
        for layer in group.layers
    }
    mixed = tuple(sorted({name for group, units in chosen if units for name in group.mixes}))
    history = pd.DataFrame(run.records)
    return Pruned(pruned, plan, history, size(model, inputs), size(pruned, inputs), alone, mixed)


def _check_arguments(
    pruner: object, ratio: object, flops: float | None, round_to: int, split: Split | None, inputs: object
) -> None:
    if not isinstance(pruner, Pruner):
        raise TypeError(f"prune() got {pruner!r} as pruner; it takes a Pruner, e.g. prune(model, isometry.L1(), 0.8).")
    if (ratio is None) == (flops is None) or (flops is not None and not 0 < flops < 1) or round_to < 1:
        raise ValueError(
            f"prune() got ratio={ratio}, flops={flops}, round_to={round_to}; it takes either a ratio in [0, 1) or a fraction "
            "of FLOPs removed in (0, 1), and a positive round_to, e.g. prune(model, isometry.L1(), flops=0.5)."
        )
    if pruner.trains and split is None:
        name = type(pruner).__name__
        raise ValueError(
            f"{name} trains before it removes and got no data. Pass some, e.g. "
            f"prune(model, isometry.{name}(), 0.8, data=isometry.data.load('digits'))."
        )
    if inputs is not None and not isinstance(inputs, Tensor):
        raise TypeError(
            f"prune() got inputs of type {type(inputs).__name__}; it takes one tensor [B, ...], e.g. torch.randn(2, 3, 32, 32). "
            "Wrap a network of several inputs in a module that takes one."
        )


def _lighter(model: nn.Module, flops: float, inputs: Tensor, choose: Callable[[float], Selection]) -> Selection:
    """Return what the smallest ratio chooses that removes the fraction `flops`, to a thousandth of a ratio."""
    before = size(model, inputs).flops

    def removed(ratio: float) -> float:
        return 1 - size(remove(model, to_plan(choose(ratio)), inputs), inputs).flops / before

    low, high = 0.0, 0.999
    if (most := removed(high)) < flops:
        raise ValueError(
            f"prune() got flops={flops}, but at most {most:.3f} of the FLOPs can be removed from the layers that may lose "
            f"units. Ask for less, e.g. prune(model, pruner, flops={most * 0.9:.2f})."
        )
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if removed(middle) >= flops else (middle, high)
    return choose(high)
