"""What is known while units are followed: labels of tensors, joined slots, and what is still undecided."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.utils._pytree import tree_leaves

from isometry.surgery.labels import Labels, Waiting, join_along, normalized, varying, vector
from isometry.surgery.slots import Slots

__all__ = ["Following"]


class Following:
    """The state of a forward pass in which units are followed, and what all operations do with it.

    Attributes:
        slots: of the parameters and buffers.
        read: slots of weights that read units.
        used: the identities of the tensors that some operation took.
        mixes: (name of a normalization over channels, slots of the channels).
    """

    def __init__(self, model: nn.Module) -> None:
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
            if isinstance(module, InstanceNorm) and module.weight is None and module.running_mean is None:
                self.slots.add(f"{name}.num_features", [module.num_features])

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

    def count(self, name: str, source: Tensor, dim: int) -> None:
        """Join the channels of a tensor with those that an InstanceNorm without weights says to have."""
        labels, said = self.labels(source), (f"{name}.num_features", 0)
        if labels and said in self.slots.names():
            line, own = vector(self.slots, labels, dim), self.slots.of(*said)
            if line is not None and len(line) == len(own):
                self.slots.join(line, own)

    def leave_all(self) -> None:
        """Say that no module runs any more, after a forward pass that did not end."""
        self._stack.clear()

    def labels(self, tensor: Any) -> Labels | None:
        """Return the labels of a tensor, None where it has none."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry is not None else None

    def _set(self, tensor: Tensor, labels: Labels | None) -> None:
        if labels is not None:
            labels = Labels(tuple(normalized(part) for part in labels.parts), labels.owned)
        self._labels[id(tensor)] = tensor, labels

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

    def _join_reduced(self, tensor: Tensor) -> None:
        """Join what a reduction brought together: only where its result is used, not in a condition."""
        for part, dims, reason in self._reduced.pop(id(tensor), ()):
            join_along(self.slots, part, dims, reason)

    def _place(self) -> str:
        return f" in {self._stack[-1]} ({self._kinds[self._stack[-1]]})" if self._stack and self._stack[-1] else ""

    def _watch(self, out: Tensor) -> None:
        """Remember parts that vary along several dimensions: what is kept must be rectangular in the end."""
        labels = self.labels(out)
        self._several += [part for part in (labels.parts if labels else ()) if len(varying(self.slots, part)) > 1]

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
