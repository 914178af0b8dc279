"""The data of a training, brought to the network."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data import Batches, Pair, Split
from isometry.data.nests import Outline, count_samples, failures_explained, map_tensors, outline
from isometry.networks.modules import call
from isometry.training.random_state import RandomState
from isometry.training.recipe import Recipe

__all__ = ["Source"]


class Source:
    """Data, brought to a network batch by batch.

    Args:
        data: a split, which is moved at once, or batches, which are moved one by one.
        device: where the network is.
        dtype: of its parameters, and so of floating point inputs.
    """

    def __init__(self, data: Split | Batches, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._dtype = device, dtype
        self.data = Split(*self._moved(Pair(*data))) if isinstance(data, Split) else data
        self._first: Outline | None = None

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators on which the order of the batches depends, besides those of the training."""
        return self.data.generators() if isinstance(self.data, Batches) else {}

    def batches(self, recipe: Recipe, random: RandomState) -> Iterator[Pair]:
        """Yield the batches of an epoch, on the network's device."""
        batches: Iterator[Pair]
        if isinstance(self.data, Split):
            order = random.permutation(count_samples(self.data.inputs)).to(self.device)
            batches = self.data.batches(recipe.batch_size, order)
        else:
            batches = map(self._moved, self.data)
        return itertools.islice(batches, recipe.epoch_steps)

    def outputs(self, model: nn.Module, inputs: Any) -> Any:
        """Return what the network gives; where it fails at other shapes than those of the first batch, the error says so."""
        self._first = self._first or outline(inputs)
        with failures_explained(inputs, self._first):
            return call(model, inputs)

    def warn_of_lost_order(self, epochs: int) -> None:
        """Warn where a training goes on, after `epochs`, whose batches may come in another order than without a break."""
        if isinstance(self.data, Batches) and not self.data.is_restorable:
            warnings.warn(
                f"train() goes on after epoch {epochs}, but cannot restore the order in which {type(self.data.source).__name__} "
                "gives its batches, so that the rest may differ from an uninterrupted training. What is restored is a "
                "DataLoader of a map-style data set with torch's samplers and without persistent workers.",
                stacklevel=2,
            )

    def _moved(self, pair: Pair) -> Pair:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, self._dtype if tensor.is_floating_point() else None)

        return Pair(map_tensors(pair.inputs, move), map_tensors(pair.targets, lambda part: part.to(self.device)))
