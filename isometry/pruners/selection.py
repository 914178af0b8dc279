"""How many units are removed from which group, and which ones, from a score for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError, join_names
from isometry.limits import SEED, Number, check_number
from isometry.surgery import Graph, Selection, UnitGroup

__all__ = ["check_request", "listed", "requested_ratios", "select"]

_RATIO = Number(0, below=1)
_FLOPS = Number(0, above=True, below=1)


def listed(patterns: Any) -> Any:
    """Return patterns that can be read several times: of a generator a list, anything else as it is."""
    return list(patterns) if isinstance(patterns, Iterator) else patterns


def check_request(
    *, ratio: Any, flops: Any, round_to: Any, layers: Any, skip: Any, seed: Any, masks: bool = False
) -> None:
    """Refuse what is no ratio, fraction of FLOPs, multiple, name pattern or seed, whatever the network; see `prune`."""
    what, call = ("weights masked", "Magnitude(), 0.9") if masks else ("units removed", "L1(), 0.8")
    for value in ratio.values() if isinstance(ratio, Mapping) else () if ratio is None else (ratio,):
        if not _RATIO.accepts(value):
            raise InvalidValueError(
                f"got the ratio {value!r}; it is the fraction of {what}, at least 0 and below 1, e.g. "
                f"prune(model, isometry.{call})."
            )
    if flops is not None and not _FLOPS.accepts(flops):
        raise InvalidValueError(
            f"got flops={flops!r}; it is the fraction of FLOPs removed, in (0, 1), e.g. prune(model, isometry.L1(), flops=0.5)."
        )
    check_number("round_to", round_to, Number(1, whole=True), "round_to=8")
    check_number("seed", seed, SEED, "seed=0")
    for name, patterns in (("ratio", ratio if isinstance(ratio, Mapping) else ()), ("layers", layers), ("skip", skip)):
        listed = patterns if isinstance(patterns, Iterable) else () if patterns is None else (patterns,)
        if not all(isinstance(pattern, str) for pattern in listed):
            raise InvalidTypeError(
                f"got {name}={patterns!r}; it takes names of layers or patterns of such, e.g. prune(model, isometry.L1(), 0.5, "
                "skip='features.*')."
            )


def requested_ratios(
    graph: Graph,
    ratio: float | Mapping[str, float],
    layers: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
) -> dict[str, float]:
    """Return {root layer: ratio} of the groups that are to lose units; see `prune` for the arguments."""
    if not graph.groups:
        reasons = join_names([f"{layer}: {reason}" for layer, reason in graph.fixed.items()]) or "it has no layers"
        raise InvalidValueError(
            f"found nothing to prune ({reasons}). It needs a layer whose units another layer consumes, e.g. "
            "isometry.networks.build('mlp-7-relu')."
        )
    patterns = {"*": ratio} if not isinstance(ratio, Mapping) else dict(ratio)
    included, excluded = None if layers is None else _as_list(layers), _as_list(skip or ())
    _check_matches(graph, [*patterns, *(included or []), *excluded])
    ratios: dict[str, float] = {}
    for group in graph.groups:
        if any(fnmatchcase(layer, pattern) for layer in group.layers for pattern in excluded):
            continue
        requested: dict[str, float] = {}
        for layer in group.layers:
            if included is not None and not any(fnmatchcase(layer, pattern) for pattern in included):
                continue
            matches = [value for pattern, value in patterns.items() if fnmatchcase(layer, pattern)]
            if matches:
                requested[layer] = matches[-1]
        if len(set(requested.values())) > 1:
            by_ratio = sorted(requested.items(), key=lambda item: item[1])
            (one, first), (other, second) = by_ratio[0], by_ratio[-1]
            raise InvalidValueError(
                f"got the ratio {first} for {one} and {second} for {other}, but their units can only be removed "
                f"together. Pass the same for both, e.g. {{{one!r}: {first}, {other!r}: {first}}}."
            )
        if requested:
            ratios[group.root] = float(next(iter(requested.values())))  # NumPy's and torch's scalars, too
    return ratios


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _check_matches(graph: Graph, patterns: list[str]) -> None:
    """Raise an error for a pattern that matches none of the layers that can lose units."""
    known = [layer for group in graph.groups for layer in group.layers]
    for pattern in patterns:
        if any(fnmatchcase(layer, pattern) for layer in known):
            continue
        fixed = [f"{layer} matches, but {why}" for layer, why in graph.fixed.items() if fnmatchcase(layer, pattern)]
        because = f" {join_names(fixed)}." if fixed else ""
        raise InvalidValueError(
            f"got the layer pattern {pattern!r}, which matches none of the layers that can lose units: "
            f"{join_names(known)}.{because} E.g. prune(model, pruner, {{{known[0]!r}: 0.5}})."
        )


def select(
    groups: Sequence[UnitGroup],
    ratios: Mapping[str, float],
    scores: Mapping[str, Tensor],
    *,
    scope: str = "layer",
    floor: int = 1,
    round_to: int = 1,
    clamp: bool = False,
) -> Selection:
    """Return the units to remove: the lowest scores, ties by the order of layers and units.

    Args:
        groups: of one trace.
        ratios: {root: fraction of units removed}; groups that are not named keep all.
        scores: {root: [units]}.
        scope: "layer": ceil(ratio x units) of every group; "global": that many of all groups of one ratio together.
        floor: how many units, those with the highest scores, are kept in every group at least.
        round_to: the number of kept units is rounded up to a multiple of it.
        clamp: lower a ratio that would empty a group to what its floor allows, in place of an error.

    Raises:
        ValueError: scores that are NaN, a ratio that would empty a group, a group narrower than `round_to`.
    """
    concerned = [group for group in groups if group.root in ratios]
    for group in concerned:
        if bool(torch.isnan(scores[group.root]).any()):
            raise InvalidValueError(
                f"got NaN as importance of units of {join_names(group.layers)}: the weights are not finite. "
                "Prune a network whose weights are, e.g. isometry.networks.build('resnet-20')."
            )
    steps = {group.root: _step(group, round_to) if ratios[group.root] else 1 for group in concerned}
    counts = {group.root: _count(group, ratios[group.root], clamp) if scope == "layer" else 0 for group in concerned}
    if scope == "global":
        for ratio in sorted({ratios[group.root] for group in concerned}):
            peers = [group for group in concerned if ratios[group.root] == ratio]
            joined = torch.cat([scores[group.root].cpu() for group in peers])
            owners = torch.cat([torch.full((group.units,), index) for index, group in enumerate(peers)])
            lowest = owners[joined.argsort(stable=True)[: math.ceil(ratio * len(joined) - 1e-9)]]
            for index, group in enumerate(peers):
                counts[group.root] = int((lowest == index).sum())
    selection: Selection = []
    for group in concerned:
        kept = max(group.units - counts[group.root], min(floor, group.units))
        step = steps[group.root]
        kept = min(-(-kept // step) * step, group.units)
        order = scores[group.root].argsort(stable=True).tolist()
        selection.append((group, _lowest(group, order, group.units - kept, floor)))
    return selection


def _step(group: UnitGroup, round_to: int) -> int:
    """Return the number of units whose multiples are channels in multiples of `round_to`."""
    widths = {member.width for member in group.of("units")}
    channels = max(widths)
    uneven = any(len(member.indices) != group.units for member in group.of("units"))
    if round_to > 1 and (channels < round_to or uneven):
        why = "are of several widths, joined by a concatenation" if uneven else f"has {channels} units only"
        raise InvalidValueError(
            f"got round_to={round_to} for {join_names(group.layers)}, which {why}. Leave it out: "
            f"prune(..., skip={group.root!r})."
        )
    return math.lcm(*(round_to // math.gcd(round_to, width // group.units) for width in widths))


def _lowest(group: UnitGroup, order: list[int], count: int, floor: int) -> tuple[int, ...]:
    """Return the first `count` units of `order`, except those without which a layer of the group would be empty.

    Layers joined by a concatenation hold some of the group's units each.
    """
    members = group.of("units")
    room = [len(member.indices) - min(floor, len(member.indices)) for member in members]
    lowest: list[int] = []
    for unit in order:
        touched = [index for index, member in enumerate(members) if unit in member.indices]
        if len(lowest) < count and all(room[index] for index in touched):
            lowest.append(unit)
            for index in touched:
                room[index] -= 1
    return tuple(sorted(lowest))


def _count(group: UnitGroup, ratio: float, clamp: bool) -> int:
    """Return how many units of a group are removed: ceil(ratio x units), but never all of them."""
    count = math.ceil(ratio * group.units - 1e-9)
    if ratio * group.units > group.units - 0.5 and not clamp:
        raise InvalidValueError(
            f"got the ratio {ratio} for {join_names(group.layers)}, which would leave none of its "
            f"{group.units} units. At most {group.units - 1} can be removed: "
            f"ratio={(group.units - 1) / group.units:.4g}."
        )
    return min(count, group.units - 1)
