"""The networks of the papers, built by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from isometry.networks.inputs import example_inputs, input_shape
from isometry.networks.lenet import LeNet5
from isometry.networks.mlp import MLP

__all__ = ["build", "example_inputs", "input_shape", "names"]


def _mlp(activation: type[nn.Module], classes: int, input_shape: Sequence[int], widths: Sequence[int]) -> nn.Module:
    return MLP(input_shape, widths, classes, activation)


def _lenet(activation: type[nn.Module], classes: int, input_shape: Sequence[int]) -> nn.Module:
    return LeNet5(input_shape, classes, activation)


_IMAGE = (1, 32, 32)
_WIDTHS = (100,) * 6
_BUILDERS: dict[str, tuple[Callable[..., nn.Module], dict[str, object]]] = {
    "mlp-7-linear": (partial(_mlp, nn.Identity), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "mlp-7-relu": (partial(_mlp, nn.ReLU), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "lenet-5-linear": (partial(_lenet, nn.Identity), {"input_shape": _IMAGE}),
    "lenet-5-relu": (partial(_lenet, nn.ReLU), {"input_shape": _IMAGE}),
}


def names() -> list[str]:
    """Return the names that `build` knows."""
    return sorted(_BUILDERS)


def build(name: str, classes: int = 10, *, seed: int | None = None, **options: object) -> nn.Module:
    """Build a network of the papers by its name, freshly initialised.

    Args:
        name: one of `names()`.
        classes: number of outputs.
        seed: seed of the initialisation; None draws from torch's global generator.
        options: what the network lets choose, with the papers' values as defaults: `input_shape` for all of them,
            `widths` for the MLPs.

    Returns:
        A module that carries `input_shape`, the shape of one input.

    Raises:
        ValueError: the name or an option is not known; the message lists the known ones.
    """
    if name not in _BUILDERS:
        raise ValueError(f"networks.build() got the name {name!r}; it knows {', '.join(names())}.")
    builder, defaults = _BUILDERS[name]
    if unknown := sorted(set(options) - set(defaults)):
        raise ValueError(
            f"networks.build({name!r}) got the unknown option {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(defaults))}, e.g. networks.build({name!r}, input_shape={defaults['input_shape']})."
        )
    if seed is None:
        return builder(classes=classes, **{**defaults, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(classes=classes, **{**defaults, **options})
