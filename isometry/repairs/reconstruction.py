"""Reconstruction: what reads removed units is solved for again, so that it gives what it gave in the dense network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Data, Split
from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.networks import placed
from isometry.networks.modules import clone, evaluating, hooked, unwrap
from isometry.repairs.correspondence import kept_units
from isometry.repairs.least_squares import NormalEquations, draw_positions, output_samples, patches
from isometry.repairs.readers import Reader, Sums, find_readers

__all__ = ["repair"]


@signed("repair")
@torch.no_grad()
def repair(
    model: nn.Module,
    *,
    reference: nn.Module,
    data: Any,
    samples: int = 1024,
    positions: int = 24,
    batch_size: int = 128,
    ridge: float = 1e-3,
    drift: bool = True,
    everything: bool = False,
    sweeps: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    repaired, original = clone(unwrap(model)), unwrap(reference)
    inputs = placed(read_inputs(data, samples, seed), repaired)
    with evaluating(repaired, original):
        readers = find_readers(repaired, original, inputs[:2], everything)
        if not drift:
            readers = [replace(reader, summed=False) for reader in readers]
        targets = _dense_targets(original, readers, inputs.split(batch_size), positions, seed)
        quiet = None if progress is None else not progress
        for _ in range(sweeps):
            with tqdm(total=len(readers), desc="repair", unit="layer", disable=quiet) as bar:
                _Reconstruction(repaired, original, readers, targets, ridge, batch_size, bar).run(inputs)
    return repaired


def read_inputs(data, samples, seed):
    if data is None: raise InvalidValueError("got no data")
    x = data if isinstance(data, Tensor) else data.train.inputs if isinstance(data, Data) else data[0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
    out = x[order]
    return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out


@dataclass(frozen=True)
class _Target:
    """What a layer gives in the dense network.

    Attributes:
        positions: [N, P], where in its output.
        shape: of its output, but for the samples.
        values: [N P, units]: its output, or that of its BatchNorm, or the sum that it goes into.
    """

    positions: Tensor
    shape: torch.Size
    values: Tensor


def _dense_targets(reference, readers, batches, count, seed) -> dict[str, _Target]:
    """Return what every reader gives in the dense network."""
    parts: dict[str, list[_Target]] = {reader.layer: [] for reader in readers}
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, output: Tensor, other: Tensor) -> None:
        part = parts[name][-1]
        values = part.values + output_samples(reference.get_submodule(name), other, part.positions)
        parts[name][-1] = replace(part, values=values)

    sums = Sums(add)

    def watch(reader: Reader):
        layer = reference.get_submodule(reader.layer)

        def hook(_: nn.Module, args: object, output: Tensor) -> None:
            positions = draw_positions(layer, output, count, generator)
            values = output_samples(layer, output, positions)
            parts[reader.layer].append(_Target(positions, output.shape[1:], values))
            if reader.summed:
                sums.expect(reader.layer, output)

        return hook

    with hooked(*(reference.get_submodule(r.last).register_forward_hook(watch(r)) for r in readers)), sums:
        for batch in batches:
            reference(placed(batch, reference))
    return {
        name: _Target(torch.cat([p.positions for p in all_]), all_[0].shape, torch.cat([p.values for p in all_]))
        for name, all_ in parts.items()
    }


class _Reconstruction:
    """One pass over the pruned network, all samples at once, in which every reader is solved for as it is reached."""

    def __init__(self, model, reference, readers, targets, ridge, batch_size, bar):
        self.model, self.reference, self.targets = model, reference, targets
        self.ridge, self.batch_size, self.bar = ridge, batch_size, bar
        self.readers = {reader.layer: reader for reader in readers}
        self.inputs: dict[str, Tensor] = {}
        self.sums = Sums(self._repair_sum)

    def run(self, inputs: Tensor) -> None:
        handles = []
        for reader in self.readers.values():
            layer = self.model.get_submodule(reader.layer)
            handles.append(layer.register_forward_pre_hook(self._read(reader), with_kwargs=True))
            if reader.summed:
                handles.append(self.model.get_submodule(reader.last).register_forward_hook(self._give(reader)))
        with hooked(*handles), self.sums:
            self.model(inputs)

    def _read(self, reader):
        def hook(_, args, kwargs):
            if reader.layer not in self.readers:
                return
            x = args[0] if args else kwargs["input"]
            if reader.summed:
                self.inputs[reader.layer] = x
            else:
                self._solve(reader, x, None)
                del self.readers[reader.layer]
        return hook

    def _give(self, reader):
        def hook(_, args, output):
            if reader.layer in self.readers:
                self.sums.expect(reader.layer, output)
        return hook

    def _repair_sum(self, name: str, output: Tensor, other: Tensor) -> None:
        reader, x = self.readers.pop(name), self.inputs.pop(name)
        self._solve(reader, x, other)
        layer = self.model.get_submodule(reader.layer)
        for part, values in zip(output.split(self.batch_size), x.split(self.batch_size), strict=True):
            new = layer(values)
            part.copy_(self.model.get_submodule(reader.norm)(new) if reader.norm else new)

    def _solve(self, reader, x, other):
        self.bar.update()
        layer: Any = self.model.get_submodule(reader.layer)
        norm: Any = self.model.get_submodule(reader.norm) if reader.norm else None
        target = self.targets[reader.layer]
        rows = kept_units(layer, self.reference.get_submodule(reader.layer)).to(layer.weight.device)
        scale, shift = _affine(norm) if norm is not None else (1.0, 0.0)
        equations = NormalEquations()
        start = 0
        per = target.positions.shape[1]
        for at in range(0, len(x), self.batch_size):
            part = slice(at, at + self.batch_size)
            positions = target.positions[part]
            wanted = target.values[at * per : (at + self.batch_size) * per].to(x.device)[:, rows].double()
            if other is not None:
                wanted = wanted - output_samples(layer, other[part], positions)
            equations.add(patches(layer, x[part], target.shape, positions), (wanted - shift) / scale)
        bias = layer.bias
        weights = layer.weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))
        weight, constant = equations.solve(weights, self.ridge, centered=norm is not None or bias is not None)
        layer.weight.copy_(weight.view_as(layer.weight))
        if norm is not None:
            norm.running_mean.copy_((0 if bias is None else bias) - constant)
        elif bias is not None:
            bias.copy_(constant)


def _affine(norm):
    """Return scale and shift of a BatchNorm around its mean: y = scale (z - mean) + shift"""
    weight = getattr(norm, "scale", norm.weight)
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = 1 / deviation if weight is None else weight.double() / deviation
    beta = 0 if norm.bias is None else norm.bias.double()
    return scale, beta
