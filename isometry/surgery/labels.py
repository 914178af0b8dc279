"""Labels: which slots the entries of a tensor would leave with, and what operations join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.surgery.slots import FIXED, Slots

__all__ = ["Labels", "concatenate", "flatten_chunks", "join_along", "merge", "normalized", "varying", "vector"]

Waiting = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Parts of two tensors, of which it is not clear yet which dimensions belong together."""


@dataclass(frozen=True)
class Labels:
    """What a tensor's entries leave with.

    Attributes:
        parts: of the tensor's shape each; an entry is removed with any of its slots in any part. Parts vary along
            different dimensions. Dimensions along which no part varies keep their size.
        owned: whether the tensor is a parameter or buffer, or computed from such alone.
    """

    parts: tuple[Tensor, ...]
    owned: bool = False


def compact(part: Tensor) -> Tensor:
    """Return the part with one entry in place of all along dimensions of stride 0."""
    for dim in range(part.ndim):
        if part.shape[dim] > 1 and part.stride(dim) == 0:
            part = part.narrow(dim, 0, 1)
    return part


def normalized(part: Tensor) -> Tensor:
    """Return the part with stride 0 along every dimension along which it does not vary."""
    shape, part = part.shape, compact(part)
    for dim in range(part.ndim):
        if part.shape[dim] > 1 and bool((part == part.narrow(dim, 0, 1)).all()):
            part = part.narrow(dim, 0, 1)
    return part.expand(shape)


def varying(slots: Slots, part: Tensor) -> set[int]:
    """Return the dimensions along which a part holds different classes."""
    classes = slots.find(compact(part))
    return {
        dim
        for dim in range(part.ndim)
        if classes.shape[dim] > 1 and not bool((classes == classes.narrow(dim, 0, 1)).all())
    }


def join_along(slots: Slots, part: Tensor, dims: Sequence[int] | set[int], reason: str | None = None) -> None:
    """Join the slots along dimensions, so that the part no longer varies there."""
    small = compact(part)
    moved = False
    for dim in dims:
        if small.shape[dim] > 1:
            slots.join(small, small.narrow(dim, 0, 1))
            moved = True
    if moved and reason:
        slots.explain(small, reason)


