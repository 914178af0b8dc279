"""Selection: how many units leave which group, and which ones, given a score for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from isometry.surgery import Graph, UnitGroup

__all__ = ["Selection", "requested_ratios", "select"]

Selection = list[tuple[UnitGroup, tuple[int, ...]]]


def requested_ratios(
    graph: Graph,
    ratio: float | Mapping[str, float],
    layers: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
) -> dict[str, float]:
    """Return {root layer: ratio} of the groups that are to lose units; see `prune` for the arguments."""
    if not graph.groups:
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
    only, without = _patterns(layers), _patterns(skip)
    _require_matches(graph, [*wanted, *(only or []), *(without or [])])
    found: dict[str, float] = {}
    for group in graph.groups:
        if any(fnmatchcase(layer, pattern) for layer in group.layers for pattern in without or []):
            continue
        given: dict[str, float] = {}
        for layer in group.layers:
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
            found[group.root] = next(iter(given.values()))
    return found


def _patterns(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else None if given is None else list(given)


def _require_matches(graph: Graph, patterns: list[str]) -> None:
    known = [layer for group in graph.groups for layer in group.layers]
    for pattern in patterns:
        if any(fnmatchcase(layer, pattern) for layer in known):
            continue
        fixed = {layer: why for layer, why in graph.fixed.items() if fnmatchcase(layer, pattern)}
        because = "".join(f" {layer} matches, but {why}." for layer, why in fixed.items())
        raise ValueError(
            f"prune() got the layer pattern {pattern!r}, which matches none of the layers that can lose units: "
            f"{', '.join(known)}.{because} E.g. prune(model, pruner, {{{known[0]!r}: 0.5}})."
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
    """Return the units that leave: the lowest scores, ties by the order of layers and units.

    Args:
        groups: of one trace.
        ratios: {root: fraction of units removed}; groups that are not named keep all.
        scores: {root: [units]}.
        scope: "layer": ceil(ratio x units) of every group; "global": so many of all groups of one ratio together.
        floor: so many units with the highest scores stay in every group.
        round_to: kept units are rounded up to a multiple of it.
        clamp: cut a ratio that would empty a group down to what its floor allows, in place of an error.

    Raises:
        ValueError: scores that are NaN, a ratio that would leave a group empty, a group narrower than `round_to`.
    """
    concerned = [group for group in groups if group.root in ratios]
    for group in concerned:
        if bool(torch.isnan(scores[group.root]).any()):
            raise ValueError(
                f"prune() got NaN as importance of units of {', '.join(group.layers)}: the weights are not finite. "
                "Prune a network whose weights are."
            )
    steps = {group.root: _step(group, round_to) if ratios[group.root] else 1 for group in concerned}
    counts = {group.root: _count(group, ratios[group.root], clamp) if scope == "layer" else 0 for group in concerned}
    if scope == "global":
        for ratio in sorted({ratios[group.root] for group in concerned}):
            peers = [group for group in concerned if ratios[group.root] == ratio]
            every = torch.cat([scores[group.root].cpu() for group in peers])
            owners = torch.cat([torch.full((group.units,), index) for index, group in enumerate(peers)])
            leaving = owners[every.argsort(stable=True)[: math.ceil(ratio * len(every) - 1e-9)]]
            for index, group in enumerate(peers):
                counts[group.root] = int((leaving == index).sum())
    chosen: Selection = []
    for group in concerned:
        kept = max(group.units - counts[group.root], min(floor, group.units))
        step = steps[group.root]
        kept = min(-(-kept // step) * step, group.units)
        order = scores[group.root].argsort(stable=True).tolist()
        chosen.append((group, _leaving(group, order, group.units - kept, floor)))
    return chosen


def _step(group: UnitGroup, round_to: int) -> int:
    """Return the number of units whose multiples are channels in multiples of `round_to`."""
    widths = {sum(map(len, member.indices.values())) for member in group.of("units")}
    channels = max(widths)
    if round_to > 1 and (channels < round_to or len(widths) > 1):
        why = f"has {channels} units only" if len(widths) == 1 else "are of several widths, joined by a concatenation"
        raise ValueError(
            f"prune() got round_to={round_to} for {', '.join(group.layers)}, which {why}. Leave it out: "
            f"prune(..., skip={group.root!r})."
        )
    return round_to // math.gcd(round_to, channels // group.units)


def _leaving(group: UnitGroup, order: list[int], count: int, floor: int) -> tuple[int, ...]:
    """Return the first `count` units of `order`, but for those without which a layer of the group would be left empty.

    Layers joined by a concatenation hold some of the group's units each.
    """
    members = group.of("units")
    room = [len(member.indices) - min(floor, len(member.indices)) for member in members]
    leaving: list[int] = []
    for unit in order:
        touched = [index for index, member in enumerate(members) if unit in member.indices]
        if len(leaving) < count and all(room[index] for index in touched):
            leaving.append(unit)
            for index in touched:
                room[index] -= 1
    return tuple(sorted(leaving))


def _count(group: UnitGroup, ratio: float, clamp: bool) -> int:
    """Return how many units of a group leave: ceil(ratio x units), but all of them never."""
    count = math.ceil(ratio * group.units - 1e-9)
    if ratio * group.units > group.units - 0.5 and not clamp:
        raise ValueError(
            f"prune() got the ratio {ratio} for {', '.join(group.layers)}, which would leave none of its "
            f"{group.units} units. At most {group.units - 1} can leave: ratio={(group.units - 1) / group.units:.4g}."
        )
    return min(count, group.units - 1)
