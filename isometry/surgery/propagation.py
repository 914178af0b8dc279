"""Propagation: follows every unit through the operations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isometry.surgery.combinations import ALONG, BATCH_NORMS, POINTWISE, REDUCTIONS, SPATIAL, Combinations
from isometry.surgery.contractions import Contractions
from isometry.surgery.labels import Labels, join_along
from isometry.surgery.movements import COPIES, MOVEMENTS, Movements

__all__ = ["Propagation"]


class Propagation(Movements, Combinations, Contractions, TorchDispatchMode):
    """While active, gives the tensors of a forward pass labels, and joins the slots that operations tie together.

    Operations that only move entries are applied to the labels themselves. What is not known is not followed: the
    units that meet it cannot be removed, and the reason says so.
    """

    def __init__(self, model: nn.Module) -> None:
        TorchDispatchMode.__init__(self)
        Combinations.__init__(self, model)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and give its result labels."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used.update(map(id, tensors))
        if any(self.labels(tensor) for tensor in tensors):
            self._follow(func, args, kwargs, tensors, result)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        base = name.rstrip("_") if name.endswith("_") and not name.startswith("__") else name
        rule = self._rule(base, func)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(out.is_floating_point() or out.is_complex() for out in outputs):
            self._follow_decision(base, rule, args, kwargs, tensors, outputs)
            return
        for tensor in tensors:
            self._join_reduced(tensor)
            if not tensor.is_floating_point() and not tensor.is_complex() and rule not in self._entrywise():
                self._join_places(tensor, base)
        if rule is None:
            self.fix((args, kwargs), f"its units meet an operation that cannot be followed ({base}){self._place()}")
            self.forget(outputs)
        else:
            rule(base, args, kwargs, outputs)

    def _follow_decision(
        self, name: str, rule: Any, args: Any, kwargs: Any, tensors: list[Tensor], outputs: list[Tensor]
    ) -> None:
        """Follow an operation whose results are masks, counts or indices: what it ties is joined where they are used."""
        open_ends = [end for tensor in tensors for end in self._reduced.get(id(tensor), ())]
        if rule is None:
            reason = f"the network takes the {name} over its units{self._place()}"
            for tensor in tensors:
                labels = self.labels(tensor)
                open_ends += [(part, set(range(part.ndim)), reason) for part in (labels.parts if labels else ())]
            for out in outputs:
                self._set(out, Labels(()))
        else:
            rule(name, args, kwargs, outputs)
        for out in outputs:
            self._reduced[id(out)] = [*self._reduced.get(id(out), ()), *open_ends]

    def _entrywise(self) -> tuple[Callable[..., None], ...]:
        """Return the rules by which masks meet entries at their own place, where others read them as indices."""
        return self._pointwise, self._copy, self._move, self._reduce

    def _join_places(self, tensor: Tensor, name: str) -> None:
        """Join what the entries of an index tensor vary with."""
        labels = self.labels(tensor)
        for part in labels.parts if labels else ():
            join_along(self.slots, part, range(part.ndim), f"{name} takes its units as indices{self._place()}")

    def _rule(self, name: str, func: Any) -> Callable[..., None] | None:
        if name in COPIES:
            return self._copy
        if name in MOVEMENTS:
            return self._move
        if name in REDUCTIONS:
            return self._reduce
        if name in SPATIAL:
            return self._pool
        if name in ALONG:
            return self._mix_along
        if name in BATCH_NORMS:
            return self._batch_norm
        own = getattr(self, f"_on_{name}", None)
        if own is None and (name in POINTWISE or torch.Tag.pointwise in func.tags):
            return self._pointwise
        return own
