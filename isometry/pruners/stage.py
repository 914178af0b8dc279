"""One training of a pruner: what it adds to any training, and how `prune` trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isometry.training import Penalty, Recipe

__all__ = ["Stage"]


@dataclass(frozen=True)
class Stage:
    """A pruner's training before or after the selection.

    `prune` trains with `isometry.train`, to which it passes the recipe and the penalty; `Pruning` lets the user train
    and calls the methods, in this order in every step: `loss`, `gradients`, `project`, `finished`.

    Attributes:
        name: "before_selection" or "after_selection".
        recipe: how `prune` trains; its epochs follow from `steps`. Its regularizer belongs to every training.
        steps: how many steps the stage takes; `prune` rounds them up to whole epochs, in which a penalty has to finish.
        penalty: a term with a state of its own, or None.
        log: returns what the history is to hold after each epoch.
        end: returns the most steps that are possible as far as it is known by now; None where these are `steps`.
    """

    name: str
    recipe: Recipe
    steps: int
    penalty: Penalty | None = None
    log: Callable[[], dict[str, Any]] = dict
    end: Callable[[], int] | None = None

    @property
    def length(self) -> int:
        """How many steps the stage takes, at most: as far as it is known by now."""
        return self.steps if self.end is None else self.end()

    def loss(self, model: nn.Module, step: int) -> Tensor | None:
        """Return the terms of the loss at `step` (from 0), a differentiable scalar, or None where there are none."""
        regularizer = self.recipe.regularizer
        total = None if regularizer is None else regularizer.loss(model)
        extra = None if self.penalty is None else self.penalty.loss(step)
        return extra if total is None else total if extra is None else total + extra

    def gradients(self, step: int) -> None:
        """Add to the gradients in place, after the backward pass."""
        if self.penalty is not None:
            self.penalty.gradients(step)

    def project(self, model: nn.Module, step: int) -> None:
        """Change the parameters in place, after the step of the optimizer."""
        if self.penalty is not None:
            self.penalty.project(step)
        if self.recipe.regularizer is not None:
            self.recipe.regularizer.project(model)

    def finished(self, step: int) -> bool:
        """Whether the stage ends before this step."""
        return step >= self.length or (self.penalty is not None and self.penalty.finished(step))