def flatten_chunks(slots: Slots, part: Tensor, dim: int, length: int, reason: str) -> None:
    """Join the slots at the same place of each chunk of `length` entries; all of them where there is a remainder."""
    small = compact(part)
    if small.shape[dim] <= 1:
        return
    if small.shape[dim] % length:
        join_along(slots, part, {dim}, reason)
        return
    chunks = small.unflatten(dim, (small.shape[dim] // length, length))
    join_along(slots, chunks, {dim}, reason)


def vector(slots: Slots, labels: Labels, dim: int) -> Tensor | None:
    """Return the slots along one dimension, [size]; None where the parts have none.

    What varies along other dimensions as well is joined along those.
    """
    dim = dim % labels.parts[0].ndim if labels.parts else 0
    found: Tensor | None = None
    constant: Tensor | None = None
    for part in labels.parts:
        dims = varying(slots, part)
        if dim in dims:
            if dims != {dim}:
                join_along(slots, part, dims - {dim}, "its units are read along other dimensions as well")
            line = _line(part, dim)
            if found is None:
                found = line
            else:
                slots.join(found, line)
        elif not dims and constant is None:
            constant = _line(part, dim)
    return constant if found is None else found


def _line(part: Tensor, dim: int) -> Tensor:
    """Return the first line of a part along a dimension."""
    for other in reversed(range(part.ndim)):
        if other != dim:
            part = part.select(other, 0)
    return part


def merge(
    slots: Slots, operands: Sequence[tuple[Labels | None, Sequence[int]]], what: str, *, eager: bool = False
) -> tuple[Labels | None, list[Waiting]]:
    """Join what an operation combines entry by entry, with broadcasting.

    Args:
        slots: where to.
        operands: labels (None for a tensor without any) and shape of each.
        what: the operation, for the reasons.
        eager: join at once what varies along different dimensions, in place of waiting.

    Returns:
        labels of the result; and the pairs of parts of which it is not clear yet which dimensions of one belong to the
        other: where an activation varies along heads and their entries, and what it meets along entries alone.
    """
    shape = torch.broadcast_shapes(*(size for _, size in operands))
    aligned = [
        (_align(labels, len(shape)), (1,) * (len(shape) - len(size)) + tuple(size), labels) for labels, size in operands
    ]
    labelled = [entry for entry in aligned if entry[0]]
    if not labelled:
        return None, []
    reason = f"its units meet a tensor of fixed size ({what})"
    waiting: list[Waiting] = []
    # Activations first: parameters are matched with what those have become.
    labelled.sort(key=lambda entry: bool(entry[2] and entry[2].owned))
    parts = [(part, varying(slots, part)) for part in labelled[0][0]]
    owned = bool(labelled[0][2] and labelled[0][2].owned)
    for others, _, labels in labelled[1:]:
        mixed = bool(labels and labels.owned) != owned
        undecided = False
        for other in others:
            dims = varying(slots, other)
            partners = [(part, there) for part, there in parts if there & dims]
            for part, there in partners:
                if there != dims and not eager:
                    undecided = True
                else:
                    slots.join(compact(part), compact(other))
            if not partners and not mixed and (dims or not any(there for _, there in parts)):
                parts.append((other, dims))
        if undecided:
            waiting.append((tuple(others), tuple(part for part, _ in parts)))
    for _, size, labels in aligned:
        covered = (
            set()
            if labels is None
            else set().union(*(varying(slots, part) for part in _align(labels, len(shape))), set())
        )
        for part, there in parts:
            rigid = {dim for dim in there if size[dim] > 1 and dim not in covered}
            join_along(slots, part, rigid, reason)
    return Labels(
        tuple(part.expand(shape) for part, _ in parts), owned and all(a[2] is not None for a in aligned)
    ), waiting


def _align(labels: Labels | None, ndim: int) -> tuple[Tensor, ...]:
    """Return parts with as many dimensions, and one entry along those that they do not vary along."""
    if labels is None:
        return ()
    return tuple(compact(part)[(None,) * (ndim - part.ndim)] for part in labels.parts)


def concatenate(
    slots: Slots, operands: Sequence[tuple[Labels | None, Sequence[int]]], dim: int, what: str
) -> tuple[Labels | None, list[Waiting]]:
    """Return the labels of a concatenation: one after the other along `dim`, joined along all other dimensions."""
    total = [*operands[0][1]]
    total[dim] = sum(size[dim] for _, size in operands)
    owned = all(labels is not None and labels.owned for labels, _ in operands)
    across: list[tuple[Labels | None, Sequence[int]]] = []
    lines: list[Tensor] = []
    followed = False
    for labels, size in operands:
        rest, line = [], None
        for part in labels.parts if labels else ():
            dims = varying(slots, part)
            if dim in dims or (size[dim] == 1 and not dims):
                line = part if line is None else line
            elif dims:
                rest.append(part.narrow(dim, 0, 1))
        # A class token has slots of its own along the tokens, where the patches have none.
        followed |= line is not None and labels is not None and labels.owned == owned
        lines.append(torch.tensor(FIXED).expand(tuple(size)) if line is None else line)
        across.append(
            (Labels(tuple(rest), bool(labels and labels.owned)) if rest else None, [*size[:dim], 1, *size[dim + 1 :]])
        )
    merged, waiting = merge(slots, across, what)
    parts = [part.expand(total) for part in (merged.parts if merged else ())]
    if followed:
        parts.append(_cat(lines, dim))
    return (Labels(tuple(parts), owned) if parts else None), waiting


def _cat(lines: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate parts, without filling dimensions along which none of them varies."""
    shape = [*lines[0].shape]
    shape[dim] = sum(line.shape[dim] for line in lines)
    for other in range(len(shape)):
        if other != dim and all(line.stride(other) == 0 or line.shape[other] == 1 for line in lines):
            lines = [line.narrow(other, 0, 1) for line in lines]
    return torch.cat([line.contiguous() for line in lines], dim).expand(shape)
