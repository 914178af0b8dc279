"""How units are made and read by weights, and contracted with each other by attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from isometry.surgery.following import Following
from isometry.surgery.labels import Labels, flatten_chunks, join_along, merge, varying, vector

__all__ = ["Contractions"]


class Contractions(Following):
    """Rules for convolutions and matrix products."""

    def _on_convolution(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        source, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        labels, kernel, out = self.labels(source), self.labels(weight), outputs[0]
        where = f"the convolution{self._place()}"
        units = kernel and kernel.owned and vector(self.slots, kernel, 1 if transposed else 0)
        inputs = kernel and kernel.owned and vector(self.slots, kernel, 0 if transposed else 1)
        if units is None or inputs is None or not kernel or (transposed and groups > 1):
            reason = f"{self._stack[-1] if self._stack else 'a layer'} is a transposed convolution in groups"
            self.fix(
                (source, weight),
                reason
                if transposed and groups > 1
                else f"{where} computes its kernel in a way that cannot be followed",
            )
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
                flatten_chunks(
                    self.slots, units, 0, len(units) // groups, "the groups of a convolution must stay of one size"
                )
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
            labels, waiting = merge(
                self.slots, [(labels, out.shape), (self.labels(bias), bias.shape)], f"a bias{self._place()}"
            )
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
        for tensor, dim in ((one, one.ndim - 1), (other, max(other.ndim - 2, 0))):
            labels, parts = self.labels(tensor), []
            for part in labels.parts if labels else ():
                self.slots.contract(part)
                if dim in varying(self.slots, part):
                    join_along(
                        self.slots,
                        part,
                        {dim},
                        f"its units are contracted with those of another activation{self._place()}",
                    )
                parts.append(part.narrow(dim, 0, 1))
            size = [*tensor.shape]
            size[dim] = 1
            operands.append((Labels(tuple(parts)) if parts else None, size))
        merged, waiting = merge(self.slots, operands, f"a product{self._place()}", eager=True)
        self._waiting += waiting
        return [part.expand(out.shape) for part in merged.parts] if merged else []
