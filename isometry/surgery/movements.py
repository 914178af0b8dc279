"""How units pass through operations that move the entries of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from isometry.surgery.following import Following
from isometry.surgery.labels import Labels, concatenate, flatten_chunks, join_along, merge, normalized, varying, vector

__all__ = ["Movements"]

MOVEMENTS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "repeat",
        "unfold",
        "movedim",
        "swapaxes",
        "unflatten",
        "view_as",
        "expand_as",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
    ]
)
COPIES = frozenset(
    [
        "clone",
        "alias",
        "detach",
        "_to_copy",
        "contiguous",
        "lift_fresh",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "dropout",
        "native_dropout",
        "bernoulli",
        "uniform",
        "normal",
        "exponential",
        "view_of",
        "to",
    ]
)


class Movements(Following):
    """Rules for reshaping, permuting, slicing, splitting and concatenating: the labels are moved alike."""

    def _copy(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        for out in outputs:
            self._set(out, labels if labels and out.shape == args[0].shape else None)

    def _on_new_empty(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Follow nothing: of the tensor, only its kind is taken."""
        self.forget(outputs)

    _on_new_zeros = _on_new_ones = _on_new_full = _on_new_empty_strided = _on_new_empty

    def _move(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Apply the operation to the labels themselves."""
        labels = self.labels(args[0])
        if labels is None:
            return
        out = outputs[0]
        parts = []
        for part in labels.parts:
            if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
                moved = part.reshape(out.shape)
            else:
                moved = getattr(torch.ops.aten, name)(part, *args[1:], **kwargs)
            parts.append(moved)
        self._set(out, Labels(tuple(parts), labels.owned))
        self._watch(out)

    def _on_as_strided(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if args[0].is_contiguous() and outputs[0].is_contiguous() and args[0].numel() == outputs[0].numel():
            self._move("view", args, kwargs, outputs)
        else:
            self.fix(args, f"its units meet an operation that cannot be followed ({name}){self._place()}")
            self.forget(outputs)

    def _on_embedding(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        features = None if labels is None else vector(self.slots, labels, 1)
        self._set(outputs[0], Labels((features.expand(outputs[0].shape),)) if features is not None else None)

    def _on_slice(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        tensor, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
        labels, out, dim = self.labels(tensor), outputs[0], dim % args[0].ndim
        if labels is None:
            return
        start, step = args[2] if len(args) > 2 else 0, args[4] if len(args) > 4 else 1
        start = max(0, (start or 0) + (tensor.shape[dim] if (start or 0) < 0 else 0))
        length = out.shape[dim]
        parts = []
        for part in labels.parts:
            if length != tensor.shape[dim] and dim in varying(self.slots, part):
                reason = "the network takes a slice of its units"
                if step == 1 and length and start % length == 0:
                    flatten_chunks(self.slots, part, dim, length, reason)
                else:
                    join_along(self.slots, part, {dim}, reason)
            parts.append(torch.ops.aten.slice(part, dim, *args[2:]))
        self._set(out, Labels(tuple(parts), labels.owned))

    def _on_select(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        self._take(args[0], args[1], outputs, lambda part: [part.select(args[1], args[2])])

    def _on_unbind(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        self._take(args[0], dim, outputs, lambda part: part.unbind(dim))

    def _on_index_select(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        self._take(args[0], args[1], outputs, lambda part: [part.index_select(args[1], args[2].cpu())])

    def _take(
        self, tensor: Tensor, dim: int, outputs: list[Tensor], take: Callable[[Tensor], Sequence[Tensor]]
    ) -> None:
        """Take entries at places along a dimension, which thereby cannot shrink."""
        labels = self.labels(tensor)
        if labels is None:
            return
        results: list[list[Tensor]] = [[] for _ in outputs]
        for part in labels.parts:
            join_along(self.slots, part, {dim % tensor.ndim}, "the network takes some of its units by their index")
            for parts, taken in zip(results, take(part), strict=True):
                parts.append(taken)
        for out, parts in zip(outputs, results, strict=True):
            self._set(out, Labels(tuple(parts), labels.owned))

    def _on_index(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        if labels is None:
            return
        indices = tree_map(lambda i: i.cpu() if isinstance(i, Tensor) else i, list(args[1]))
        dims, place = set(), 0
        for index in indices:
            width = index.ndim if index is not None and index.dtype == torch.bool else 1
            dims |= set(range(place, place + width)) if index is not None else set()
            place += width
        parts = []
        for part in labels.parts:
            join_along(self.slots, part, dims, "the network takes some of its units by their index")
            parts.append(torch.ops.aten.index(part, indices))
        self._set(outputs[0], Labels(tuple(parts), labels.owned))

    def _on_split(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        if labels is None:
            return
        dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].ndim
        sizes = [out.shape[dim] for out in outputs]
        results: list[list[Tensor]] = [[] for _ in outputs]
        for part in labels.parts:
            if len(set(sizes)) == 1:
                flatten_chunks(self.slots, part, dim, sizes[0], "the network splits its units into chunks")
            else:
                join_along(self.slots, part, {dim}, f"the network splits its units into chunks of {sizes}")
            for parts, taken in zip(results, part.split(sizes, dim), strict=True):
                parts.append(taken)
        for out, parts in zip(outputs, results, strict=True):
            self._set(out, Labels(tuple(parts), labels.owned))

    _on_split_with_sizes = _on_chunk = _on_unsafe_split = _on_unsafe_chunk = _on_split

    def _on_cat(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        tensors = [tensor for tensor in args[0] if tensor.numel() or tensor.ndim > 1]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].ndim
        operands = [(self.labels(tensor), tensor.shape) for tensor in tensors]
        labels, waiting = concatenate(self.slots, operands, dim, f"{name}{self._place()}")
        self._waiting += waiting
        self._set(outputs[0], labels)

    def _on_stack(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].ndim
        operands = []
        for tensor in args[0]:
            labels = self.labels(tensor)
            if labels:
                labels = Labels(tuple(part.unsqueeze(dim) for part in labels.parts), labels.owned)
            operands.append((labels, (*tensor.shape[:dim], 1, *tensor.shape[dim:])))
        merged, waiting = merge(self.slots, operands, f"{name}{self._place()}")
        self._waiting += waiting
        self._set(outputs[0], merged and Labels(tuple(p.expand(outputs[0].shape) for p in merged.parts), merged.owned))

    def _on_constant_pad_nd(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        if labels is None:
            return
        pads = {args[0].ndim - 1 - index // 2 for index, width in enumerate(args[1]) if width}
        parts = []
        for part in labels.parts:
            if padded := pads & varying(self.slots, part):
                self.slots.fix(normalized(part), "its units pass through a shortcut that pads channels with zeros")
                if padded:
                    parts.append(torch.ops.aten.constant_pad_nd(part, args[1], 0))
            else:
                for dim in pads:
                    part = part.narrow(dim, 0, 1)
                parts.append(part.expand(outputs[0].shape))
        self._set(outputs[0], Labels(tuple(parts), labels.owned))

    def _on_copy(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if args[0]._is_view():
            self.fix(args[:2], f"its units are written into a part of a tensor{self._place()}")
        else:
            self._copy(name, args[1:], kwargs, outputs)
