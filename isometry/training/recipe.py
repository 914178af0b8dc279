"""Recipe: how to train, in one value; the schedules and additional losses that it names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Cosine", "Penalty", "Recipe", "Regularizer", "Schedule", "Steps"]


@dataclass(frozen=True)
class Steps:
    """Step schedule: the rate is multiplied by `factor` at each milestone, a share of the epochs in [0, 1].

    The default is the papers' MNIST recipe: 90 epochs, x0.1 after 30 and after 60.
    """

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.milestones):
            raise ValueError(
                f"Steps() got milestones={self.milestones}; they are shares of the epochs in [0, 1], e.g. of 90 epochs the "
                "30th and the 60th: Steps((1 / 3, 2 / 3))."
            )

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the initial rate in `epoch` (from 1) of `epochs`."""
        return self.factor ** sum(epoch > max(1, round(share * epochs)) for share in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Cosine schedule: from the initial rate down to `end` times it over the epochs."""

    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.end <= 1:
            raise ValueError(
                f"Cosine() got end={self.end}; it is a share of the initial rate in [0, 1], e.g. Cosine(0.01)."
            )

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the initial rate in `epoch` (from 1) of `epochs`."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


Schedule = Steps | Cosine
PUBLISHED = Steps()


class Regularizer:
    """A term of the loss that depends on the network alone. Write one as a frozen dataclass of its hyperparameters."""

    def loss(self, model: nn.Module) -> Tensor:
        """Return a scalar to add to the loss."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss(model)")

    def project(self, model: nn.Module) -> None:
        """Change parameters in place after the optimizer's step; nothing by default."""


@dataclass(frozen=True)
class Recipe:
    """How to train: the arguments of `isometry.train` of the same names, in one value that a file can hold."""

    lr: float
    epochs: int
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule | None = PUBLISHED
    nesterov: bool = False
    epoch_steps: int | None = None
    autocast: bool = False
    regularizer: Regularizer | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the recipe as keyword arguments of `train`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Penalty(Protocol):
    """What a pruner adds to plain training, with a state of its own. Steps count from 0."""

    def loss(self, step: int) -> Tensor | None:
        """Return a scalar to add to the loss, or None."""

    def gradients(self, step: int) -> None:
        """Add to the parameters' gradients in place, after the backward pass."""

    def project(self, step: int) -> None:
        """Change the parameters in place after the optimizer's step."""

    def finished(self, step: int) -> bool:
        """Whether training should end before this step."""

    def identity(self) -> str:
        """Return what it is, for a checkpoint to be recognised by."""

    def state(self) -> dict[str, Tensor]:
        """Return what the penalty must remember over an interruption."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
