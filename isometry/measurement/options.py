"""The options of a measurement and the network that it is of, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from isometry.errors import InvalidValueError, join_names
from isometry.limits import SEED, check_number
from isometry.networks.checks import check_module

__all__ = ["Options", "check_model"]

_METHODS = ("auto", "exact", "krylov")


@dataclass(frozen=True)
class Options:
    """How to measure; see `isometry.measure` for the meaning of each.

    Attributes:
        bracket: half-width of a stochastic estimate's bracket, as a share of the mean; None takes the planner's default.

    Raises:
        ValueError: an option that is not accepted.
    """

    method: str = "auto"
    layers: bool | int | str | Sequence[str] = False
    rtol: float | None = None
    budget: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    bracket: float | None = None

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise InvalidValueError(
                f"got method={self.method!r}; it knows {', '.join(map(repr, _METHODS))}, e.g. method='auto'."
            )
        rtol: Any = self.rtol
        if rtol is not None and not (isinstance(rtol, Real) and 0 < float(rtol) < 1):
            raise InvalidValueError(
                f"got rtol={rtol}; it is the half-width of the interval over the mean, e.g. rtol=0.05."
            )
        check_number("seed", self.seed, SEED, "seed=0")
        budget: Any = self.budget
        if budget is not None and (not isinstance(budget, Integral) or isinstance(budget, bool) or budget < 1):
            raise InvalidValueError(f"got budget={budget}; it is a number of products, e.g. budget=10_000.")
        dtype: Any = self.dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InvalidValueError(f"got dtype={dtype}; it takes a floating point one, e.g. dtype=torch.float64.")
        layers: Any = self.layers
        patterns = isinstance(layers, list | tuple) and all(isinstance(pattern, str) for pattern in layers)
        if not (isinstance(layers, bool | int | str) or patterns):
            raise InvalidValueError(
                f"got layers={layers!r}; it takes True for blocks, a depth, or name patterns, e.g. layers='*conv*'."
            )
        if layers is not False and self.method == "krylov":
            raise InvalidValueError(
                "got layers= with method='krylov'; layers need every row: method='exact' (or 'auto')."
            )

    @property
    def sampled(self) -> bool:
        """Whether perhaps only some of the inputs will be measured, as a tolerance or a budget is given."""
        return self.rtol is not None or self.budget is not None


def check_model(model: Any, at: str | None = None) -> None:
    """Refuse what is no network, cannot be differentiated, or has no module `at`."""
    check_module(model, "measure(isometry.networks.build('lenet-5-relu'))")
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch.") and "quantized" in kind.__module__:
            raise InvalidValueError(
                f"cannot differentiate {name or 'the model'} ({kind.__name__}), which is quantized. Measure the floating "
                "point model it was made from."
            )
    names = [name for name, _ in model.named_modules()]
    if at is not None and at not in names:
        known = [name for name in names if name]
        if not known:
            raise InvalidValueError(
                f"got at={at!r} for a model without modules. Leave it out, e.g. measure(model, inputs)."
            )
        raise InvalidValueError(f"got at={at!r}; the model's modules are {join_names(known)}. E.g. at={known[0]!r}.")
