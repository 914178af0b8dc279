"""Pruning: what `prune` does, in steps inside a training loop of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import join_names, signed
from isometry.limits import Number, check_number
from isometry.pruners.loop_checks import ParameterWatch, check_optimizers, check_stepwise
from isometry.pruners.preparation import prepare
from isometry.pruners.progress import Progress
from isometry.pruners.pruner import DivergedError, Pruner
from isometry.pruners.result import Pruned
from isometry.surgery import Plan, to_plan

__all__ = ["Pruning"]


class Pruning:
    """Prune inside your own training loop: the same selection, penalties and removal as `prune`, while you train.

        pruning = isometry.Pruning(model, isometry.TPP(), {"layer*.conv1": 0.7}, inputs=x[:2])
        optimizer = torch.optim.AdamW(pruning.model.parameters(), lr=1e-3)
        for x, y in loader:
            loss = criterion(pruning.model(x), y) + pruning.loss()
            optimizer.zero_grad()
            loss.backward()
            pruning.regularize()        # after a GradScaler's unscale_, before clipping
            optimizer.step()
            if pruning.step():          # True: the units have receded
                break
        pruned = pruning.finish()

    What you train is `pruning.model`, a copy: as everywhere, the argument is left alone. Optimizers, torch.compile,
    DistributedDataParallel and averaged models are built around this copy. It keeps its shape, also in `finish`, so
    that `isometry.surgery.transfer_optimizer_state(optimizer, pruning.model, pruned)` can carry an optimizer over.
    The rates, the schedule and the data are yours; those of the pruner are only for `prune`. Scales of bounded
    BatchNorms are published with ten times the rate: `isometry.training.parameter_groups`.

    Units are selected at once by pruners that do not train before selection (L1, Random, GReg, TPP), else by the
    `step` that ends that training (Slimming, Polarization, RecedingBN, GReg2), which for GReg2 is not the last one.

    With gradient accumulation, add `loss()` to the loss of every part, and call `regularize` and `step` once per step
    of the optimizer. With several processes, create the `Pruning` in each of them from the same weights, before
    DistributedDataParallel is; or pass the `state_dict` of one of them to all others.

    Args:
        model, ratio, flops, inputs, layers, skip, round_to, seed: as in `prune`.
        pruner: for instance `isometry.TPP()`; not one that trains by itself.
        steps_per_epoch: how many steps of yours are an epoch, for pruners that count in epochs (Slimming, Polarization,
            RecedingBN): `len(loader)`.

    Raises:
        ValueError, TypeError: as in `prune`; a pruner that trains by itself; epochs without `steps_per_epoch`.
    """

    @signed("Pruning")
    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        ratio: float | Mapping[str, float] | None = None,
        *,
        flops: float | None = None,
        inputs: Any = None,
        layers: str | Sequence[str] | None = None,
        skip: str | Sequence[str] | None = None,
        round_to: int = 1,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        check_number(
            "steps_per_epoch", steps_per_epoch, Number(1, whole=True, optional=True), "steps_per_epoch=len(loader)"
        )
        self._preparation = prepare(
            model,
            pruner,
            ratio,
            flops=flops,
            inputs=inputs,
            layers=layers,
            skip=skip,
            round_to=round_to,
            seed=seed,
            own_loop=True,
            steps_per_epoch=steps_per_epoch,
        )
        check_stepwise(pruner)
        if uncuttable := list(self._preparation.uncuttable.values()):
            message = f"Pruning() leaves alone what cannot be cut exactly: {join_names(uncuttable)}"
            warnings.warn(message, stacklevel=3)  # above the frame that signs the errors: the caller's line
        self._progress = Progress(self._preparation)
        self._watch = ParameterWatch(self.model)
        self._regularized = self._penalized = self._finished = False

    @property
    def model(self) -> nn.Module:
        """The network to train: a copy of the argument, of unchanged shape."""
        return self._preparation.context.model

    @property
    def plan(self) -> Plan | None:
        """The units that are selected, None as long as they are not."""
        selection = self._progress.selection
        return None if selection is None else to_plan(selection)

    @property
    def stage(self) -> str | None:
        """The present training: "before_selection", "after_selection" or, once the units have receded, None."""
        stage = self._progress.stage
        return None if stage is None or self._progress.receded else stage.name

    @property
    def steps_done(self) -> int:
        """How many steps have been taken."""
        return self._progress.done

    @property
    def steps(self) -> int:
        """How many steps the units take to recede, at most: a growing penalty may be finished earlier."""
        return self._progress.longest

    @property
    def progress(self) -> float:
        """The fraction of `steps` that has been taken, in [0, 1]; 1 once the units have receded."""
        return 1.0 if self._progress.receded else self.steps_done / self.steps

    def loss(self) -> Tensor:
        """Return what belongs into the loss: a differentiable scalar, 0 for pruners that act on gradients only."""
        self._check_open("loss")
        self._penalized = True
        stage = self._progress.stage
        total = None if stage is None else stage.loss(self.model, self._progress.stage_steps)
        return next(self.model.parameters()).new_zeros(()) if total is None else total

    def regularize(self) -> None:
        """Add to the gradients what acts on them: after backward (and unscaling), before clipping and the optimizer.

        Raises:
            RuntimeError: there are no gradients, or it was called before in this step.
        """
        self._check_open("regularize")
        self._watch.check_structure()
        stage = self._progress.stage
        if stage is None or stage.penalty is None:
            return
        if self._regularized:
            raise RuntimeError(
                "Pruning.regularize() was called twice in one step, which would add the penalty twice. Call it once per "
                "step of the optimizer, and pruning.step() after optimizer.step()."
            )
        if all(p.grad is None for p in self.model.parameters()):
            raise RuntimeError(
                "Pruning.regularize() found no gradients on pruning.model. Train that network, which is a copy of the one "
                "passed, and call it after backward: criterion(pruning.model(x), y).backward(); pruning.regularize()."
            )
        stage.gradients(self._progress.stage_steps)
        self._regularized = True

    @signed("Pruning.step")
    def step(self) -> bool:
        """Count a step, after that of the optimizer; return whether the units have receded.

        Units whose turn has come are zeroed, and the step that ends a training before selection selects. Further steps
        are allowed: the selection stands and the penalty goes on.

        Raises:
            RuntimeError: `regularize` was left out where the pruner acts on gradients, or `loss` where it acts on the loss;
                the parameters of the model have not changed in 20 steps; the structure of the model was changed.
        """
        self._check_open("step")
        self._watch.check_structure()
        stage = self._progress.stage
        if stage is None:
            return True
        if stage.penalty is not None and not self._regularized:
            raise RuntimeError(
                f"Pruning.step() was called without regularize(), by which {self._pruner_name} acts on the gradients. Call "
                "both: loss.backward(); pruning.regularize(); optimizer.step(); pruning.step()."
            )
        if stage.recipe.regularizer is not None and not self._penalized:
            raise RuntimeError(
                f"Pruning.step() was called without loss(), by which {self._pruner_name} acts on the loss. Add it: "
                "loss = criterion(pruning.model(x), y) + pruning.loss(); loss.backward()."
            )
        self._watch.check_updates()
        with self._watch.own_changes():
            stage.project(self.model, self._progress.stage_steps)
        self._regularized = self._penalized = False
        self._progress.advance(stage)
        return self._progress.receded

    @signed("Pruning.finish")
    def finish(self, *, early: bool = False) -> Pruned:
        """Remove the units and return what `prune` returns; the pruned network is compared with the masked one.

        Its history is empty: only you know what an epoch is, see `log`. `model` keeps its shape.

        Args:
            early: remove the units although they have not receded; selects them now where none are selected yet.

        Raises:
            RuntimeError: the units have not receded, or the structure of the model was changed.
            DivergedError: the weights are not finite.
            InexactError: the pruned and the masked network differ.
        """
        self._check_open("finish")
        self._watch.check_structure()
        if not self._progress.receded and not early:
            raise RuntimeError(
                f"Pruning.finish() was called after {self.steps_done} steps; the units recede within {self.steps}, of "
                f"which {self.steps - self.steps_done} are missing. Train until pruning.step() returns True, or remove "
                "the units as they are: pruning.finish(early=True)."
            )
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise DivergedError(
                f"The training diverged: after {self.steps_done} steps the weights of pruning.model are not finite. Lower "
                f"your learning rate or the strength of {self._pruner_name}, before you start again."
            )
        preparation = self._preparation
        selection = self._progress.selection or preparation.select()
        result = preparation.describe(selection, preparation.remove_from_copy(selection))
        self._finished = True
        return result

    @signed("Pruning.check_optimizer")
    def check_optimizer(self, *optimizers: torch.optim.Optimizer) -> None:
        """Raise a ValueError unless the optimizers hold every trainable parameter of `model` among them."""
        self._check_open("check_optimizer")
        check_optimizers(self.model, optimizers)

    def log(self) -> dict[str, Any]:
        """Return where the pruning is, for your log: the stage and its step, and what the pruner says of itself."""
        stage = self._progress.stage
        return {"stage": self.stage, "step": self.steps_done, **({} if stage is None else stage.log())}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the model's and the optimizer's state: numbers, text and tensors only.

        These are the step, the selection and the state of the penalty.
        """
        self._check_open("state_dict")
        if self._regularized:
            raise RuntimeError(
                "Pruning.state_dict() was called between regularize() and step(). Write checkpoints after a whole step: "
                "optimizer.step(); pruning.step(); torch.save(pruning.state_dict(), 'pruning.pt')."
            )
        return self._progress.state()

    @signed("Pruning.load_state_dict")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another `Pruning` of the same arguments was; load the model's weights and the optimizer besides.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: the state is of another pruning; the message says in what it differs.
            TypeError: it is no such state at all.
        """
        self._check_open("load_state_dict")
        self._progress.restore(state)
        self._regularized = False
        self._watch.restart()

    def __str__(self) -> str:
        count = f"{self.steps_done:,} of at most {self.steps:,} steps done" if self.steps else "nothing to train"
        units = "no units selected yet" if self.plan is None else f"{self.plan.ratio:.1%} of the units selected"
        state = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in self.log().items()
            if key != "step"
        )
        if self._progress.receded:
            state = "finished" if self._finished else "the units have receded: call finish()"
        return f"{self._pruner_name}: {count}; {units}; {state}"

    __repr__ = __str__

    def _check_open(self, verb: str) -> None:
        if self._finished:
            raise RuntimeError(
                f"Pruning.{verb}() was called after finish(). The smaller network is in what finish() returned; prune it "
                "again with pruning = isometry.Pruning(pruned.model, ...)."
            )

    @property
    def _pruner_name(self) -> str:
        return type(self._preparation.pruner).__name__
