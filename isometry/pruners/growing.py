"""Pruning by growing penalties: the units that are to leave are driven to zero first. GReg, and the base of TPP."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from isometry.networks.bounded import BOUNDED
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.pruners.selection import Selection
from isometry.surgery import UnitGroup
from isometry.training import train

__all__ = ["GReg", "GReg2", "Growing", "GrowingPenalty"]


@dataclass(frozen=True)
class Growing(Pruner):
    """Drive the units that are to leave to zero by a penalty that grows, then remove them.

    The strength starts at 0 and grows by `delta` every `interval` steps, for all layers alike, until a layer is
    finished: at `ceiling`, or where its kept weights are `magnitude_ratio` times its leaving ones on average. When
    all are finished, `stabilize` more steps follow at the strengths reached. The units are chosen once, by magnitude,
    on the network given.

    Attributes:
        delta: increment of the strength. 1e-4: both papers.
        interval: steps between increments. 10: CIFAR (5 for ImageNet).
        ceiling: largest strength. 1.0: both papers.
        stabilize: steps after growth. 10,000: CIFAR (40,000 for ImageNet).
        magnitude_ratio: see above; an exponential average (0.9) taken every `interval` steps. None: growth ends at
            the ceiling only.
        biases: whether the L2 term covers the biases of leaving units.
        norms: whether it covers their BatchNorm scales and shifts.
        zero_out: layer i (from 0, in the order of the network) is set to exactly zero from (i + 1) x `zero_out`
            stabilizing steps onwards; None leaves it to the penalty.
        lr, batch_size, momentum, weight_decay: of the SGD that trains meanwhile, at a constant rate.
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

    def penalty(self, run: PruningContext, chosen: Selection) -> GrowingPenalty:
        """Return the penalty that drives the chosen units to zero."""
        return GrowingPenalty(self, run, chosen)

    def train_after_selection(self, run: PruningContext, chosen: Selection) -> None:
        """Train until the chosen units have receded."""
        if not any(units for _, units in chosen):
            return
        self.grow(run, self.penalty(run, chosen), "after_selection")

    def grow(self, run: PruningContext, penalty: GrowingPenalty, stage: str) -> None:
        """Train with a penalty until it is finished."""
        longest = penalty.growth + self.stabilize
        batches = math.ceil(len(run.split.inputs) / self.batch_size)
        epochs = train(
            run.model,
            run.data,  # type: ignore[arg-type]
            lr=self.lr,
            epochs=math.ceil(longest / batches),
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=None,
            penalty=penalty,
            autocast=run.autocast,
            seed=run.seed,
            checkpoint=run.stage(stage),
        )
        run.follow(epochs, stage, longest, penalty.log)


@dataclass(frozen=True)
class GReg(Growing):
    """GReg-1: a growing L2 penalty on the weights of the units that are to leave.

    Source: Wang et al., ICLR 2021, "Neural pruning via growing regularization"; defaults of its CIFAR experiments.
    """

    magnitude_ratio: float | None = 1000.0
    biases: bool = False
    norms: bool = False
    zero_out: int | None = None


@dataclass(frozen=True)
class GReg2(GReg):
    """GReg-2: a small L2 penalty that grows on all units first and tells them apart; then GReg-1 on the lowest.

    The first stage grows by `pick_delta` every `interval` steps up to `pick`, on all units alike. Then the units of the
    smallest magnitude are chosen; their strength grows on by `delta` while that of the units that stay falls by as much,
    down to 0.

    Attributes:
        pick_delta: increment of the first stage. 1e-5.
        pick: the strength at which units are chosen. 1e-2.

    Source: Wang et al., ICLR 2021, "Neural pruning via growing regularization", section 3.3.
    """

    pick_delta: float = 1e-5
    pick: float = 1e-2

    def train_before_selection(self, run: PruningContext) -> None:
        """Train with the penalty on all units."""
        every = [(group, tuple(range(group.units))) for group in run.groups]
        first = replace(
            self, delta=self.pick_delta, ceiling=self.pick, stabilize=0, magnitude_ratio=None, zero_out=None
        )
        first.grow(run, GrowingPenalty(first, run, every), "before_selection")

    def penalty(self, run: PruningContext, chosen: Selection) -> GrowingPenalty:
        """Return the penalty that goes on from `pick`, with the opposite course for the units that stay."""
        return _ContrastingPenalty(self, run, chosen)


