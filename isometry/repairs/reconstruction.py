"""Reconstruction: what reads removed units is solved for again, so that it gives what it gave in the dense network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from isometry.data import Data, Split
from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.networks import placed
from isometry.networks.modules import clone, evaluating, unwrap
from isometry.repairs.correspondence import kept_units
from isometry.repairs.least_squares import NormalEquations, draw_positions, output_samples, patches
from isometry.repairs.readers import Reader, find_readers, watching

__all__ = ["repair"]


class _Captured(Exception):
    """All that a pass over the pruned network was run for has been seen."""


@dataclass
class _Target:
    """What a layer gives in the dense network, for one batch.

    Attributes:
        positions: [B, P], where in its output.
        output: [B P, units]; with what it is added to, if that is matched too.
    """

    positions: Tensor
    output: Tensor


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
    inputs = [placed(x, model) for x in read_batches(data, samples, batch_size, seed)]
    repaired = clone(unwrap(model))
    original = unwrap(reference)
    with evaluating(repaired, original):
        readers = find_readers(repaired, original, inputs[0][:2], everything)
        if not drift:
            readers = [Reader(r.layer, r.norm, False) for r in readers]
        targets = _dense_targets(original, readers, inputs, positions, seed)
        quiet = None if progress is None else not progress
        for _ in range(sweeps):
            for reader in tqdm(readers, desc="repair", unit="layer", disable=quiet):
                _reconstruct(repaired, original, reader, inputs, targets[reader.layer], ridge)
    return repaired


def read_batches(data, samples, batch_size, seed):
    if data is None: raise InvalidValueError("got no data")
    x = data if isinstance(data, Tensor) else data.train.inputs if isinstance(data, Data) else data[0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
    out = [x[i] for i in order.split(batch_size)]
    return [b.contiguous(memory_format=torch.channels_last) if b.ndim == 4 else b for b in out]


def _dense_targets(reference, readers, inputs, count, seed):
    targets: dict[str, list[_Target]] = {reader.layer: [] for reader in readers}
    generator = torch.Generator().manual_seed(seed)

    def output(reader, result):
        layer = reference.get_submodule(reader.layer)
        positions = draw_positions(layer, result, count, generator)
        targets[reader.layer].append(_Target(positions, output_samples(layer, result, positions)))

    def other(reader, tensor):
        target = targets[reader.layer][-1]
        target.output = target.output + output_samples(reference.get_submodule(reader.layer), tensor, target.positions)

    with watching(reference, readers, output=output, other=other):
        for batch in inputs:
            reference(placed(batch, reference))
    return targets


def _reconstruct(model, reference, reader, inputs, targets, ridge):
    layer = model.get_submodule(reader.layer)
    norm = model.get_submodule(reader.norm) if reader.norm else None
    rows = kept_units(layer, reference.get_submodule(reader.layer)).to(layer.weight.device)
    scale, shift = _affine(norm) if norm is not None else (torch.ones(()), torch.zeros(()))
    equations = NormalEquations()
    for batch, target in zip(inputs, targets, strict=True):
        seen = {}
        def read(r, tensor):
            seen["in"] = tensor
        def output(r, result):
            seen["u"] = patches(layer, seen["in"], result.shape, target.positions)
            if not reader.summed:
                raise _Captured
        def other(r, tensor):
            seen["other"] = output_samples(layer, tensor, target.positions)
            raise _Captured
        try:
            with watching(model, [reader], inputs=read, output=output, other=other):
                model(batch)
        except _Captured:
            pass
        wanted = target.output.to(layer.weight.device)[:, rows].double()
        if reader.summed:
            wanted = wanted - seen["other"]
        equations.add(seen["u"], (wanted - shift) / scale)
    bias = layer.bias
    centered = norm is not None or bias is not None
    start = layer.weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))
    weight, constant = equations.solve(start, ridge, centered=centered)
    layer.weight.copy_(weight.view_as(layer.weight))
    if bias is not None:
        bias.copy_(constant)
    elif norm is not None:
        norm.running_mean.copy_(-constant)


def _affine(norm):
    """Return scale and shift of a BatchNorm around its mean: y = scale (z - mean) + shift"""
    weight = getattr(norm, "scale", norm.weight)
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = 1 / deviation if weight is None else weight.double() / deviation
    beta = 0 if norm.bias is None else norm.bias.double()
    return scale, beta
