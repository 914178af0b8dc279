"""Pruning by growing penalties: the units that are to leave are driven to zero first. GReg, and the base of TPP."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.pruners.pruner import Pruner, Run
from isometry.surgery import Family
from isometry.training import train

__all__ = ["GReg", "Growing", "GrowingPenalty"]


@dataclass(frozen=True)
class Growing(Pruner):
    """Drive the units that are to leave to zero by a penalty that grows, then remove them.

    The strength starts at 0 and grows by `delta` every `interval` steps, for all layers alike, until a layer is
    finished: at `ceiling`, or where its kept weights are `magnitude_ratio` times its leaving ones on average. When
    all are finished, `stabilise` more steps follow at the strengths reached. The units are chosen once, by magnitude,
    on the network given.

    Attributes:
        delta: increment of the strength. 1e-4: both papers.
        interval: steps between increments. 10: CIFAR (5 for ImageNet).
        ceiling: largest strength. 1.0: both papers.
        stabilise: steps after growth. 10,000: CIFAR (40,000 for ImageNet).
        magnitude_ratio: see above; an exponential average (0.9) taken every `interval` steps. None: growth ends at
            the ceiling only.
        biases: whether the L2 term covers the biases of leaving units.
        norms: whether it covers their BatchNorm scales and shifts.
        zero_out: layer i (from 0, in the order of the network) is set to exactly zero from (i + 1) x `zero_out`
            stabilising steps onwards; None leaves it to the penalty.
        lr, batch_size, momentum, weight_decay: of the SGD that trains meanwhile, at a constant rate.
    """

    delta: float = 1e-4
    interval: int = 10
    ceiling: float = 1.0
    stabilise: int = 10_000
    magnitude_ratio: float | None = None
    biases: bool = True
    norms: bool = True
    zero_out: int | None = 100
    lr: float = 1e-3
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trains: ClassVar[bool] = True

    def penalty(self, run: Run, chosen: list[tuple[Family, tuple[int, ...]]]) -> GrowingPenalty:
        """Return the penalty that drives the chosen units to zero."""
        return GrowingPenalty(self, run.model, chosen)

    def recede(self, run: Run, chosen: list[tuple[Family, tuple[int, ...]]]) -> None:
        """Train until the chosen units have receded."""
        assert run.data is not None
        if not any(units for _, units in chosen):
            return
        penalty = self.penalty(run, chosen)
        longest = penalty.growth + self.stabilise
        batches = math.ceil(len(run.data.inputs) / self.batch_size)
        epochs = train(
            run.model,
            run.data,
            lr=self.lr,
            epochs=math.ceil(longest / batches),
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=None,
            penalty=penalty,
            seed=run.seed,
            checkpoint=run.checkpoint,
        )
        with tqdm(total=longest, unit="step", desc=type(self).__name__, disable=_hidden(run.progress)) as bar:
            for epoch in epochs:
                run.records.append({**asdict(epoch), **penalty.log()})
                bar.update(epoch.steps - bar.n)
                bar.set_postfix(loss=f"{epoch.loss:.3f}", strength=f"{run.records[-1]['strength']:.3g}")


def _hidden(progress: bool | None) -> bool | None:
    """Translate `progress` to tqdm's `disable`: None lets tqdm ask whether anyone is looking."""
    return None if progress is None else not progress


@dataclass(frozen=True)
class GReg(Growing):
    """GReg-1: a growing L2 penalty on the weights of the units that are to leave.

    Source: Wang et al., ICLR 2021, "Neural pruning via growing regularization"; defaults of its CIFAR experiments.
    """

    magnitude_ratio: float | None = 1000.0
    biases: bool = False
    norms: bool = False
    zero_out: int | None = None


class GrowingPenalty:
    """The penalty of `Growing` on a model's leaving units, as `train` takes it.

    It works on the gradients: + strength x w for every leaving weight w, the gradient of (strength / 2) ||w||².
    """

    def __init__(self, pruner: Growing, model: nn.Module, chosen: list[tuple[Family, tuple[int, ...]]]) -> None:
        self.pruner = pruner
        order = {name: index for index, name in enumerate(_unit_layers(model))}
        members = [
            (order[member.layer], member.layer, member.take(units), family, units)
            for family, units in chosen
            for member in family.of("units")
            if units
        ]
        self.layers = [
            _Layer(model, index, name, units, _scales(model, family, left) if pruner.norms else [], pruner.biases)
            for index, name, units, family, left in sorted(members, key=lambda entry: entry[0])
        ]
        count = len(self.layers)
        self.strengths = [0.0] * count
        self.averages = [math.nan] * count
        self.done = [False] * count
        self.switch: int | None = None
        last = max((layer.index for layer in self.layers), default=0)
        if pruner.zero_out is not None and pruner.stabilise < (needed := (last + 1) * pruner.zero_out):
            raise ValueError(
                f"{type(pruner).__name__} got stabilise={pruner.stabilise}, but zeroing layer after layer every "
                f"{pruner.zero_out} steps takes {needed}. Pass stabilise={needed} or zero_out="
                f"{pruner.stabilise // (last + 1) or None}."
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

    def _grow(self, step: int) -> None:
        level = self.pruner.delta * (step // self.pruner.interval)
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
            for tensor, leaving in layer.penalised:
                assert tensor.grad is not None
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
        """Return whether growing and stabilising are over."""
        return self.switch is not None and step >= self.switch + self.pruner.stabilise

    def log(self) -> dict[str, float | str]:
        """Return the phase, the largest strength and the smallest magnitude ratio, for the history."""
        return {
            "phase": "grow" if self.switch is None else "stabilise",
            "strength": max(self.strengths),
            "magnitude_ratio": min(layer.magnitude_ratio() for layer in self.layers),
        }

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
        self.index, self.name, self.units = index, name, units
        self.weight = layer.get_parameter("weight")
        dim = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        flags = torch.zeros(self.weight.shape[dim], device=self.weight.device, dtype=self.weight.dtype)
        flags[units] = 1
        self.leaving = flags
        shape = [1] * self.weight.ndim
        shape[dim] = -1
        weight = (self.weight, flags.view(shape))
        bias = [(layer.bias, flags)] if isinstance(layer.bias, Tensor) else []
        self.penalised = [weight, *(bias if biases else []), *scales]
        self.zeroed = [weight, *bias, *scales]

    @torch.no_grad()
    def magnitude_ratio(self) -> float:
        """Return the mean |weight| of the kept units over that of the leaving ones; inf where those are zero."""
        flags = self.penalised[0][1]
        sizes = self.weight.abs()
        gone = float((sizes * flags).sum() / flags.sum())
        kept = float((sizes * (1 - flags)).sum() / (1 - flags).sum())
        return kept / gone if gone else math.inf


def _unit_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


def _scales(model: nn.Module, family: Family, units: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, flags of the leaving channels) of every BatchNorm in the family."""
    found = []
    for member in family.of("norm"):
        norm = model.get_submodule(member.layer)
        for tensor in (norm.weight, norm.bias):
            if isinstance(tensor, Tensor):
                flags = torch.zeros_like(tensor)
                flags[member.take(units)] = 1
                found.append((tensor, flags))
    return found
