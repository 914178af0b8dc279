"""Propagation: follows every unit through the operations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from isometry.surgery.labels import Labels, Waiting, concatenate, flatten_chunks, join_along, merge, normalized, varying, vector
from isometry.surgery.slots import Slots

__all__ = ["Propagation"]

_MOVEMENTS = frozenset(
    "view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze expand repeat unfold diagonal "
    "movedim swapaxes unflatten view_as expand_as pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle".split()
)
_COPIES = frozenset(
    "clone alias detach _to_copy contiguous lift_fresh empty_like zeros_like ones_like full_like rand_like randn_like "
    "dropout native_dropout view_of to".split()
)
_REDUCTIONS = frozenset(
    "sum mean amax amin max min var var_mean std std_mean norm linalg_vector_norm logsumexp prod any all argmax argmin "
    "median nansum nanmean".split()
)
_SPATIAL = {
    f"{name}{n}d{suffix}": n
    for n in (1, 2, 3)
    for name in (
        "avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "reflection_pad", "replication_pad",
        "upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear", "upsample_trilinear", "upsample_bicubic",
        "_upsample_bilinear", "_upsample_bicubic", "fractional_max_pool",
    )
    for suffix in ("", "_with_indices", "_aa")
}  # fmt: skip
_POINTWISE = frozenset("hardswish hardtanh hardsigmoid gelu silu mish celu selu elu leaky_relu rrelu softplus threshold relu6 glu_jvp".split())
_ALONG = {"softmax": 1, "_safe_softmax": 1, "_softmax": 1, "log_softmax": 1, "_log_softmax": 1, "cumsum": 1, "cumprod": 1, "flip": 1, "roll": 2, "sort": 1, "topk": 2}
_BATCH_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update")


class Propagation(TorchDispatchMode):
    """While active, gives the tensors of a forward pass labels, and joins the slots that operations tie together.

    Operations that only move entries are applied to the labels themselves. What is not known is not followed: the
    units that meet it cannot be removed, and the reason says so.

    Attributes:
        slots: of the parameters and buffers.
        read: slots of weights that read units.
        used: the identities of the tensors that some operation took.
        mixes: (name of a normalization over channels, slots of the channels).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.slots = Slots()
        self.mixes: list[tuple[str, Tensor]] = []
        self.read: list[Tensor] = []
        self._labels: dict[int, tuple[Tensor, Labels | None]] = {}
        self._waiting: list[Waiting] = []
        self._several: list[Tensor] = []
        self._reduced: dict[int, list[tuple[Tensor, set[int], str]]] = {}
        self.used: set[int] = set()
        self._stack: list[str] = []
        self._kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim and tensor.is_floating_point():
                self._register(name, tensor)
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and module.weight is None:
                self.slots.add(f"{name}.normalized_shape", module.normalized_shape)

    def _register(self, name: str, tensor: Tensor) -> None:
        self.slots.add(name, tensor.shape)
        parts = []
        for dim in range(tensor.ndim):
            line = self.slots.of(name, dim)
            parts.append(line[(None,) * dim + (...,) + (None,) * (tensor.ndim - dim - 1)].expand(tensor.shape))
        self._labels[id(tensor)] = tensor, Labels(tuple(parts), owned=True)

    def enter(self, name: str) -> None:
        """Say that what follows happens in the module of this name."""
        self._stack.append(name)

    def leave(self) -> None:
        """Say that the module entered last is left."""
        self._stack.pop()

    def labels(self, tensor: Any) -> Labels | None:
        """Return the labels of a tensor, None where it has none."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry is not None else None

    def fix(self, values: Any, reason: str) -> None:
        """Note that no entry of these tensors can be removed."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and (labels := self.labels(tensor)):
                self._join_reduced(tensor)
                for part in labels.parts:
                    self.slots.fix(normalized(part), reason)

    def forget(self, values: Any) -> None:
        """Drop the labels of tensors."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                self._labels[id(tensor)] = tensor, None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and give its result labels."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used.update(map(id, tensors))
        if any(self.labels(tensor) for tensor in tensors):
            self._follow(func, args, kwargs, tensors, result)
        return result

    def _join_reduced(self, tensor: Tensor) -> None:
        """Join what a reduction brought together: only where its result is used, not in a condition."""
        for part, dims, reason in self._reduced.pop(id(tensor), ()):
            join_along(self.slots, part, dims, reason)

    def _follow(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        base = name.rstrip("_") if name.endswith("_") and not name.startswith("__") else name
        rule = self._rule(base, func)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(out.is_floating_point() or out.is_complex() for out in outputs):
            return
        for tensor in tensors:
            self._join_reduced(tensor)
        if rule is None:
            self.fix((args, kwargs), f"its units meet an operation that cannot be followed ({base}){self._place()}")
            self.forget(outputs)
        else:
            rule(base, args, kwargs, outputs)

    def _place(self) -> str:
        return f" in {self._stack[-1]} ({self._kinds[self._stack[-1]]})" if self._stack and self._stack[-1] else ""

    def _rule(self, name: str, func: Any) -> Callable[..., None] | None:
        if name in _COPIES:
            return self._copy
        if name in _MOVEMENTS:
            return self._move
        if name in _REDUCTIONS:
            return self._reduce
        if name in _SPATIAL:
            return self._pool
        if name in _ALONG:
            return self._mix_along
        if name in _BATCH_NORMS:
            return self._batch_norm
        own = getattr(self, f"_on_{name}", None)
        if own is None and (name in _POINTWISE or torch.Tag.pointwise in func.tags):
            return self._pointwise
        return own

    def _set(self, tensor: Tensor, labels: Labels | None) -> None:
        if labels is not None:
            labels = Labels(tuple(normalized(part) for part in labels.parts), labels.owned)
        self._labels[id(tensor)] = tensor, labels

    # Operations that move entries

    def _copy(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels = self.labels(args[0])
        for out in outputs:
            self._set(out, labels if labels and out.shape == args[0].shape else None)

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
        features = labels and vector(self.slots, labels, 1)
        self._set(outputs[0], Labels((features.expand(outputs[0].shape),)) if features is not None else None)

    def _watch(self, out: Tensor) -> None:
        """Remember parts that vary along several dimensions: what is kept must be rectangular in the end."""
        labels = self.labels(out)
        self._several += [part for part in (labels.parts if labels else ()) if len(varying(self.slots, part)) > 1]

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

    def _take(self, tensor: Tensor, dim: int, outputs: list[Tensor], take: Callable[[Tensor], Sequence[Tensor]]) -> None:
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

    # Operations entry by entry, reductions and pooling

    def _pointwise(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = [(self.labels(t), t.shape) for t in tensors if t.numel() > 1 or self.labels(t)]
        labels, waiting = merge(self.slots, operands, f"{name}{self._place()}")
        self._waiting += waiting
        for out in outputs:
            expanded = labels and Labels(tuple(part.expand(out.shape) for part in labels.parts), labels.owned)
            self._set(out, expanded)

    _on_where = _on_masked_fill = _on_lerp = _on_addcmul = _on_addcdiv = _pointwise
    _on_prelu = _on__prelu_kernel = lambda self, name, args, kwargs, outputs: self._per_channel(args[0], [args[1]], outputs[:1], name)

    def _on_copy(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if args[0]._is_view():
            self.fix(args[:2], f"its units are written into a part of a tensor{self._place()}")
        else:
            self._copy(name, args[1:], kwargs, outputs)

    def _reduce(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels, source = self.labels(args[0]), args[0]
        if labels is None or (name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor)):
            self._pointwise(name, args, kwargs, outputs)
            return
        place = 2 if name in ("norm", "linalg_vector_norm") else 1
        dims = kwargs.get("dim", args[place] if len(args) > place else None)
        if isinstance(dims, bool) or dims is None or dims == []:
            dims = list(range(source.ndim))
        reduced = {dim % source.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
        reason = f"the network takes the {name} over its units{self._place()}"
        parts = []
        for out in outputs:
            self._reduced[id(out)] = [(part, reduced, reason) for part in labels.parts]
        for part in labels.parts:
            for dim in sorted(reduced, reverse=True):
                part = part.narrow(dim, 0, 1) if outputs[0].ndim == source.ndim else part.select(dim, 0)
            parts.append(part)
        for out in outputs:
            self._set(out, Labels(tuple(parts), labels.owned))

    def _mix_along(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels, place = self.labels(args[0]), _ALONG[name]
        if labels is None:
            return
        dims = args[place] if len(args) > place else kwargs.get("dim", kwargs.get("dims", -1))
        dims = [dims] if isinstance(dims, int) else (dims or range(args[0].ndim))
        for part in labels.parts:
            join_along(self.slots, part, {dim % args[0].ndim for dim in dims}, f"{name} mixes its units{self._place()}")
        for out in outputs:
            self._set(out, Labels(tuple(p.expand(out.shape) if p.shape == out.shape else _first(p, out) for p in labels.parts), labels.owned))

    def _pool(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels, source = self.labels(args[0]), args[0]
        if labels is None:
            return
        spatial = set(range(source.ndim - _SPATIAL[name], source.ndim))
        for part in labels.parts:
            join_along(self.slots, part, spatial, f"{name} mixes its units{self._place()}")
        for out in outputs:
            self._set(out, Labels(tuple(_first(part, out, spatial) for part in labels.parts), labels.owned))

    # Normalization

    def _per_channel(self, source: Tensor, parameters: Sequence[Any], outputs: list[Tensor], name: str) -> None:
        """Join the channels, dimension 1 of the source, with the entries of vectors."""
        dim = 1 if source.ndim > 1 else 0
        shape = [1] * source.ndim
        operands: list[tuple[Labels | None, Sequence[int]]] = [(self.labels(source), source.shape)]
        for parameter in parameters:
            if isinstance(parameter, Tensor) and parameter.numel() > 1:
                labels = self.labels(parameter)
                shape[dim] = parameter.numel()
                viewed = labels and Labels(tuple(part.reshape(shape) for part in labels.parts), labels.owned)
                operands.append((viewed, tuple(shape)))
        merged, waiting = merge(self.slots, operands, f"{name}{self._place()}")
        self._waiting += waiting
        for out in outputs:
            self._set(out, merged)

    def _batch_norm(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        self._per_channel(args[0], args[1:5], outputs[:1], name)

    def _on_native_layer_norm(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        source, shape = args[0], args[1]
        first = source.ndim - len(shape)
        module = self._stack[-1] if self._stack else ""
        operands: list[tuple[Labels | None, Sequence[int]]] = [(self.labels(source), source.shape)]
        operands += [(self.labels(p), p.shape) for p in args[2:4] if isinstance(p, Tensor)]
        if not isinstance(args[2], Tensor) and len(shape) == 1 and (f"{module}.normalized_shape", 0) in self.slots.names():
            operands.append((Labels((self.slots.of(f"{module}.normalized_shape", 0),), owned=True), shape))
        labels = self.labels(source)
        for part in labels.parts if labels else ():
            if any(dim >= first for dim in varying(self.slots, part)):
                self.mixes.append((module, normalized(part)))
        merged, waiting = merge(self.slots, operands, f"{name}{self._place()}")
        self._waiting += waiting
        self._set(outputs[0], merged)

    def _on_native_group_norm(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        source, groups = args[0], args[6]
        labels, channels = self.labels(source), source.shape[1]
        for part in labels.parts if labels else ():
            if groups != channels:  # an instance norm otherwise
                flatten_chunks(self.slots, part, 1, channels // groups, "the groups of a GroupNorm must stay of one size")
                self.mixes.append((self._stack[-1] if self._stack else "", normalized(part)))
        self._per_channel(source, args[1:3], outputs[:1], name)

    # Weights

    def _on_convolution(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        source, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        labels, kernel, out = self.labels(source), self.labels(weight), outputs[0]
        where = f"the convolution{self._place()}"
        units = kernel and kernel.owned and vector(self.slots, kernel, 1 if transposed else 0)
        inputs = kernel and kernel.owned and vector(self.slots, kernel, 0 if transposed else 1)
        if units is None or inputs is None or not kernel or (transposed and groups > 1):
            reason = f"{self._stack[-1] if self._stack else 'a layer'} is a transposed convolution in groups"
            self.fix((source, weight), reason if transposed and groups > 1 else f"{where} computes its kernel in a way that cannot be followed")
            self.forget(out)
            return
        assert isinstance(units, Tensor)
        assert isinstance(inputs, Tensor)
        channels = vector(self.slots, labels, 1) if labels else None
        for part in labels.parts if labels else ():
            join_along(self.slots, part, varying(self.slots, part) - {1}, f"{where} mixes its units")
        if groups == source.shape[1] and groups > 1:  # a filter or several for every channel
            if channels is None:
                join_along(self.slots, units, {0}, f"{where} reads inputs of the network, channel by channel")
            else:
                self.slots.join(channels[:, None], units.reshape(groups, -1))
        else:
            if groups > 1:
                flatten_chunks(self.slots, units, 0, len(units) // groups, "the groups of a convolution must stay of one size")
            if channels is None:
                join_along(self.slots, inputs, {0}, f"{where} reads inputs of the network")
            else:
                self.slots.join(channels.reshape(groups, -1), inputs[None])
                self.read.append(inputs)
        if isinstance(bias, Tensor) and (entries := self.labels(bias)) is not None:
            line = vector(self.slots, entries, 0)
            if line is not None:
                self.slots.join(line, units)
        shape = [1] * out.ndim
        shape[1] = -1
        self._set(out, Labels((units.reshape(shape).expand(out.shape),)))

    def _on_mm(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        self._contract(args[0], args[1], None, outputs[0])

    _on_bmm = _on_matmul = _on_mv = _on_mm

    def _on_addmm(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        self._contract(args[1], args[2], args[0], outputs[0])

    _on_baddbmm = _on_addmm

    def _on_linear(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        kernel = self.labels(args[1])
        turned = kernel and Labels(tuple(part.t() for part in kernel.parts), kernel.owned)
        self._contract(args[0], args[1].t(), args[2] if len(args) > 2 else None, outputs[0], turned)

    def _contract(self, one: Tensor, other: Tensor, bias: Any, out: Tensor, kernel: Labels | None = None) -> None:
        """Follow out[..., n, m] = sum over k of one[..., n, k] other[..., k, m]."""
        a, b = self.labels(one), kernel or self.labels(other)
        if a and b and a.owned and b.owned:
            self.fix([one], f"a product of weights{self._place()} cannot be followed")
            a = None
        if b and b.owned and not (a and a.owned) and other.ndim == 2:
            parts = self._apply(a, b, one.ndim - 1, -2, lambda p: p.narrow(one.ndim - 1, 0, 1).expand(out.shape))
            units = vector(self.slots, b, -1)
            parts += [units.expand(out.shape)] if units is not None else []
        elif a and a.owned and not (b and b.owned) and one.ndim == 2:
            parts = self._apply(b, a, other.ndim - 2, -1, lambda p: p.narrow(other.ndim - 2, 0, 1).expand(out.shape))
            units = vector(self.slots, a, -2)
            parts += [units[:, None].expand(out.shape)] if units is not None else []
        elif (a and a.owned) or (b and b.owned):
            self.fix((one, other), f"a batched product of weights{self._place()} cannot be followed")
            self.forget(out)
            return
        else:
            parts = self._contract_activations(one, other, out)
        labels: Labels | None = Labels(tuple(parts)) if parts else None
        if isinstance(bias, Tensor) and (labels or self.labels(bias)):
            labels, waiting = merge(self.slots, [(labels, out.shape), (self.labels(bias), bias.shape)], f"a bias{self._place()}")
            self._waiting += waiting
        self._set(out, labels)

    def _apply(
        self, source: Labels | None, weight: Labels, along: int, dim: int, carry: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Join what a weight reads along a dimension with its inputs; return the parts that pass by it."""
        inputs = vector(self.slots, weight, dim)
        where = f"the weights{self._place()}"
        if source is None:
            if inputs is not None:
                join_along(self.slots, inputs, {0}, f"{where} read inputs of the network")
            return []
        carried, read = [], None
        for part in source.parts:
            dims = varying(self.slots, part)
            if along in dims:
                read = vector(self.slots, Labels((part,)), along)
                assert read is not None
                if inputs is None:
                    join_along(self.slots, read, {0}, f"{where} cannot be followed")
                else:
                    self.slots.join(read, inputs)
            elif dims:
                carried.append(carry(part))
        if inputs is not None:
            if read is not None or len(inputs) == 1:
                self.read.append(inputs)
                if read is None and (only := vector(self.slots, source, along)) is not None:
                    self.slots.join(only, inputs)
            else:
                join_along(self.slots, inputs, {0}, f"{where} read what cannot be removed")
        return carried

    def _contract_activations(self, one: Tensor, other: Tensor, out: Tensor) -> list[Tensor]:
        """Follow a product of two activations, of queries and keys for instance: whole heads are removed."""
        operands: list[tuple[Labels | None, Sequence[int]]] = []
        for tensor, dim, missing in ((one, one.ndim - 1, -1), (other, max(other.ndim - 2, 0), -2)):
            labels, parts = self.labels(tensor), []
            for part in labels.parts if labels else ():
                self.slots.contract(part)
                if dim in varying(self.slots, part):
                    join_along(self.slots, part, {dim}, f"its units are contracted with those of another activation{self._place()}")
                parts.append(part.narrow(dim, 0, 1))
            size = [*tensor.shape]
            size[dim] = 1
            operands.append((Labels(tuple(parts)) if parts else None, size))
        merged, waiting = merge(self.slots, operands, f"a product{self._place()}", eager=True)
        self._waiting += waiting
        return [part.expand(out.shape) for part in merged.parts] if merged else []

    # The end

    def settle(self) -> None:
        """Decide what the operations left open, in their order: what is kept must be rectangular in every tensor."""
        self._settle_waiting()
        for part in self._several:
            while len(dims := varying(self.slots, part)) > 1:
                # The shorter dimension is the number of groups or heads, which the network's code holds.
                join_along(self.slots, part, {min(dims, key=lambda dim: (part.shape[dim], dim))})
                self._settle_waiting()
        for parts, others in self._waiting:
            for part in parts:
                dims = varying(self.slots, part)
                for other in others:
                    # What meets a dimension that has turned out to be of fixed size cannot shrink along it.
                    if (there := varying(self.slots, other)) != dims:
                        join_along(self.slots, part, {dim for dim in dims - there if other.shape[dim] > 1})
                        join_along(self.slots, other, {dim for dim in there - dims if part.shape[dim] > 1})

    def _settle_waiting(self) -> None:
        for parts, others in self._waiting:
            for part in parts:
                for other in others:
                    if varying(self.slots, part) and varying(self.slots, part) == varying(self.slots, other):
                        self.slots.join(part, other)


def _first(part: Tensor, out: Tensor, dims: set[int] | None = None) -> Tensor:
    """Return a part in another tensor's shape, by its first entry along the dimensions of other sizes."""
    for dim in range(part.ndim):
        if part.shape[dim] != out.shape[dim] or (dims and dim in dims):
            part = part.narrow(dim, 0, 1)
    return part.expand(out.shape)
