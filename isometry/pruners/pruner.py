"""Pruner: what a pruner owes; prune: the verb that runs one."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Data, Split
from isometry.networks import Size, example_inputs, placed, size
from isometry.networks.batchnorm import followed
from isometry.pruners.selection import Chosen, asked, select
from isometry.surgery import Family, Member, Plan, inexact, refuse, remove, to_plan, trace
from isometry.tables import write
from isometry.training import Epoch

__all__ = ["DivergedError", "Pruned", "Pruner", "Run", "averaged", "magnitude", "prune"]


@dataclass
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the physically smaller network, in eval mode.
        plan: the units that left, in the indices of the network given.
        history: what the pruner logged while it trained, a row an epoch; empty for one-shot pruners.
        before, after: `Size` of the network given and of `model`.
        left_alone: {layer: why none of its units left}.
        inexact: layers that normalise over channels (LayerNorm, GroupNorm) of which some left: their statistics change,
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
            lines.append(f"not exact: {', '.join(self.inexact)} normalise over channels of which some left")
        sizes = (
            f"{name} {getattr(self.before, key):,} -> {getattr(self.after, key):,}"
            for name, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("bytes", "bytes"))
        )
        return "\n".join([*lines, f"{self.ratio:.1%} of the units left; {', '.join(sizes)}"])


class DivergedError(ArithmeticError):
    """The training of a pruner left the finite numbers."""


@dataclass
class Run:
    """One call of `prune`, as a pruner sees it: the copy it may train, and what there is to train it with.

    Attributes:
        model: a copy of the user's network, to be trained in place.
        families: those families of `model` that are to lose units.
        data: what to train on; None unless the caller gave some.
        seed: of everything random.
        progress: False silences the progress bar, None shows it in terminals and notebooks.
        checkpoint: file that lets an interrupted training go on, or None.
        autocast: whether to train in bfloat16.
        records: rows for the history.
    """

    model: nn.Module
    families: list[Family]
    data: Data | Split | None
    seed: int
    progress: bool | None
    checkpoint: str | os.PathLike[str] | None
    autocast: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def split(self) -> Split:
        """The training part of the data."""
        assert self.data is not None
        return self.data.train if isinstance(self.data, Data) else self.data

    @cached_property
    def behind(self) -> dict[str, str]:
        """{BatchNorm: the layer whose very output it normalises}, as one forward pass of the training data shows."""
        if self.data is None:
            return {}
        x, modes = placed(self.split.inputs[:2], self.model), {m: m.training for m in self.model.modules()}
        try:
            with torch.no_grad():
                pairs, _ = followed(self.model.eval(), lambda: self.model(x))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return {norm: layer for layer, norm in pairs}

    def stage(self, name: str) -> Path | None:
        """Return the checkpoint file of one of several trainings of a pruner, None where none was asked for."""
        return None if self.checkpoint is None else Path(f"{os.fspath(self.checkpoint)}.{name}")

    def follow(self, epochs: Iterator[Epoch], name: str, steps: int, log: Callable[[], dict[str, Any]] = dict) -> None:
        """Run a training to its end, with a progress bar and a row of the history for every epoch."""
        hidden = None if self.progress is None else not self.progress
        path = self.stage(f"{name}.jsonl")
        kept = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
        with tqdm(total=steps, unit="step", desc=name, disable=hidden) as bar:
            for epoch in epochs:
                kept = [row for row in kept if row["number"] < epoch.number]
                kept.append({"stage": name, **asdict(epoch), **log()})
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write(path, "".join(json.dumps(row) + "\n" for row in kept))
                bar.update(epoch.steps - bar.n)
                bar.set_postfix(loss=f"{epoch.loss:.3f}", accuracy=f"{epoch.accuracy:.3f}")
        self.records += kept
        if kept and kept[-1]["diverged"]:
            raise DivergedError(
                f"Training diverged after {kept[-1]['steps']} steps (loss {kept[-1]['loss']}), before any unit was removed. "
                "Lower the learning rate or the strength of the pruner, e.g. isometry.TPP(lr=1e-4)."
            )


@dataclass(frozen=True)
class Pruner:
    """What a pruner owes: an importance for every unit and, if it trains, training before or after the choice.

    A pruner is a frozen dataclass of hyperparameters. Write a new one by overriding `importance`, or `condition` and
    `recede` where units are to be trained towards leaving.

    Attributes:
        scope: "layer" removes the same fraction of every layer, "global" ranks the units of all layers together.
        floor: so many units stay in every layer, whatever the ratio.
    """

    scope: str = field(default="layer", kw_only=True)
    floor: int = field(default=1, kw_only=True)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.scope not in ("layer", "global") or self.floor < 1:
            raise ValueError(
                f"{type(self).__name__}() got scope={self.scope!r}, floor={self.floor}; it takes 'layer' or 'global' and at "
                f"least 1, e.g. {type(self).__name__}(scope='global', floor=3)."
            )

    def condition(self, run: Run) -> None:
        """Train `run.model` in place before units are chosen; nothing by default."""

    def importance(self, run: Run, family: Family) -> Tensor:
        """Return a score for every unit of `family`: [units]; the lowest leave. Magnitude by default."""
        return magnitude(run.model, family)

    def recede(self, run: Run, chosen: Chosen) -> None:
        """Train `run.model` in place after the choice, before removal; nothing by default."""


def magnitude(model: nn.Module, family: Family) -> Tensor:
    """Return the mean absolute weight of every unit, averaged over the family's layers: [units] float64.

    A layer's score of a unit is the mean of |w| over its row (the L1 norm up to a factor).
    Source: Li et al., ICLR 2017; the mean and the averaging over coupled layers as in the TPP reference.
    """
    scores = []
    for member in family.of("units"):
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight").detach().double().cpu()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)
        scores.append((member, weight.abs().flatten(1).mean(1)))
    return averaged(family.units, scores)


def averaged(units: int, scores: Iterable[tuple[Member, Tensor]]) -> Tensor:
    """Return the mean score of every unit over those members of its family that have it: [units] float64.

    Args:
        units: of the family.
        scores: (member, a score for each of its channels).
    """
    total, count = (torch.zeros(units, dtype=torch.float64) for _ in range(2))
    for member, values in scores:
        for unit, indices in member.indices.items():
            total[unit] += values[list(indices)].mean()
            count[unit] += 1
    return total / count


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
            pattern that matches nothing, two ratios in one family, a pruner that needs data without data, a model in
            which nothing can be pruned, and whatever the trace refuses (tied weights, masks, parametrisations).
        DivergedError: the pruner's training left the finite numbers.
    """
    held = data if data is None or isinstance(data, Data) else Split(*data)
    split = held.train if isinstance(held, Data) else held
    _check_arguments(pruner, ratio, flops, round_to, split, inputs)
    refuse(model)
    work = copy.deepcopy(model)
    if inputs is None:
        call = "prune(model, pruner, ratio, inputs=inputs)"
        inputs = split.inputs[:2] if split is not None else example_inputs(model, 2, call=call)
    inputs = placed(inputs, model)
    graph = trace(work, inputs)
    ratios = asked(graph, 0.5 if ratio is None else ratio, layers, skip)
    trial = {f.root: torch.rand(f.units, generator=torch.Generator().manual_seed(0)) for f in graph.families}
    for scores in trial.values():
        scores[0] = -1  # the first unit among those that leave: the one a broadcast would read
    uncut = inexact(
        work, select(graph.families, ratios, trial, floor=pruner.floor, round_to=round_to, clamp=True), inputs
    )
    if not ratios:
        raise ValueError(
            f"prune() got ratio={ratio}, layers={layers}, skip={skip}, which leave no layer to prune of "
            f"{', '.join(layer for family in graph.families for layer in family.layers)}. Ask for at least one."
        )
    if uncut:
        ratios = {root: value for root, value in ratios.items() if root not in uncut}
        if not ratios:
            raise ValueError(f"prune() found nothing that can be cut exactly: {'; '.join(uncut.values())}.")
        warnings.warn(f"prune() leaves alone what cannot be cut exactly: {'; '.join(uncut.values())}", stacklevel=2)
    families = [family for family in graph.families if family.root in ratios]
    run = Run(work, families, held, seed, progress, checkpoint, autocast)

    def choose() -> Chosen:
        scores = {family.root: pruner.importance(run, family) for family in families}
        how = partial(select, families, scores=scores, scope=pruner.scope, floor=pruner.floor, round_to=round_to)
        if flops is None:
            return how(ratios)
        return _lighter(work, flops, inputs, lambda r: how(dict.fromkeys(ratios, r), clamp=True))

    if pruner.trains:
        choose()  # what cannot be asked for is refused before any training
    pruner.condition(run)
    chosen = choose()
    pruner.recede(run, chosen)
    plan = to_plan(chosen)
    pruned = remove(work, plan, inputs).eval()
    alone = graph.fixed | {
        layer: uncut.get(family.root, "not asked for")
        for family in graph.families
        if family.root not in ratios
        for layer in family.layers
    }
    alone |= {
        layer: "none of its units can leave at this ratio, floor and rounding"
        for family, units in chosen
        if not units and ratios[family.root]
        for layer in family.layers
    }
    mixed = tuple(sorted({name for family, units in chosen if units for name in family.mixes}))
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


def _lighter(model: nn.Module, flops: float, inputs: Tensor, choose: Callable[[float], Chosen]) -> Chosen:
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
