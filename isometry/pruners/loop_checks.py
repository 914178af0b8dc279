"""What can go wrong between a pruning and a training loop of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from isometry.errors import InvalidValueError
from isometry.pruners.pruner import Pruner

__all__ = ["ParameterWatch", "check_optimizers", "check_stepwise"]

_WATCHED_STEPS = 20  # a GradScaler that starts at 2^16 may skip 16 steps before the first update


class ParameterWatch:
    """Looks whether the parameters of a network are those of the start, and whether an optimizer changes them.

    Args:
        model: the network that is pruned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._start = {name: (p, tuple(p.shape)) for name, p in model.named_parameters()}
        self.restart()

    def restart(self) -> None:
        """Watch for updates from the next step on, after weights were loaded for instance."""
        self._steps = 0
        self._sums: list[float] | None = None  # none once they have changed

    def check_structure(self) -> None:
        """Raise a RuntimeError unless the parameters are the same objects, of the same shapes, as at the start."""
        now = {name: (p, tuple(p.shape)) for name, p in self.model.named_parameters()}
        for name in self._start.keys() | now.keys():
            old, new = self._start.get(name), now.get(name)
            if old is not None and new is not None and old[0] is new[0] and old[1] == new[1]:
                continue
            what = "replaced" if old and new and old[1] == new[1] else "changed in shape" if old and new else None
            what = what or ("removed" if old else "added")
            raise RuntimeError(
                f"Pruning found that the structure of pruning.model was changed: {name} was {what} since Pruning() traced "
                "it. Change the network before, e.g. isometry.Pruning(isometry.fold(model), ...), and load weights "
                "without assign=True."
            )

    def check_updates(self) -> None:
        """Count a step; raise a RuntimeError where the parameters are after 20 steps what they were after the first."""
        self._steps += 1
        if self._steps == 1:
            self._sums = self._total()
        if self._steps == 1 + _WATCHED_STEPS and self._sums is not None and self._total() == self._sums:
            raise RuntimeError(
                f"Pruning.step() found that no parameter of pruning.model has changed in {_WATCHED_STEPS} steps: the "
                "optimizer was built on another network. Build it on the copy that is pruned: "
                "torch.optim.SGD(pruning.model.parameters(), lr=0.01)."
            )

    @contextlib.contextmanager
    def own_changes(self) -> Iterator[None]:
        """Let the pruner change parameters, by zeroing units for instance, which is no update by an optimizer."""
        if self._sums is None or self._steps > _WATCHED_STEPS:
            yield
            return
        unchanged = self._total() == self._sums
        yield
        self._sums = self._total() if unchanged else None

    def _total(self) -> list[float]:
        return [float(p.detach().double().sum()) for p in self.model.parameters() if p.requires_grad]


def check_optimizers(model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
    """Raise an error unless the optimizers hold every trainable parameter of the model among them."""
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    held = trainable & {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    if held != trainable:
        raise InvalidValueError(
            f"got an optimizer that holds {len(held)} of the {len(trainable)} trainable parameters of pruning.model, "
            "which is a copy of the network passed. Build it on the copy: "
            "torch.optim.SGD(pruning.model.parameters(), lr=0.01)."
        )


def check_stepwise(pruner: Pruner) -> None:
    """Raise an error for a pruner that trains by itself, and can therefore not be followed step by step."""
    for place in ("before", "after"):
        method = f"train_{place}_selection"
        if getattr(type(pruner), method) is not getattr(Pruner, method):
            raise InvalidValueError(
                f"got {type(pruner).__name__}, which trains by itself in {method}(). It works in prune(model, pruner, "
                f"ratio, data=data); for a loop of your own, override stage_{place}_selection() in its place."
            )
