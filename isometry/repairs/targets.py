"""Targets: what layers give in the dense network, at random places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isometry.data.nests import count_samples
from isometry.networks.modules import hooked
from isometry.repairs.least_squares import draw_positions, output_samples
from isometry.repairs.readers import Reader, Sums
from isometry.repairs.resumption import Passes, Stop

__all__ = ["Target", "collect_targets", "draw_targets"]


@dataclass(frozen=True)
class Target:
    """What a layer gives in the dense network.

    Attributes:
        shape: of its output, but for the samples.
        positions: [B, P] for every batch, the places in its output.
        values: [B P, units] for every batch, its output there, behind its BatchNorm; the sum that it goes into, if that
            is matched.
    """

    shape: torch.Size
    positions: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def draw_targets(passes: Passes, readers: Sequence[Reader], count: int, seed: int) -> dict[str, Target]:
    """Return {layer: a target at `count` random places per sample, without values yet}."""
    outputs, order = passes.course.outputs, list(passes.course.outputs)
    targets = {reader.layer: Target(outputs[reader.last].shape[1:]) for reader in readers}
    generator = torch.Generator().manual_seed(seed)
    for batch in passes.batches:
        for reader in sorted(readers, key=lambda reader: order.index(reader.last)):
            target, layer = targets[reader.layer], passes.model.get_submodule(reader.layer)
            output = torch.empty(count_samples(batch), *target.shape, device="meta")
            target.positions.append(draw_positions(layer, output, count, generator))
    return targets


def collect_targets(
    passes: Passes, readers: Sequence[Reader], targets: Mapping[str, Target], following: str | None
) -> None:
    """Run the dense network over all batches, up to the next cut if there is one, and fill in the values of `targets`."""

    def add(name: str, output: Tensor, other: Tensor) -> None:
        target, layer = targets[name], passes.model.get_submodule(name)
        positions = target.positions[len(target.values) - 1]
        target.values[-1] = target.values[-1] + output_samples(layer, other, positions)
        seen(name)

    sums = Sums(add)
    missing: set[str] = set()

    def seen(name: str) -> None:
        missing.discard(name)
        if not missing and following is None:
            missing.update(reader.layer for reader in readers)
            raise Stop

    def watch(reader: Reader) -> Callable[..., None]:
        target, layer = targets[reader.layer], passes.model.get_submodule(reader.layer)

        def hook(_: nn.Module, args: object, output: Tensor) -> None:
            positions = target.positions[len(target.values)]
            target.values.append(output_samples(layer, output, positions))
            if reader.summed:
                sums.expect(reader.layer, output)
            else:
                seen(reader.layer)

        return hook

    missing.update(reader.layer for reader in readers)
    with hooked(*(passes.model.get_submodule(r.last).register_forward_hook(watch(r)) for r in readers)), sums:
        if following is not None:
            passes.advance(following)
        else:
            for _ in passes.run():
                pass
