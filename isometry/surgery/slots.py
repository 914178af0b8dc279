"""Slots: the entries of every parameter's dimensions, and which of them can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["FIXED", "Slots"]

FIXED = 0
"""The slot that can never be removed: what no layer of the network makes, a padding for instance."""


class Slots:
    """A number for every entry of every dimension of the named tensors, and the classes that must be removed together.

    Row 3 of a weight is one slot, column 3 another; where a network adds row 3 of one layer to row 3 of another, the
    two slots are joined into one class.
    """

    def __init__(self) -> None:
        self._parents = torch.zeros(1, dtype=torch.long)
        self._starts: dict[tuple[str, int], tuple[int, int]] = {}
        self._fixed: list[tuple[Tensor, str]] = []
        self._explanations: list[tuple[Tensor, str]] = []
        self._contracted: list[Tensor] = []

    def add(self, name: str, sizes: Iterable[int]) -> None:
        """Number the entries of all dimensions of a tensor."""
        for dim, size in enumerate(sizes):
            start = len(self._parents)
            self._starts[name, dim] = start, size
            self._parents = torch.cat([self._parents, torch.arange(start, start + size)])

    def of(self, name: str, dim: int) -> Tensor:
        """Return the slots of a dimension: [size]."""
        start, size = self._starts[name, dim]
        return torch.arange(start, start + size)

    def names(self) -> list[tuple[str, int]]:
        """Return every (tensor, dimension) that has slots."""
        return list(self._starts)

    def find(self, slots: Tensor) -> Tensor:
        """Return the class of each slot, in their shape: the smallest slot of the class."""
        classes = self._parents[slots]
        while not torch.equal(above := self._parents[classes], classes):
            classes = above
        return classes

    def join(self, slots: Tensor, others: Tensor) -> None:
        """Join the class of each slot with that of the other one; the two tensors are broadcast."""
        pairs = torch.broadcast_tensors(self.find(slots), self.find(others))
        one, other = (part.flatten() for part in pairs)
        different = one != other
        if not bool(different.any()):
            return
        for a, b in torch.stack([one[different], other[different]], 1).unique(dim=0).tolist():
            low, high = sorted((self._find_one(a), self._find_one(b)))
            self._parents[high] = low

    def _find_one(self, slot: int) -> int:
        while (above := int(self._parents[slot])) != slot:
            slot = above
        return slot

    def fix(self, slots: Tensor, reason: str) -> None:
        """Note that these slots cannot be removed."""
        self._fixed.append((slots.flatten().unique(), reason))

    def explain(self, slots: Tensor, reason: str) -> None:
        """Note why these slots were joined, for the case that nothing smaller than a whole layer is left of them."""
        self._explanations.append((slots.flatten().unique(), reason))

    def contract(self, slots: Tensor) -> None:
        """Note that these slots are contracted with those of another activation, as queries with keys."""
        self._contracted.append(slots.flatten().unique())

    def reasons(self) -> tuple[dict[int, str], dict[int, str]]:
        """Return {class: why it cannot be removed} and {class: why its slots were joined at last}."""
        found: tuple[dict[int, str], dict[int, str]] = ({}, {})
        last = (torch.tensor([FIXED]), "its units meet values that no layer makes")
        for notes, entries in zip(([*self._fixed, last], self._explanations[::-1]), found, strict=True):
            for slots, reason in notes:
                for number in self.find(slots).unique().tolist():
                    entries.setdefault(number, reason)
        return found

    def contracted(self) -> set[int]:
        """Return the classes of which some slots are contracted with those of another activation."""
        return {number for slots in self._contracted for number in self.find(slots).unique().tolist()}
