"""Network slimming, and uniform channel scaling as its special case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isometry.pruners.sparsifying import Sparsifying, scales
from isometry.training.recipe import Regularizer

__all__ = ["ScaleL1", "Slimming"]


@dataclass(frozen=True)
class ScaleL1(Regularizer):
    """strength x the sum of |gamma| over the channels of all BatchNorms."""

    strength: float

    def loss(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar; its gradient is strength x sign(gamma)."""
        return self.strength * torch.cat([scale.abs().float() for scale in scales(model, Slimming.kinds)]).sum()


@dataclass(frozen=True)
class Slimming(Sparsifying):
    """Train with an L1 penalty on BatchNorm scales, then remove the units of the smallest |scale| of all layers.

    With `strength=0` and `scope="layer"` it is UCS, the uniform control: ordinary training, then the same fraction of
    every layer.

    Source: Liu et al., ICCV 2017, "Learning efficient convolutional networks through network slimming": strength 1e-4
    for VGG-19, 1e-5 for residual nets. Nesterov's momentum and the floor of 3 units as in Suteu & Guo 2022.
    """

    floor: int = 3

    def regularizer(self) -> Regularizer | None:
        """Return the L1 penalty."""
        return ScaleL1(self.strength) if self.strength else None
