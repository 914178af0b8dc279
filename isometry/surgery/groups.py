"""Groups: the units that can only be removed together, and how they are coupled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from isometry.networks.modules import BATCH_NORMS, UNIT_LAYERS

__all__ = ["Coupling", "Member", "Selection", "UnitGroup", "group_units", "unit_count"]

# Normalizations that mix channels: removing a channel changes the statistics of those that are kept.
_CHANNEL_MIXING = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Member:
    """One layer's share in a group.

    Attributes:
        layer: the layer's name in the network.
        role: "units" (its outputs are removed), "inputs" (its input channels are), "norm" (a BatchNorm's channels) or
            "other".
        indices: {unit of the group: indices of this layer that are removed with it}.
    """

    layer: str
    role: str
    indices: Mapping[int, tuple[int, ...]]

    @property
    def width(self) -> int:
        """How many indices of this layer belong to the group."""
        return sum(map(len, self.indices.values()))

    def take(self, units: Iterable[int]) -> list[int]:
        """Return this layer's indices for `units` of the group, in ascending order."""
        return sorted({index for unit in units for index in self.indices.get(unit, ())})


@dataclass(frozen=True)
class UnitGroup:
    """Units of one or more layers that can only be removed together.

    Attributes:
        root: the name of the layer whose units number the group.
        units: how many units it has.
        members: every layer concerned.
        mixes: names of the layers in it that normalize over channels (LayerNorm, GroupNorm), so that no removal is
            exact.
    """

    root: str
    units: int
    members: tuple[Member, ...]
    mixes: tuple[str, ...] = ()

    def of(self, role: str) -> list[Member]:
        """Return the members of one role."""
        return [member for member in self.members if member.role == role]

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose units are removed."""
        return [member.layer for member in self.of("units")]


Selection = list[tuple[UnitGroup, tuple[int, ...]]]
"""Groups with the units of each that are to be removed, in ascending order."""


@dataclass(frozen=True)
class Coupling:
    """One step of the walk from a layer's units to everything that is cut with them.

    Attributes:
        module: the layer, parameter or operation that is reached.
        name: its name in the network; None for what the network does not name.
        cuts_outputs: whether its output channels are cut, rather than its input channels.
        is_output: whether it stands for an output of the network.
        indices: the channels of `module` that are cut.
        root_indices: for each of them, the channel of the walk's first layer that it is cut with.
        operation: the autograd node of its forward pass.
    """

    module: Any
    name: str | None
    cuts_outputs: bool
    is_output: bool
    indices: Sequence[int]
    root_indices: Sequence[int]
    operation: Any

    @property
    def role(self) -> str:
        """The role of a group's member; see `Member`."""
        if isinstance(self.module, BATCH_NORMS):
            return "norm"
        if isinstance(self.module, UNIT_LAYERS):
            return "units" if self.cuts_outputs else "inputs"
        return "other"


def group_units(couplings: Sequence[Coupling]) -> UnitGroup:
    """Return the group of the units that a walk from all units of a layer couples."""
    root = couplings[0]
    assert root.name is not None
    channels = len(root.indices)
    # The groups of a convolution must stay of one size: units at the same place of each group are removed together.
    share = math.lcm(*(_convolution_groups(coupling.module) for coupling in couplings))
    units = channels // share if channels % share == 0 else channels
    members, mixes = [], []
    for coupling in couplings:
        if coupling.name is None or not isinstance(coupling.module, nn.Module):
            continue
        indices: dict[int, list[int]] = {}
        for index, channel in zip(coupling.indices, coupling.root_indices, strict=True):
            indices.setdefault(channel % units, []).append(index)
        members.append(
            Member(coupling.name, coupling.role, {unit: tuple(entries) for unit, entries in indices.items()})
        )
        if isinstance(coupling.module, _CHANNEL_MIXING):
            mixes.append(coupling.name)
    return UnitGroup(root.name, units, tuple(members), tuple(mixes))


def unit_count(layer: Any) -> int:
    """Return the number of units of a linear layer or convolution."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _convolution_groups(module: Any) -> int:
    """Return the number of groups of a convolution, 1 for depthwise ones and all other modules."""
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == module.in_channels == module.out_channels:
        return 1
    return module.groups
