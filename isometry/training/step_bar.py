"""The progress bar of a training, which moves with its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm.auto import tqdm

from isometry.data import Batches, Split
from isometry.training.epoch import Epoch
from isometry.training.recipe import Recipe

__all__ = ["count_steps", "show_steps"]


def count_steps(recipe: Recipe, data: Split | Batches) -> int | None:
    """Return how many steps a recipe takes on data; None where only their end tells."""
    length = data.count_batches(recipe.batch_size) if isinstance(data, Split) else data.length
    lengths = [steps for steps in (length, recipe.epoch_steps) if steps is not None]
    return recipe.epochs * min(lengths) if lengths else None


def show_steps(
    epochs: Iterator[Epoch], model: nn.Module, steps: int | None, *, description: str, progress: bool | None
) -> Iterator[Epoch]:
    """Yield the epochs of a training behind a bar of its steps, which says at once how many there are, and soon how long they take.

    Args:
        epochs: what `train` returned.
        model: the network that it trains; steps of other networks' optimizers are not counted.
        steps: how many steps it takes at most; None where that is not known.
        description: what is trained, or by what.
        progress: False shows no bar, None shows it in terminals and notebooks.
    """
    own = {id(parameter) for parameter in model.parameters()}
    hidden = None if progress is None else not progress
    with tqdm(total=steps, unit="step", desc=description, disable=hidden) as bar:

        def move(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                bar.update()

        hook = None if bar.disable else register_optimizer_step_post_hook(move)
        try:
            for epoch in epochs:
                bar.update(epoch.steps - bar.n)  # of a resumed training, those done before
                shown = {name: getattr(epoch, name) for name in ("loss", "accuracy", "metric")}
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items() if not math.isnan(value)})
                yield epoch
        finally:
            if hook is not None:
                hook.remove()
