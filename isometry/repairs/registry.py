"""Repairs by name: the one place where trials, comparisons and analyses find them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from isometry.repairs.orthogonalization import orthogonalize
from isometry.repairs.recalibration import recalibrate
from isometry.repairs.reconstruction import repair
from isometry.repairs.recovery import recover

__all__ = [
    "REPAIRS",
    "Orthogonalization",
    "Recalibration",
    "Reconstruction",
    "Recovery",
    "Repair",
    "best_repair",
    "repair_by_name",
]

RELU_GAIN = math.sqrt(2)
"""The gain with which the reference code of Wang & Fu, ICLR 2023, orthogonalizes ReLU networks."""


class Repair(Protocol):
    """A way to repair a pruned network: a frozen dataclass of its hyperparameters, called with the network."""

    @property
    def name(self) -> str:
        """The name in `REPAIRS`."""

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        """Return a repaired copy of `model`, which is left alone.

        Args:
            model: the pruned network.
            data: training data, as `train` takes them, for repairs that need some.
            reference: the network before pruning, for repairs that need it.
            seed: of everything that is random.

        Raises:
            ValueError: the repair does not work on this network, or needs an argument that is None.
        """


@dataclass(frozen=True)
class Recovery:
    """The oracle: `recover`, for linear MLPs."""

    name: ClassVar[str] = "oracle"

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        """Return a copy whose every JSV is 1; see `recover`."""
        return recover(model)


@dataclass(frozen=True)
class Orthogonalization:
    """OrthP: `orthogonalize`, for any network.

    Attributes:
        gain: sqrt(2), the reference code's for ReLU networks.
    """

    name: ClassVar[str] = "orthp"
    gain: float = RELU_GAIN

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        """Return a copy whose weights are orthogonal; see `orthogonalize`."""
        return orthogonalize(model, gain=self.gain)


@dataclass(frozen=True)
class Recalibration:
    """BatchNorm statistics estimated anew: `recalibrate`."""

    name: ClassVar[str] = "recalibrate"

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        """Return a copy with the statistics of its own activations on `data`; see `recalibrate`."""
        if data is None:
            raise ValueError(
                "recalibrate() got no data; it takes training images to estimate the statistics on, e.g. "
                "repair_by_name('recalibrate')(model, data=isometry.data.load('digits'))."
            )
        return recalibrate(model, data, seed=seed)


@dataclass(frozen=True)
class Reconstruction:
    """Layers solved for again so that they give what they gave in the dense network: `repair`.

    Attributes:
        samples, ridge, downstream, outputs, match_sums: see `repair`, whose defaults these are.
    """

    name: ClassVar[str] = "reconstruct"
    samples: int = 1024
    ridge: float = 1e-3
    downstream: bool = True
    outputs: bool = False
    match_sums: bool = True

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        """Return a copy that gives what the dense network does, as far as its widths allow; see `repair`."""
        if reference is None:
            raise ValueError(
                "repair() got no reference; it takes the network before pruning, e.g. "
                "repair_by_name('reconstruct')(pruned, reference=dense, data=x)."
            )
        return repair(model, reference=reference, data=data, seed=seed, progress=False, **vars(self))


REPAIRS: dict[str, Repair] = {
    repair.name: repair for repair in (Recovery(), Orthogonalization(), Recalibration(), Reconstruction())
}
"""{name: repair}. A new entry makes a repair known to trials, comparisons and analyses."""


def repair_by_name(name: str) -> Repair:
    """Return the repair of that name.

    Args:
        name: a key of `REPAIRS`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in REPAIRS:
        raise ValueError(
            f"repair_by_name() got {name!r}; it knows {', '.join(map(repr, REPAIRS))}, e.g. repair_by_name('recalibrate')."
        )
    return REPAIRS[name]


def best_repair(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the label and the result of the repair that comes nearest to dynamical isometry without training.

    This is ("oracle", `recover(model)`) for linear MLPs, and ("OrthP", `orthogonalize(model)`) for all other networks, with
    the gain of sqrt(2) for ReLU, or of 1 where the activations are modules and no ReLU is among them.

    Args:
        model: any network; it is left alone.

    Raises:
        ValueError: no convolution or linear layer; or one whose weight is parametrized.
    """
    try:
        return "oracle", recover(model)
    except ValueError:  # not a linear MLP, or one with too narrow a layer
        activations = [module for module in model.modules() if type(module).__module__ == nn.ReLU.__module__]
        rectified = not activations or any(isinstance(module, nn.ReLU) for module in activations)
        return "OrthP", orthogonalize(model, gain=RELU_GAIN if rectified else 1.0)
