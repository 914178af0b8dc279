"""Pruning by growing penalties, which drive the selected units to zero first: the base of GReg and TPP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from isometry.limits import Number
from isometry.networks.bounded import BOUNDED
from isometry.networks.modules import UNIT_LAYERS, is_transposed
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.pruners.stage import Stage
from isometry.surgery import Selection, UnitGroup
from isometry.training.recipe import SETTINGS, Recipe

__all__ = ["Growing", "GrowingPenalty"]


@dataclass(frozen=True)
class Growing(Pruner):
    """Drive the selected units to zero by a penalty that grows, then remove them.

    The strength starts at 0 and grows by `delta` every `interval` steps, for all layers alike, until a layer is
    finished: at `ceiling`, or where its kept weights are `magnitude_ratio` times its selected ones on average. When
    all are finished, `stabilize` more steps follow at the strengths reached. The units are selected once, by magnitude,
    before the growth.

    Attributes:
        delta: increment of the strength. 1e-4: both papers.
        interval: steps between increments. 10: CIFAR (5 for ImageNet).
        ceiling: largest strength. 1.0: both papers.
        stabilize: steps after growth. 10,000: CIFAR (40,000 for ImageNet).
        magnitude_ratio: see above; an exponential average (0.9) taken every `interval` steps. None: growth ends at
            the ceiling only.
        biases: whether the L2 term covers the biases of selected units.
        norms: whether it covers their BatchNorm scales and shifts.
        zero_out: layer i (from 0, in the order of the network) is set to exactly zero from (i + 1) x `zero_out`
            stabilizing steps onwards; None leaves it to the penalty.
        lr, batch_size, momentum, weight_decay: of the SGD that trains under the penalty, at a constant rate.
    """

    delta: float = 1e-4
    interval: int = 10
    ceiling: float = 1.0
    stabilize: int = 10_000
    magnitude_ratio: float | None = None
    biases: bool = True
    norms: bool = True
    zero_out: int | None = 100
    lr: float = 1e-3
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trains: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, Number]] = {
        **Pruner.limits,
        **{name: SETTINGS[name] for name in ("lr", "batch_size", "momentum", "weight_decay")},
        **dict.fromkeys(("delta", "ceiling"), Number(0, above=True)),
        "interval": Number(1, whole=True),
        "stabilize": Number(0, whole=True),
        "magnitude_ratio": Number(0, optional=True),
        "zero_out": Number(0, whole=True, optional=True),
    }

    def penalty(self, context: PruningContext, selection: Selection) -> GrowingPenalty:
        """Return the penalty that drives the selected units to zero."""
        return GrowingPenalty(self, context, selection)

    def stage_after_selection(self, context: PruningContext, selection: Selection) -> Stage | None:
        """Return the training that drives the selected units to zero; None where none are selected."""
        if not any(units for _, units in selection):
            return None
        return self.stage("after_selection", self.penalty(context, selection))

    def stage(self, name: str, penalty: GrowingPenalty) -> Stage:
        """Return the training with a penalty that grows and is finished `stabilize` steps later."""
        recipe = Recipe(self.lr, 1, self.batch_size, self.momentum, self.weight_decay, schedule=None)
        return Stage(name, recipe, penalty.growth + self.stabilize, penalty, penalty.log, penalty.end)


class GrowingPenalty:
    """The penalty of `Growing` on a model's selected units, as `train` takes it.

    It acts on the gradients: + strength x w for every selected weight w, the gradient of (strength / 2) ||w||². The
    strengths are updated there, once per step, and not in `loss`, which a loop that accumulates gradients calls often.
    """

    def __init__(self, pruner: Growing, context: PruningContext, selection: Selection) -> None:
        self.pruner = pruner
        names = [name for name, module in context.model.named_modules() if isinstance(module, UNIT_LAYERS)]
        self.layers = [
            PenalizedLayer(
                context.model.get_submodule(member.layer),
                member.layer,
                names.index(member.layer),
                member.take(units),
                _norm_parameters(context, group, member.layer, units) if pruner.norms else [],
                pruner.biases,
            )
            for group, units in selection
            for member in group.of("units")
            if units
        ]
        self.layers.sort(key=lambda layer: layer.index)
        self.strengths = [0.0] * len(self.layers)
        self.averages = [math.nan] * len(self.layers)
        self.done = [False] * len(self.layers)
        self.growth_end: int | None = None
        last = max((layer.index for layer in self.layers), default=0)
        if pruner.zero_out is not None and pruner.stabilize < (needed := (last + 1) * pruner.zero_out):
            raise ValueError(
                f"{type(pruner).__name__} got stabilize={pruner.stabilize}, but zeroing layer after layer every "
                f"{pruner.zero_out} steps takes {needed}. Pass stabilize={needed} or zero_out="
                f"{pruner.stabilize // (last + 1) or None}."
            )

    @property
    def growth(self) -> int:
        """How many steps the growth takes at most."""
        return math.ceil(self.pruner.ceiling / self.pruner.delta - 1e-9) * self.pruner.interval

    def end(self) -> int:
        """Return how many steps growing and stabilizing take, at most as long as the growth goes on.

        The step that ends the growth is a step at full strength, also where none is to follow.
        """
        return (self.growth if self.growth_end is None else self.growth_end) + max(self.pruner.stabilize, 1)

    def loss(self, step: int) -> Tensor | None:
        """Return None: the penalty acts on the gradients."""
        return None

    def strength_at(self, step: int) -> float:
        """Return the strength that a layer not yet finished has at `step`."""
        return self.pruner.delta * (step // self.pruner.interval)

    def _grow(self, step: int) -> None:
        level = self.strength_at(step)
        ratios = [math.nan] * len(self.layers) if self.pruner.magnitude_ratio is None else magnitude_ratios(self.layers)
        for i, ratio in enumerate(ratios):
            if self.done[i]:
                continue
            self.strengths[i] = min(level, self.pruner.ceiling)
            if self.pruner.magnitude_ratio is not None:
                self.averages[i] = ratio if math.isnan(self.averages[i]) else 0.9 * self.averages[i] + 0.1 * ratio
            self.done[i] = level >= self.pruner.ceiling - 1e-12 or (
                self.pruner.magnitude_ratio is not None and self.averages[i] >= self.pruner.magnitude_ratio
            )
        if all(self.done):
            self.growth_end = step

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Update the strengths, and add the penalty's gradient to every selected weight."""
        for layer in self.layers:
            layer.follow()
        if self.growth_end is None and step % self.pruner.interval == 0:
            self._grow(step)
        for layer, strength in zip(self.layers, self.strengths, strict=True):
            for tensor, selected in layer.penalized:
                if tensor.grad is not None:
                    tensor.grad.addcmul_(tensor, selected, value=strength)

    @torch.no_grad()
    def project(self, step: int) -> None:
        """Zero the selected units of the layers whose turn has come."""
        if self.growth_end is None or self.pruner.zero_out is None:
            return
        for layer in self.layers:
            if step + 1 - self.growth_end >= (layer.index + 1) * self.pruner.zero_out:
                for tensor, selected in layer.zeroed:
                    tensor.mul_(1 - selected)

    def finished(self, step: int) -> bool:
        """Return whether growing and stabilizing are over."""
        return self.growth_end is not None and step >= self.end()

    def log(self) -> dict[str, float | str]:
        """Return the phase, the largest strength and the smallest magnitude ratio, for the history."""
        return {
            "phase": "grow" if self.growth_end is None else "stabilize",
            "strength": max(self.strengths),
            "magnitude_ratio": min(magnitude_ratios(self.layers)),
        }

    def identity(self) -> str:
        """Return the pruner's settings and the selected units."""
        return repr((self.pruner, [(layer.name, layer.selected.tolist()) for layer in self.layers]))

    def state(self) -> dict[str, Tensor]:
        """Return strengths, averages, which layers are finished, and when growth ended."""
        return {
            "strengths": torch.tensor(self.strengths, dtype=torch.float64),
            "averages": torch.tensor(self.averages, dtype=torch.float64),
            "done": torch.tensor(self.done),
            "switch": torch.tensor(-1 if self.growth_end is None else self.growth_end),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.strengths, self.averages = state["strengths"].tolist(), state["averages"].tolist()
        self.done = state["done"].tolist()
        self.growth_end = None if int(state["switch"]) < 0 else int(state["switch"])


class PenalizedLayer:
    """One layer with selected units: its weight, and the tensors that the L2 term and the zeroing act on.

    Attributes:
        name, index: the layer's name, and its place among the linear layers and convolutions of the network.
        weight: of the layer; `dim` is the dimension of its units.
        selected, kept: indices of the units to remove, and of the others.
        penalized: (tensor, flags that broadcast to it: 1 for the entries of selected units) of the L2 term.
        zeroed: likewise, of the zeroing.
    """

    def __init__(
        self,
        layer: nn.Module,
        name: str,
        index: int,
        units: list[int],
        norm_parameters: list[tuple[Tensor, Tensor]],
        biases: bool,
    ) -> None:
        self.name, self.index = name, index
        self.weight = layer.get_parameter("weight")
        if not self.weight.requires_grad:
            raise ValueError(
                f"The weight of {name} is frozen, so that no penalty can drive its units to zero. Leave the layer out, "
                f"prune(..., skip={name!r}), or call model.{name}.requires_grad_(True) first."
            )
        self.dim = dim = 1 if is_transposed(layer) else 0
        flags = torch.zeros(self.weight.shape[dim], device=self.weight.device, dtype=self.weight.dtype)
        flags[units] = 1
        self.selected, self.kept = flags.nonzero()[:, 0], (flags == 0).nonzero()[:, 0]
        shape = [1] * self.weight.ndim
        shape[dim] = -1
        weight = (self.weight, flags.view(shape))
        bias = [(layer.bias, flags)] if isinstance(layer.bias, Tensor) else []
        self.penalized = [weight, *(bias if biases else []), *norm_parameters]
        self.zeroed = [weight, *bias, *norm_parameters]

    def follow(self) -> None:
        """Move the indices and flags to the device and precision that the network has been moved to."""
        weight, flags = self.penalized[0]
        if (weight.device, weight.dtype) != (flags.device, flags.dtype):
            self.penalized = [(tensor, selected.to(tensor)) for tensor, selected in self.penalized]
            self.zeroed = [(tensor, selected.to(tensor)) for tensor, selected in self.zeroed]
            self.selected, self.kept = self.selected.to(weight.device), self.kept.to(weight.device)

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """Return the mean |weight| of the kept units and that of the selected ones, [2] float64, on the device."""
        sizes = self.weight.abs().movedim(self.dim, 0).flatten(1).mean(1)
        return torch.stack([sizes[self.kept].mean(), sizes[self.selected].mean()]).double()


def magnitude_ratios(layers: Sequence[PenalizedLayer]) -> list[float]:
    """Return the first of `PenalizedLayer.magnitudes` over the second, by layer; inf where that is zero, nan where none are kept.

    The host waits for the device once for all layers.
    """
    found = torch.stack([layer.magnitudes() for layer in layers]).tolist()
    return [kept / selected if selected else math.inf for kept, selected in found]


def _norm_parameters(
    context: PruningContext, group: UnitGroup, layer: str, units: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, flags of the selected channels) of the group's BatchNorms behind `layer`.

    These are the BatchNorms that normalize its output directly; of the others, whose input is a sum or an activation,
    those between it and the group's next layer, in the network's order.
    """
    model = context.model
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    layers = sorted(group.layers, key=order.__getitem__)
    parameters = []
    for member in group.of("norm"):
        before = [name for name in layers if order[name] < order[member.layer]]
        if layer != context.normalized_layers.get(member.layer, before[-1] if before else layers[0]):
            continue
        norm = model.get_submodule(member.layer)
        if isinstance(norm, BOUNDED):
            raise ValueError(
                f"{member.layer} ({type(norm).__name__}) is a bounded BatchNorm, whose scale is not 0 where its "
                "parameter is. Make it an ordinary one first: isometry.prune(isometry.fold(model), ...)."
            )
        for tensor in (norm.weight, norm.bias):
            if isinstance(tensor, Tensor):
                flags = torch.zeros_like(tensor)
                flags[member.take(units)] = 1
                parameters.append((tensor, flags))
    return parameters
