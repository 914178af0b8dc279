"""Where a pruning inside the user's own loop stands: its stage, its steps, its selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.pruners.preparation import Preparation
from isometry.pruners.stage import Stage
from isometry.surgery import Selection

__all__ = ["Progress"]

_FORMAT = "isometry-pruning-1"


class Progress:
    """The stages of a pruner, one after the other: before the selection, and after it.

    Attributes:
        selection: the units to remove; None as long as they are not selected.
        stage: the present one, which stays once the units have receded; None for a pruner that does not train.
        earlier_steps, stage_steps: how many steps were taken in the stages before and in this one.
        later_steps: how many the stage to come takes at most.
        receded: whether all stages are finished.
    """

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation
        pruner, context = preparation.pruner, preparation.context
        self.selection: Selection | None = None
        self.stage = pruner.stage_before_selection(context)
        self.earlier_steps = self.stage_steps = 0
        # By a selection of the present weights: what the stage after the selection refuses, and how long it takes.
        selection = preparation.select()
        later = pruner.stage_after_selection(context, selection)
        self.later_steps = later.length if later else 0
        if self.stage is None:
            self.selection, self.stage, self.later_steps = selection, later, 0
        self.receded = self.stage is None
        self.identity: dict[str, Any] = {
            "pruner": repr(pruner),
            "ratios": preparation.ratios if preparation.flops is None else {"flops": preparation.flops},
            "round_to": preparation.round_to,
            "units": {group.root: group.units for group in context.groups},
            "steps": self.longest,
        }

    @property
    def done(self) -> int:
        """How many steps have been taken."""
        return self.earlier_steps + self.stage_steps

    @property
    def longest(self) -> int:
        """How many steps all stages take together, at most."""
        return self.earlier_steps + (self.stage.length if self.stage else 0) + self.later_steps

    def advance(self, stage: Stage) -> None:
        """Count a step of the present stage, and begin the next one where this was its last."""
        self.stage_steps += 1
        if self.receded or not stage.finished(self.stage_steps):
            return
        if self.selection is not None:
            self.receded = True
            return
        preparation = self.preparation
        self.selection, self.later_steps = preparation.select(), 0
        later = preparation.pruner.stage_after_selection(preparation.context, self.selection)
        if later is None:
            self.receded = True
        else:
            self.stage, self.earlier_steps, self.stage_steps = later, self.done, 0

    def state(self) -> dict[str, Any]:
        """Return everything that changes from step to step, and what this pruning is: numbers, text and tensors."""
        penalty, selection = self.stage.penalty if self.stage else None, self.selection
        return {
            "format": _FORMAT,
            "pruning": self.identity,
            "steps": [self.earlier_steps, self.stage_steps, self.later_steps],
            "receded": self.receded,
            "selection": None if selection is None else {group.root: list(units) for group, units in selection},
            "penalty": {} if penalty is None else penalty.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set everything that changes to what `state` returned, after a look at whether it is of such a pruning."""
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise InvalidTypeError(
                f"got {type(state).__name__} that state_dict() of a Pruning did not return; the weights are loaded by "
                "pruning.model.load_state_dict(...). E.g. pruning.load_state_dict(torch.load('pruning.pt'))."
            )
        theirs, ours = state["pruning"], self.identity
        if different := [key for key in ours if theirs.get(key) != ours[key]]:
            first = different[0]
            raise InvalidValueError(
                f"got the state of another pruning: it differs in {', '.join(different)} (there {theirs.get(first)}, here "
                f"{ours[first]}). Create the pruning with the arguments of that one, e.g. isometry.Pruning(model, "
                f"isometry.{theirs.get('pruner')}, ratio)."
            )
        preparation, selected = self.preparation, state["selection"]
        context, pruner = preparation.context, preparation.pruner
        selection = None if selected is None else [(group, tuple(selected[group.root])) for group in context.groups]
        later = None if selection is None else pruner.stage_after_selection(context, selection)
        stage = later or pruner.stage_before_selection(context)
        if stage is not None and stage.penalty is not None:
            stage.penalty.restore(dict(state["penalty"]))
        self.selection, self.stage, self.receded = selection, stage, state["receded"]
        self.earlier_steps, self.stage_steps, self.later_steps = state["steps"]
