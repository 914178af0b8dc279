"""Targets: what layers give in the dense network, at random places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.networks import placed
from isometry.networks.modules import call, hooked
from isometry.repairs.least_squares import draw_positions, output_samples
from isometry.repairs.readers import Reader, Sums

__all__ = ["Target", "dense_targets"]


@dataclass(frozen=True)
class Target:
    """What a layer gives in the dense network.

    Attributes:
        positions: [N, P], the places in its output.
        shape: of its output, but for the samples.
        values: [N P, units], its output there, behind its BatchNorm; the sum that it goes into, if that is matched.
    """

    positions: Tensor
    shape: torch.Size
    values: Tensor


def dense_targets(
    reference: nn.Module, readers: Sequence[Reader], batches: Iterable[Any], count: int, seed: int
) -> dict[str, Target]:
    """Return {layer: what it gives in the dense network at `count` random places per sample}."""
    parts: dict[str, list[Target]] = {reader.layer: [] for reader in readers}
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, output: Tensor, other: Tensor) -> None:
        part = parts[name][-1]
        drawn = output_samples(reference.get_submodule(name), other, part.positions)
        parts[name][-1] = replace(part, values=part.values + drawn)

    sums = Sums(add)

    def watch(reader: Reader) -> Callable[..., None]:
        layer = reference.get_submodule(reader.layer)

        def hook(_: nn.Module, args: object, output: Tensor) -> None:
            drawn = draw_positions(layer, output, count, generator)
            parts[reader.layer].append(Target(drawn, output.shape[1:], output_samples(layer, output, drawn)))
            if reader.summed:
                sums.expect(reader.layer, output)

        return hook

    with hooked(*(reference.get_submodule(r.last).register_forward_hook(watch(r)) for r in readers)), sums:
        for batch in batches:
            call(reference, placed(batch, reference))
    return {
        name: Target(
            torch.cat([part.positions for part in batch]), batch[0].shape, torch.cat([part.values for part in batch])
        )
        for name, batch in parts.items()
    }
