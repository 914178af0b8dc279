"""The networks of the papers, built by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
from safetensors.torch import load_file
from torch import nn

from isometry.networks.inputs import example_inputs, input_shape
from isometry.networks.lenet import LeNet5
from isometry.networks.mlp import MLP
from isometry.networks.resnet import CifarResNet, ResNet50

__all__ = ["build", "example_inputs", "input_shape", "names"]


def _mlp(activation: type[nn.Module], classes: int, input_shape: Sequence[int], widths: Sequence[int]) -> nn.Module:
    return MLP(input_shape, widths, classes, activation)


def _lenet(activation: type[nn.Module], classes: int, input_shape: Sequence[int]) -> nn.Module:
    return LeNet5(input_shape, classes, activation)


def _resnet(depth: int, classes: int, input_shape: Sequence[int]) -> nn.Module:
    return CifarResNet(depth, classes, tuple(input_shape))


def _resnet_50(classes: int, input_shape: Sequence[int]) -> nn.Module:
    return ResNet50(classes, tuple(input_shape))


_IMAGE = (1, 32, 32)
_WIDTHS = (100,) * 6
_BUILDERS: dict[str, tuple[Callable[..., nn.Module], dict[str, object]]] = {
    "mlp-7-linear": (partial(_mlp, nn.Identity), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "mlp-7-relu": (partial(_mlp, nn.ReLU), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "lenet-5-linear": (partial(_lenet, nn.Identity), {"input_shape": _IMAGE}),
    "lenet-5-relu": (partial(_lenet, nn.ReLU), {"input_shape": _IMAGE}),
    **{f"resnet-{n}": (partial(_resnet, n), {"input_shape": (3, 32, 32)}) for n in (20, 32, 44, 56, 110)},
    "resnet-50": (_resnet_50, {"input_shape": (3, 224, 224)}),
}


def names() -> list[str]:
    """Return the names that `build` knows."""
    return sorted(_BUILDERS)


def build(
    name: str,
    classes: int = 10,
    *,
    seed: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    **options: object,
) -> nn.Module:
    """Build a network of the papers by its name, freshly initialised or with the weights of a file.

    Args:
        name: one of `names()`.
        classes: number of outputs.
        seed: seed of the initialisation; None draws from torch's global generator.
        weights: a safetensors file with the network's parameters and buffers by name; BatchNorm counters may be
            missing from it.
        options: what the network lets choose, with the papers' values as defaults: `input_shape` for all of them,
            `widths` for the MLPs.

    Returns:
        A module that carries `input_shape`, the shape of one input.

    Raises:
        ValueError: the name or an option is not known; the message lists the known ones. Or the file's weights are
            not those of this network.
    """
    if name not in _BUILDERS:
        raise ValueError(f"networks.build() got the name {name!r}; it knows {', '.join(names())}.")
    builder, defaults = _BUILDERS[name]
    if unknown := sorted(set(options) - set(defaults)):
        raise ValueError(
            f"networks.build({name!r}) got the unknown option {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(defaults))}, e.g. networks.build({name!r}, input_shape={defaults['input_shape']})."
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = builder(classes=classes, **{**defaults, **options})
    if weights is not None:
        _fill(network, name, weights)
    return network


def _fill(network: nn.Module, name: str, path: str | os.PathLike[str]) -> None:
    tensors = load_file(path)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    wrong = missing + [key for key in found if found[key] != expected.get(key)]
    if wrong:
        raise ValueError(
            f"networks.build({name!r}) got the weights of another network, {os.fspath(path)}: {wrong[0]} has the shape "
            f"{expected.get(wrong[0])} in {name} and {found.get(wrong[0])} in the file."
        )
    network.load_state_dict(tensors, strict=False)
