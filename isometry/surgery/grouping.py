"""Grouping: from the joined slots of a network's parameters to groups of units."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from isometry.networks.modules import BATCH_NORMS
from isometry.networks.units import unit_weight
from isometry.surgery.groups import Cut, Member, UnitGroup
from isometry.surgery.propagation import Propagation

__all__ = ["OUTPUT", "find_groups"]

OUTPUT = "its units are outputs of the network"


def find_groups(model: nn.Module, followed: Propagation) -> tuple[list[UnitGroup], dict[str, str]]:
    """Return the groups in the network's order, and {layer: why its units cannot be removed} of the others."""
    layers = {name: found for name, module in model.named_modules() if (found := unit_weight(module))}
    classes: dict[str, Tensor] = {}
    fixed: dict[str, str] = {}
    for name, (key, dim) in layers.items():
        tensor = f"{name}.{key}" if name else key
        if model.get_parameter(tensor).is_complex():
            fixed[name] = "its weights are complex"
        elif id(model.get_parameter(tensor)) in followed.used:
            classes[name] = followed.slots.find(followed.slots.of(tensor, dim))
        else:
            fixed[name] = "the forward pass does not reach it as a module"
    components = _components(classes)
    reasons = _Reasons(followed)
    groups: list[UnitGroup] = []
    numbers: list[dict[int, int]] = []
    for names in components:
        root = max(names, key=lambda name: (len(classes[name]), -names.index(name)))
        number: dict[int, int] = {}
        for name in (root, *names):
            for entry in classes[name].tolist():
                number.setdefault(entry, len(number))
        if reason := reasons.fixed(number, len(classes[root])):
            fixed |= dict.fromkeys(names, reason)
            continue
        groups.append(UnitGroup(root, len(number), (), heads=bool(reasons.contracted & number.keys())))
        numbers.append(number)
    order = {name: index for index, name in enumerate(layers)}
    filled = _fill(model, followed, groups, numbers)
    return sorted(filled, key=lambda group: order[group.root]), {n: fixed[n] for n in layers if n in fixed}


def _components(classes: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of the layers that share classes, directly or by way of others, each list in their order."""
    owner: dict[int, int] = {}
    components: dict[int, list[str]] = {}
    for index, (name, found) in enumerate(classes.items()):
        entries = set(found.tolist())
        touched = sorted({owner[entry] for entry in entries if entry in owner})
        target = touched[0] if touched else index
        components.setdefault(target, []).append(name)
        owner |= dict.fromkeys(entries, target)
        for other in touched[1:]:
            components[target] += components.pop(other)
            owner = {entry: target if at == other else at for entry, at in owner.items()}
    order = list(classes)
    return [sorted(names, key=order.index) for names in components.values()]


class _Reasons:
    """Why classes cannot be removed."""

    def __init__(self, followed: Propagation) -> None:
        slots = followed.slots
        self._fixed, self._explained = slots.reasons()
        self._read = {entry for line in followed.read for entry in slots.find(line).unique().tolist()}
        self.contracted = slots.contracted()

    def fixed(self, classes: Mapping[int, int], width: int) -> str | None:
        """Return why units of these classes cannot be removed, None where they can."""
        for entry in classes:
            if reason := self._fixed.get(entry):
                return reason
        if len(classes) == 1 and width > 1:
            (entry,) = classes
            why = self._explained.get(entry, "what is kept would not be rectangular")
            return f"its units can only be removed all together: {why}"
        if not self._read.intersection(classes):
            return "no layer reads its units"
        if not self._read.issuperset(classes):
            return "some of its units are read by no layer"
        return None


def _fill(
    model: nn.Module, followed: Propagation, groups: list[UnitGroup], numbers: list[dict[int, int]]
) -> list[UnitGroup]:
    """Return the groups with their members and cuts."""
    slots = followed.slots
    where = {entry: (index, unit) for index, number in enumerate(numbers) for entry, unit in number.items()}
    read = {int(slot) for line in followed.read for slot in line}
    cuts: list[list[Cut]] = [[] for _ in groups]
    for tensor, dim in slots.names():
        line = slots.of(tensor, dim)
        taken: dict[int, dict[int, list[int]]] = {}
        for index, entry in enumerate(slots.find(line).tolist()):
            if entry in where:
                group, unit = where[entry]
                taken.setdefault(group, {}).setdefault(unit, []).append(index)
        for group, indices in taken.items():
            frozen = {unit: tuple(entries) for unit, entries in indices.items()}
            cuts[group].append(Cut(tensor, dim, int(line[0]) in read, frozen))
    mixes: list[set[str]] = [set() for _ in groups]
    for name, part in followed.mixes:
        for entry in slots.find(part).unique().tolist():
            if entry in where:
                mixes[where[entry][0]].add(name)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return [
        UnitGroup(
            group.root,
            group.units,
            _members(model, group.root, cuts[index], order),
            tuple(sorted(mixes[index], key=lambda name: order.get(name, 0))),
            tuple(cuts[index]),
            group.heads,
        )
        for index, group in enumerate(groups)
    ]


def _members(model: nn.Module, root: str, cuts: list[Cut], order: Mapping[str, int]) -> tuple[Member, ...]:
    """Return the layers from which something is cut, each once in every role: the root, then in the network's order."""
    members: dict[tuple[str, str], Member] = {}
    for cut in cuts:
        layer, _, key = cut.tensor.rpartition(".")
        module = model.get_submodule(layer)
        role = "other"
        if made := unit_weight(module):
            if key != made[0]:
                continue
            role = "units" if cut.dim == made[1] else "inputs"
        elif isinstance(module, BATCH_NORMS):
            role = "norm"
        members.setdefault((layer, role), Member(layer, role, cut.indices))
    return tuple(sorted(members.values(), key=lambda m: (m.layer != root, order[m.layer], m.role != "units")))
