"""Receding neuron importances: bounded BatchNorm scales, the weak ones pushed to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.limits import Number
from isometry.networks.bounded import BOUNDED, convert
from isometry.pruners.sparsifying import Sparsifying, scales
from isometry.training.recipe import Regularizer

__all__ = ["Receding", "RecedingBN", "receding_penalty"]


def receding_penalty(gamma: Tensor, shift: float) -> Tensor:
    """Return the sum of p (1 - log p) with p = sigmoid(gamma + shift), a differentiable scalar.

    Written as p (1 + softplus(-u)), u = gamma + shift, which is finite with a finite gradient at any gamma. The
    gradient softplus(-u) sigmoid(u) sigmoid(-u) peaks at u = -1.18 and vanishes on both sides: strong units are
    not pushed, weak ones are pushed down.

    Args:
        gamma: [C], raw parameters; computed in float32 at least.
        shift: the larger it is, the weaker the units that are pushed; it does not enter the forward pass.

    Source: Suteu & Guo 2022 (arXiv 2204.06404), the regularizer of its reference code.
    """
    u = (gamma if gamma.dtype == torch.float64 else gamma.float()) + shift
    return (torch.sigmoid(u) * (1 + F.softplus(-u))).sum()


@dataclass(frozen=True)
class Receding(Regularizer):
    """strength x `receding_penalty` of the scales of all bounded BatchNorms: a sum, whatever their number."""

    strength: float
    shift: float

    def loss(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        return self.strength * receding_penalty(torch.cat(list(scales(model, BOUNDED))), self.shift)


@dataclass(frozen=True)
class RecedingBN(Sparsifying):
    """Receding Neuron Importances: bounded BatchNorm and a penalty that makes importances bimodal; prune once.

    For networks with bounded BatchNorm: built with `norm="bounded"`, or `isometry.convert`ed from ordinary ones. Units
    are ranked by raw gamma, which orders like the importance sigmoid(gamma) and never ties by underflow. Where the
    floor binds, fewer units are removed than the ratio says; `Pruned.ratio` is the fraction removed.

    Attributes:
        strength: lambda. 1e-3: VGG-16; 1e-4: ResNet-56.
        shift: b. 3: VGG-16; 0: ResNet-56.
        floor: 3 units are kept in every layer.

    Source: Suteu & Guo 2022 (arXiv 2204.06404); strength, shift, floor and training as in its reference code and
    notebook: 160 epochs, batches of 64, lr 0.1, divided by 10 at 50 % and 75 %, Nesterov's momentum.
    """

    strength: float = 1e-3
    shift: float = 3.0
    floor: int = 3
    kinds: ClassVar[tuple[type[nn.Module], ...]] = BOUNDED
    limits: ClassVar[Mapping[str, Number]] = {**Sparsifying.limits, "shift": Number()}

    @classmethod
    def vgg(cls) -> RecedingBN:
        """Return the published setting for VGG-16: strength 1e-3, shift 3."""
        return cls(strength=1e-3, shift=3.0)

    @classmethod
    def resnet(cls) -> RecedingBN:
        """Return the published setting for ResNet-56: strength 1e-4, shift 0."""
        return cls(strength=1e-4, shift=0.0)

    def adapt(self, model: nn.Module) -> nn.Module:
        """Return `model` converted to bounded BatchNorm, unless it has some already."""
        return model if any(isinstance(module, BOUNDED) for module in model.modules()) else convert(model)

    def regularizer(self) -> Regularizer | None:
        """Return the receding penalty."""
        return Receding(self.strength, self.shift) if self.strength else None

    def score(self, scale: Tensor) -> Tensor:
        """Return raw gamma."""
        return scale
