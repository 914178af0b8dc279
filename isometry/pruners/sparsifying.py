"""Pruning by BatchNorm scales that a regularizer has made sparse: the base of Slimming, Polarization and RecedingBN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from isometry.errors import join_names
from isometry.limits import Number
from isometry.networks.bounded import BOUNDED
from isometry.pruners.pruner import Pruner, PruningContext, average_scores
from isometry.pruners.stage import Stage
from isometry.surgery import UnitGroup
from isometry.training.recipe import SETTINGS, Recipe, Regularizer, Schedule, Steps

__all__ = ["Sparsifying", "scales"]

_SCHEDULE = Steps((0.5, 0.75))
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Sparsifying(Pruner):
    """Train with a regularizer on the BatchNorm scales, then remove the units whose scales are smallest.

    Attributes:
        strength: weight of the regularizer, which is a sum over channels; 0 trains without.
        epochs: how long to train before removal; 0 takes the network as it is.
        lr, batch_size, momentum, nesterov, weight_decay, schedule: of that training.
        epoch_steps: end every epoch after this number of steps.
        scope, floor: see `Pruner`.
    """

    strength: float = 1e-4
    epochs: int = 160
    lr: float = 0.1
    batch_size: int = 64
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Schedule | None = _SCHEDULE
    epoch_steps: int | None = None
    scope: str = field(default="global", kw_only=True)
    trains: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, Number]] = {
        **Pruner.limits,
        **SETTINGS,
        "epochs": Number(0, whole=True),
        "strength": Number(0),
    }
    kinds: ClassVar[tuple[type[nn.Module], ...]] = _NORMS

    def regularizer(self) -> Regularizer | None:
        """Return the term that is added to the loss, or None."""
        raise NotImplementedError(f"{type(self).__name__} defines no regularizer()")

    def recipe(self) -> Recipe:
        """Return how the network is trained before units are removed."""
        names = Recipe.__dataclass_fields__.keys() & self.__dataclass_fields__.keys()
        return Recipe(**{name: getattr(self, name) for name in names}, regularizer=self.regularizer())

    def score(self, scale: Tensor) -> Tensor:
        """Return the importance of channels from the parameters [C] of their BatchNorm."""
        return scale.abs()

    @property
    def needs_data(self) -> bool:
        """Whether there are epochs to train."""
        return self.epochs != 0

    @property
    def trains_before_selection(self) -> bool:
        """Whether there are epochs to train."""
        return self.epochs != 0

    def without_training(self) -> Sparsifying:
        """Return this pruner with 0 epochs."""
        return replace(self, epochs=0)

    def stage_before_selection(self, context: PruningContext) -> Stage | None:
        """Return the training with the regularizer."""
        if not self.epochs:
            return None
        recipe = self.recipe()
        return Stage("before_selection", recipe, self.epochs * context.epoch_length(recipe))

    def importance(self, context: PruningContext, group: UnitGroup) -> Tensor:
        """Return the score of every unit, the mean over the group's BatchNorms that have it: [units] float64."""
        if next(scales(context.model, self.kinds), None) is None:
            raise self._unscorable("The network has none with scales")
        scored = []
        for member in group.of("norm"):
            norm = context.model.get_submodule(member.layer)
            if isinstance(norm, self.kinds) and isinstance(norm.weight, nn.Parameter):
                scored.append((member, self.score(norm.weight.detach().double().cpu())))
        if not scored:
            raise self._unscorable(f"None follows {join_names(group.layers)}; leave it out with skip={group.root!r}")
        scores = average_scores(group.units, scored)
        if bool(scores.isnan().any()):
            raise self._unscorable(
                f"None follows some units of {join_names(group.layers)}; leave them out with skip={group.root!r}"
            )
        return scores

    def _unscorable(self, reason: str) -> ValueError:
        kind = "bounded BatchNorm" if self.kinds is BOUNDED else "BatchNorm"
        call = (
            "prune(isometry.convert(model), ...)" if self.kinds is BOUNDED else "isometry.networks.build('resnet-20')"
        )
        return ValueError(f"{type(self).__name__} scores units by the scales of their {kind}. {reason}. E.g. {call}.")


def scales(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[Tensor]:
    """Yield the scale parameters [C] of every BatchNorm of the given kinds."""
    for module in model.modules():
        if isinstance(module, kinds) and isinstance(module.weight, nn.Parameter):
            yield module.weight
