"""How to train, as one value; schedules of the learning rate, and the interfaces of additional loss terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from isometry.errors import InvalidTypeError, signed
from isometry.limits import Number, check_number

__all__ = ["SETTINGS", "Cosine", "Penalty", "Recipe", "Regularizer", "Schedule", "Steps"]

SETTINGS = {
    "lr": Number(0, above=True),
    "epochs": Number(1, whole=True),
    "batch_size": Number(1, whole=True),
    "momentum": Number(0),
    "weight_decay": Number(0),
    "epoch_steps": Number(1, whole=True, optional=True),
}
"""{name: which numbers a training takes}."""


@dataclass(frozen=True)
class Steps:
    """Step schedule: the rate is multiplied by `factor` at each milestone.

    The defaults are the recipe for MNIST of Lee et al., ICLR 2020, and Wang & Fu, ICLR 2023: 90 epochs, x0.1 after 30 and
    after 60.

    Attributes:
        milestones: fractions of the epochs, in [0, 1], rounded to whole ones, at least 1: of two epochs, the second comes after both of
            the default.
        factor: multiplier at each of them.
    """

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 <= fraction <= 1 for fraction in self.milestones):
            raise ValueError(
                f"Steps() got milestones={self.milestones}; it takes fractions of the epochs in [0, 1], e.g. for "
                "the 30th and the 60th of 90 epochs Steps((1 / 3, 2 / 3))."
            )

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the initial rate in `epoch` (from 1) of `epochs`."""
        return self.factor ** sum(epoch > max(1, round(fraction * epochs)) for fraction in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Cosine schedule: from the initial rate down to `end` times that rate over the epochs.

    Attributes:
        end: multiplier that the rate approaches, in [0, 1].

    Source: Loshchilov & Hutter, ICLR 2017, Eq. 5, without restarts.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.end <= 1:
            raise ValueError(
                f"Cosine() got end={self.end}; it takes a fraction of the initial rate in [0, 1], e.g. Cosine(0.01)."
            )

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the initial rate in `epoch` (from 1) of `epochs`."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


Schedule = Steps | Cosine
PUBLISHED = Steps()
"""The default schedule."""


class Regularizer:
    """A term of the loss that depends on the network alone.

    A subclass is a frozen dataclass of its hyperparameters: a checkpoint recognizes it by its repr.
    """

    def loss(self, model: nn.Module) -> Tensor:
        """Return the term, a scalar with gradients with respect to the parameters."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss(model)")

    def project(self, model: nn.Module) -> None:
        """Change the parameters in place after every step of the optimizer; the default changes nothing."""


@dataclass(frozen=True)
class Recipe:
    """How to train: the arguments of `isometry.train` of the same names and defaults, as one value.

    A loss or metric of your own should be a function of a module: then the recipe can be sent to another process, and a
    checkpoint or a trial knows it by its name and code.
    """

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
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        with signed("Recipe"):
            for name, accepted in SETTINGS.items():
                check_number(name, getattr(self, name), accepted, "Recipe(lr=0.01, epochs=10)")
            check_terms(self.schedule, self.regularizer)

    def arguments(self) -> dict[str, Any]:
        """Return the recipe as keyword arguments of `train`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def check_terms(schedule: Any, regularizer: Any) -> None:
    """Refuse what is no schedule and no regularizer."""
    if schedule is not None and not callable(schedule):
        raise InvalidTypeError(
            f"got schedule={schedule!r}; it takes Steps, Cosine or None, e.g. schedule=isometry.Cosine()."
        )
    if regularizer is not None and not callable(getattr(regularizer, "loss", None)):
        raise InvalidTypeError(
            f"got regularizer={regularizer!r}; it takes a Regularizer, e.g. regularizer=isometry.KernOrth()."
        )


class Penalty(Protocol):
    """A term that a pruner adds to plain training, with a state of its own. Steps count from 0."""

    def loss(self, step: int) -> Tensor | None:
        """Return a scalar to add to the loss, or None for nothing; called before the backward pass of every step."""

    def gradients(self, step: int) -> None:
        """Add to the gradients of the parameters in place, after the backward pass."""

    def project(self, step: int) -> None:
        """Change the parameters in place after the optimizer's step."""

    def finished(self, step: int) -> bool:
        """Whether training should end before this step."""

    def identity(self) -> str:
        """Return the settings as text; a checkpoint with a different text belongs to another training."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that changes from step to step, as named tensors."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set everything that changes to what `state` returned."""
