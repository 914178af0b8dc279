"""How units pass through operations entry by entry, reductions, pooling and normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from isometry.surgery.following import Following
from isometry.surgery.labels import Labels, flatten_chunks, join_along, merge, normalized, varying

__all__ = ["Combinations"]

REDUCTIONS = frozenset(
    [
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "var_mean",
        "std",
        "std_mean",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "prod",
        "any",
        "all",
        "argmax",
        "argmin",
        "median",
        "nansum",
        "nanmean",
    ]
)
SPATIAL = {
    f"{name}{n}d{suffix}": n
    for n in (1, 2, 3)
    for name in (
        "avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "reflection_pad", "replication_pad",
        "upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear", "upsample_trilinear", "upsample_bicubic",
        "_upsample_bilinear", "_upsample_bicubic", "fractional_max_pool",
    )
    for suffix in ("", "_with_indices", "_aa")
}  # fmt: skip
POINTWISE = frozenset(
    [
        "hardswish",
        "hardtanh",
        "hardsigmoid",
        "gelu",
        "silu",
        "mish",
        "celu",
        "selu",
        "elu",
        "leaky_relu",
        "rrelu",
        "softplus",
        "threshold",
        "relu6",
        "glu_jvp",
    ]
)
ALONG = {
    "softmax": 1,
    "_safe_softmax": 1,
    "_softmax": 1,
    "log_softmax": 1,
    "_log_softmax": 1,
    "cumsum": 1,
    "cumprod": 1,
    "flip": 1,
    "roll": 2,
    "sort": 1,
    "topk": 2,
}
BATCH_NORMS = (
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_with_update",
)


class Combinations(Following):
    """Rules for what combines entries: what it ties together is joined."""

    def _pointwise(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = [(self.labels(t), t.shape) for t in tensors if t.numel() > 1 or self.labels(t)]
        labels, waiting = merge(self.slots, operands, f"{name}{self._place()}")
        self._waiting += waiting
        for out in outputs:
            expanded = labels and Labels(tuple(part.expand(out.shape) for part in labels.parts), labels.owned)
            self._set(out, expanded)

    _on_where = _on_masked_fill = _on_lerp = _on_addcmul = _on_addcdiv = _pointwise
    _on_prelu = _on__prelu_kernel = lambda self, name, args, kwargs, outputs: self._per_channel(
        args[0], [args[1]], outputs[:1], name
    )

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
        labels, place = self.labels(args[0]), ALONG[name]
        if labels is None:
            return
        dims = args[place] if len(args) > place else kwargs.get("dim", kwargs.get("dims", -1))
        dims = [dims] if isinstance(dims, int) else (dims or range(args[0].ndim))
        for part in labels.parts:
            join_along(self.slots, part, {dim % args[0].ndim for dim in dims}, f"{name} mixes its units{self._place()}")
        for out in outputs:
            self._set(
                out,
                Labels(
                    tuple(p.expand(out.shape) if p.shape == out.shape else _first(p, out) for p in labels.parts),
                    labels.owned,
                ),
            )

    def _pool(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        labels, source = self.labels(args[0]), args[0]
        if labels is None:
            return
        spatial = set(range(source.ndim - SPATIAL[name], source.ndim))
        for part in labels.parts:
            join_along(self.slots, part, spatial, f"{name} mixes its units{self._place()}")
        for out in outputs:
            self._set(out, Labels(tuple(_first(part, out, spatial) for part in labels.parts), labels.owned))

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
        if (
            not isinstance(args[2], Tensor)
            and len(shape) == 1
            and (f"{module}.normalized_shape", 0) in self.slots.names()
        ):
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
                flatten_chunks(
                    self.slots, part, 1, channels // groups, "the groups of a GroupNorm must stay of one size"
                )
                self.mixes.append((self._stack[-1] if self._stack else "", normalized(part)))
        self._per_channel(source, args[1:3], outputs[:1], name)


def _first(part: Tensor, out: Tensor, dims: set[int] | None = None) -> Tensor:
    """Return a part in another tensor's shape, by its first entry along the dimensions of other sizes."""
    for dim in range(part.ndim):
        if part.shape[dim] != out.shape[dim] or (dims and dim in dims):
            part = part.narrow(dim, 0, 1)
    return part.expand(out.shape)
