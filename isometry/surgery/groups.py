"""Groups: the units that can only be removed together, and what leaves with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Cut", "Member", "Selection", "UnitGroup", "unit_count"]


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
class Cut:
    """What a group takes of one parameter or buffer.

    Attributes:
        tensor: its name in the network.
        dim: the dimension that becomes shorter.
        read: whether layers read the units through these entries, so that zeros there mask the units.
        indices: {unit of the group: entries of the dimension that are removed with it}.
    """

    tensor: str
    dim: int
    read: bool
    indices: Mapping[int, tuple[int, ...]]

    def take(self, units: Iterable[int]) -> list[int]:
        """Return the entries for `units` of the group, in ascending order."""
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
        cuts: what is taken of which parameter and buffer.
        heads: whether its units are attention heads, with their queries, keys and values.
    """

    root: str
    units: int
    members: tuple[Member, ...]
    mixes: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    heads: bool = False

    def of(self, role: str) -> list[Member]:
        """Return the members of one role."""
        return [member for member in self.members if member.role == role]

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose units are removed."""
        return [member.layer for member in self.of("units")]


Selection = list[tuple[UnitGroup, tuple[int, ...]]]
"""Groups with the units of each that are to be removed, in ascending order."""


def unit_count(layer: Any) -> int:
    """Return the number of units of a linear layer or convolution."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
