"""Plan: which units are removed from which layer, in the indices of the network as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from isometry.errors import join_names

__all__ = ["Applied", "Plan"]

_JSON = """It takes what Plan.to_json() returned, e.g. Plan.from_json('{"removed": {"net.0": [1, 3]}, "widths": {"net.0": 100}}')."""


@dataclass(frozen=True)
class Plan:
    """Which units are removed from which layer.

    A unit is a filter of a convolution or a neuron of a linear layer; of an attention head, all rows of its queries, keys
    and values are removed. Coupled layers (those that a residual sum ties
    together, for instance) appear each with their own indices.

    Attributes:
        removed: {layer name: indices of the removed units, ascending}, in the numbering of the original layer.
        widths: {layer name: number of units of the original layer}.
    """

    removed: dict[str, tuple[int, ...]]
    widths: dict[str, int]

    def __post_init__(self) -> None:
        if set(self.removed) != set(self.widths):
            raise ValueError(
                f"Plan() got removed units for {join_names(sorted(self.removed))} and widths for "
                f"{join_names(sorted(self.widths))}; it takes "
                "both for the same layers, e.g. Plan({'net.0': (1, 3)}, {'net.0': 100})."
            )
        for layer, units in self.removed.items():
            width = self.widths[layer]
            if list(units) != sorted(set(units)) or (units and not (units[0] >= 0 and units[-1] < width)):
                raise ValueError(
                    f"Plan() got the units {join_names(list(map(str, units)))} for {layer}, which has {width}; it "
                    "takes ascending indices from 0 to "
                    f"{width - 1}, each once, e.g. Plan({{{layer!r}: (0,)}}, {{{layer!r}: {width}}})."
                )

    def kept(self, layer: str) -> tuple[int, ...]:
        """Return the indices of the units of `layer` that are kept, ascending."""
        removed = set(self.removed[layer])
        return tuple(unit for unit in range(self.widths[layer]) if unit not in removed)

    @property
    def ratio(self) -> float:
        """The share of units removed over the layers of the plan; 0 for an empty plan."""
        total = sum(self.widths.values())
        return sum(map(len, self.removed.values())) / total if total else 0.0

    def then(self, later: Plan) -> Plan:
        """Return the plan of this removal followed by `later`, which numbers the units that this one keeps."""
        removed, widths = dict(self.removed), dict(self.widths)
        for layer, units in later.removed.items():
            if layer not in removed:
                removed[layer], widths[layer] = units, later.widths[layer]
                continue
            kept = self.kept(layer)
            if len(kept) != later.widths[layer]:
                raise ValueError(
                    f"Plan.then() got a plan for {later.widths[layer]} units of {layer}, but this plan keeps "
                    f"{len(kept)}; the later plan must be made for the network that this one gives."
                )
            removed[layer] = tuple(sorted({*removed[layer], *(kept[unit] for unit in units)}))
        return Plan(removed, widths)

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps({"removed": self.removed, "widths": self.widths})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        try:
            fields = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Plan.from_json() got a text that is no JSON ({error}). {_JSON}") from error
        if not isinstance(fields, dict) or set(fields) != {"removed", "widths"}:
            keys = join_names(sorted(fields)) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"Plan.from_json() got {keys or 'an empty object'}. {_JSON}")
        removed, widths = fields["removed"], fields["widths"]
        if not (
            isinstance(removed, dict) and all(isinstance(u, list) and all(map(_whole, u)) for u in removed.values())
        ):
            raise ValueError(f"Plan.from_json() got removed units that are no lists of whole numbers by layer. {_JSON}")
        if not (isinstance(widths, dict) and all(map(_whole, widths.values()))):
            raise ValueError(f"Plan.from_json() got widths that are no whole numbers by layer. {_JSON}")
        return cls({layer: tuple(units) for layer, units in removed.items()}, widths)

    def __str__(self) -> str:
        lines = [
            f"{layer}: {len(units)} of {self.widths[layer]} units removed" for layer, units in self.removed.items()
        ]
        return "\n".join(lines) or "nothing removed"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Applied(Protocol):
    """A pruned network with the plan that made it: what `prune` returns, and what `load` does."""

    @property
    def model(self) -> nn.Module:
        """The pruned network."""

    @property
    def plan(self) -> Plan:
        """The units that were removed."""