class GrowingPenalty:
    """The penalty of `Growing` on a model's leaving units, as `train` takes it.

    It works on the gradients: + strength x w for every leaving weight w, the gradient of (strength / 2) ||w||².
    """

    def __init__(self, pruner: Growing, run: PruningContext, chosen: Selection) -> None:
        self.pruner = pruner
        model = run.model
        order = {name: index for index, name in enumerate(_unit_layers(model))}
        members = [
            (order[member.layer], member.layer, member.take(units), group, units)
            for group, units in chosen
            for member in group.of("units")
            if units
        ]
        self.layers = [
            _Layer(model, index, name, units, _scales(run, group, name, left) if pruner.norms else [], pruner.biases)
            for index, name, units, group, left in sorted(members, key=lambda entry: entry[0])
        ]
        count = len(self.layers)
        self.strengths = [0.0] * count
        self.averages = [math.nan] * count
        self.done = [False] * count
        self.switch: int | None = None
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

    def loss(self, step: int) -> Tensor | None:
        """Return None: the penalty acts on the gradients; the strengths are refreshed here."""
        if self.switch is None and step % self.pruner.interval == 0:
            self._grow(step)
        return None

    def level(self, step: int) -> float:
        """Return the strength that a layer not yet finished has at `step`."""
        return self.pruner.delta * (step // self.pruner.interval)

    def _grow(self, step: int) -> None:
        level = self.level(step)
        for i, layer in enumerate(self.layers):
            if self.done[i]:
                continue
            self.strengths[i] = min(level, self.pruner.ceiling)
            if self.pruner.magnitude_ratio is not None:
                ratio = layer.magnitude_ratio()
                self.averages[i] = ratio if math.isnan(self.averages[i]) else 0.9 * self.averages[i] + 0.1 * ratio
            self.done[i] = level >= self.pruner.ceiling - 1e-12 or (
                self.pruner.magnitude_ratio is not None and self.averages[i] >= self.pruner.magnitude_ratio
            )
        if all(self.done):
            self.switch = step

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Add the penalty's gradient to every leaving weight."""
        for layer, strength in zip(self.layers, self.strengths, strict=True):
            for tensor, leaving in layer.penalized:
                if tensor.grad is not None:
                    tensor.grad.addcmul_(tensor, leaving, value=strength)

    @torch.no_grad()
    def project(self, step: int) -> None:
        """Zero the leaving units of the layers whose turn has come."""
        if self.switch is None or self.pruner.zero_out is None:
            return
        for layer in self.layers:
            if step + 1 - self.switch >= (layer.index + 1) * self.pruner.zero_out:
                for tensor, leaving in layer.zeroed:
                    tensor.mul_(1 - leaving)

    def finished(self, step: int) -> bool:
        """Return whether growing and stabilizing are over."""
        return self.switch is not None and step >= self.switch + self.pruner.stabilize

    def log(self) -> dict[str, float | str]:
        """Return the phase, the largest strength and the smallest magnitude ratio, for the history."""
        return {
            "phase": "grow" if self.switch is None else "stabilize",
            "strength": max(self.strengths),
            "magnitude_ratio": min(layer.magnitude_ratio() for layer in self.layers),
        }

    def identity(self) -> str:
        """Return the pruner's settings and the units that leave."""
        return repr((self.pruner, [(layer.name, layer.units.tolist()) for layer in self.layers]))

    def state(self) -> dict[str, Tensor]:
        """Return strengths, averages, and when growth ended."""
        return {
            "strengths": torch.tensor(self.strengths, dtype=torch.float64),
            "averages": torch.tensor(self.averages, dtype=torch.float64),
            "done": torch.tensor(self.done),
            "switch": torch.tensor(-1 if self.switch is None else self.switch),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.strengths, self.averages = state["strengths"].tolist(), state["averages"].tolist()
        self.done = state["done"].tolist()
        self.switch = None if int(state["switch"]) < 0 else int(state["switch"])


class _ContrastingPenalty(GrowingPenalty):
    """GReg-2's second stage: leaving units start at `pick` and grow, staying ones start there and are let go."""

    pruner: GReg2

    @property
    def growth(self) -> int:
        """How many steps the growth takes at most."""
        return math.ceil((self.pruner.ceiling - self.pruner.pick) / self.pruner.delta - 1e-9) * self.pruner.interval

    def level(self, step: int) -> float:
        """Return the strength that a layer not yet finished has at `step`."""
        return self.pruner.pick + super().level(step)

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Add the gradients on leaving and staying units."""
        super().gradients(step)
        fading = self.pruner.pick - self.pruner.delta * (step // self.pruner.interval)
        if fading > 0:
            for layer in self.layers:
                for tensor, leaving in layer.penalized:
                    if tensor.grad is not None:
                        tensor.grad.addcmul_(tensor, 1 - leaving, value=fading)


class _Layer:
    """One layer with leaving units: its weight, and the tensors that the L2 term and the zeroing act on."""

    def __init__(
        self,
        model: nn.Module,
        index: int,
        name: str,
        units: list[int],
        scales: list[tuple[Tensor, Tensor]],
        biases: bool,
    ) -> None:
        layer = model.get_submodule(name)
        self.index, self.name = index, name
        self.weight = layer.get_parameter("weight")
        if not self.weight.requires_grad:
            raise ValueError(
                f"The weight of {name} is frozen, so that no penalty can drive its units to zero. Leave the layer out, "
                f"prune(..., skip={name!r}), or call model.{name}.requires_grad_(True) first."
            )
        self.dim = dim = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        flags = torch.zeros(self.weight.shape[dim], device=self.weight.device, dtype=self.weight.dtype)
        flags[units] = 1
        self.units, self.stay = flags.nonzero()[:, 0], (flags == 0).nonzero()[:, 0]
        shape = [1] * self.weight.ndim
        shape[dim] = -1
        weight = (self.weight, flags.view(shape))
        bias = [(layer.bias, flags)] if isinstance(layer.bias, Tensor) else []
        self.penalized = [weight, *(bias if biases else []), *scales]
        self.zeroed = [weight, *bias, *scales]

    @torch.no_grad()
    def magnitude_ratio(self) -> float:
        """Return the mean |weight| of the kept units over that of the leaving ones; inf where those are zero."""
        sizes = self.weight.abs().movedim(self.dim, 0).flatten(1).mean(1)
        gone = float(sizes[self.units].mean())
        kept = float(sizes[self.stay].mean()) if len(self.stay) else math.nan  # where every unit is penalized
        return kept / gone if gone else math.inf


def _unit_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


def _scales(run: PruningContext, group: UnitGroup, layer: str, units: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, flags of the leaving channels) of the group's BatchNorms behind `layer`.

    That are those that normalize its very output; of the others, which take in a sum or what an activation left, those
    between it and the group's next layer, in the network's order.
    """
    model = run.model
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    layers = sorted(group.layers, key=order.__getitem__)
    found = []
    for member in group.of("norm"):
        before = [name for name in layers if order[name] < order[member.layer]]
        if layer != run.behind.get(member.layer, before[-1] if before else layers[0]):
            continue
        norm = model.get_submodule(member.layer)
        if isinstance(norm, BOUNDED):
            raise ValueError(
                f"{member.layer} ({type(norm).__name__}) is a bounded BatchNorm, whose scale is not 0 where its parameter is. "
                "Make it an ordinary one first: isometry.prune(isometry.fold(model), ...)."
            )
        for tensor in (norm.weight, norm.bias):
            if isinstance(tensor, Tensor):
                flags = torch.zeros_like(tensor)
                flags[member.take(units)] = 1
                found.append((tensor, flags))
    return found
