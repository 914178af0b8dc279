"""The networks of the papers, built by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from isometry.errors import InvalidValueError, signed
from isometry.files import read_tensors
from isometry.limits import Number, check_number
from isometry.networks.bounded import BoundedBatchNorm2d
from isometry.networks.convnet import ConvNet
from isometry.networks.lenet import LeNet5
from isometry.networks.mlp import MLP
from isometry.networks.pretrained import find_weights
from isometry.networks.resnet import CifarResNet, ResNet50
from isometry.networks.vgg import VGG

__all__ = ["build", "names"]


def _mlp(activation: type[nn.Module], classes: int, input_shape: Sequence[int], widths: Sequence[int]) -> nn.Module:
    return MLP(input_shape, widths, classes, activation)


def _lenet(activation: type[nn.Module], classes: int, input_shape: Sequence[int]) -> nn.Module:
    return LeNet5(input_shape, classes, activation)


def _convnet(classes: int, input_shape: Sequence[int], widths: Sequence[int], norm: str) -> nn.Module:
    return ConvNet(input_shape, widths, classes, _batchnorm(norm))


def _cifar_resnet(depth: int, classes: int, input_shape: Sequence[int], norm: str) -> nn.Module:
    return CifarResNet(depth, classes, tuple(input_shape), _batchnorm(norm))


def _resnet_50(classes: int, input_shape: Sequence[int]) -> nn.Module:
    return ResNet50(classes, tuple(input_shape))


def _vgg(depth: int, classes: int, input_shape: Sequence[int], norm: str) -> nn.Module:
    return VGG(depth, classes, tuple(input_shape), _batchnorm(norm), bias=depth == 16)


def _bounded(channels: int) -> nn.Module:
    # `build` draws gamma once all layers exist, so that the other layers are initialized alike with either norm.
    with torch.random.fork_rng(devices=[]):
        return BoundedBatchNorm2d(channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "bounded": _bounded, "none": nn.Identity}


def _batchnorm(name: str) -> Callable[[int], nn.Module]:
    if name not in _NORMS:
        raise ValueError(
            f"networks.build() got norm={name!r}; it knows {', '.join(map(repr, _NORMS))}, e.g. "
            "networks.build('resnet-56', norm='bounded')."
        )
    return _NORMS[name]


_IMAGE = (1, 32, 32)
_WIDTHS = (100,) * 6
_BUILDERS: dict[str, tuple[Callable[..., nn.Module], dict[str, object]]] = {
    "mlp-7-linear": (partial(_mlp, nn.Identity), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "mlp-7-relu": (partial(_mlp, nn.ReLU), {"input_shape": _IMAGE, "widths": _WIDTHS}),
    "lenet-5-linear": (partial(_lenet, nn.Identity), {"input_shape": _IMAGE}),
    "lenet-5-relu": (partial(_lenet, nn.ReLU), {"input_shape": _IMAGE}),
    **{
        f"resnet-{n}": (partial(_cifar_resnet, n), {"input_shape": (3, 32, 32), "norm": "batch"})
        for n in (20, 32, 44, 56, 110)
    },
    **{f"vgg-{n}": (partial(_vgg, n), {"input_shape": (3, 32, 32), "norm": "batch"}) for n in (16, 19)},
    "conv-4": (_convnet, {"input_shape": _IMAGE, "widths": (32, 32, 64, 64), "norm": "batch"}),
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
    """Build a network of the papers by its name, freshly initialized or with the weights of a file.

    Args:
        name: one of `names()`.
        classes: number of outputs.
        seed: seed of the initialization; None draws from torch's global generator.
        weights: a safetensors file with the network's parameters and buffers by name; BatchNorm counters may be
            missing from it. Or the name of pretrained weights, "cifar10" for resnet-20 and resnet-56; their file is
            looked for in $ISOMETRY_DATA/weights and must be the published one, and
            `networks.PRETRAINED[name, weights].normalization` is that of their inputs.
        options: of the network, with the papers' values as defaults: `input_shape` for all of them, `widths` for the
            MLPs and conv-4, `norm` ("batch", "bounded" or "none") for conv-4, the CIFAR ResNets and the VGGs.

    Returns:
        A module with the attribute `input_shape`, the shape of one input.

    Raises:
        ValueError: the name or an option is not known; the message lists the known ones. Or the file cannot be read,
            or its weights are not those of this network; the message names the file.
        FileNotFoundError: no such weights.
    """
    if name not in _BUILDERS:
        raise ValueError(f"networks.build() got the name {name!r}; it knows {', '.join(names())}.")
    builder, defaults = _BUILDERS[name]
    if unknown := sorted(set(options) - set(defaults)):
        raise ValueError(
            f"networks.build({name!r}) got the unknown option {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(defaults))}, e.g. networks.build({name!r}, input_shape={defaults['input_shape']})."
        )
    example = f"networks.build({name!r}, classes=10, seed=0)"
    with signed("networks.build"):
        check_number("classes", classes, Number(1, whole=True), example)
        check_number("seed", seed, Number(whole=True, optional=True), example)
        shape = options.get("input_shape", ())
        sizes = shape if isinstance(shape, Sequence) else [shape]
        if not all(Number(1, whole=True).accepts(size) for size in sizes):
            raise InvalidValueError(
                f"got input_shape={shape!r}; it takes whole numbers of at least 1, e.g. input_shape={defaults['input_shape']}."
            )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # not CUDA's, which is not forked
        network = builder(classes=classes, **{**defaults, **options})
        for module in network.modules():
            if isinstance(module, BoundedBatchNorm2d):
                module.reset_gamma()
    if weights is not None:
        _load_weights(network, name, find_weights(name, weights))
    return network


def _load_weights(network: nn.Module, name: str, path: Path) -> None:
    """Set parameters and buffers to those of a file; raise a ValueError that names the file where they do not fit."""
    try:
        tensors, _ = read_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"networks.build({name!r}) got weights that cannot be read: {error}. Write them with safetensors: "
            f"safetensors.torch.save_file(model.state_dict(), {str(path)!r})."
        ) from error
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    stored = {key: tuple(value.shape) for key, value in tensors.items()}
    missing = [key for key in expected if key not in stored and not key.endswith("num_batches_tracked")]
    wrong = missing + [key for key in stored if stored[key] != expected.get(key)]
    if wrong:
        here, there = (shapes.get(wrong[0], "none") for shapes in (expected, stored))
        raise ValueError(
            f"networks.build({name!r}) got the weights of another network, {path}: the shape of {wrong[0]} is {here} in "
            f"{name} and {there} in the file. Build the network that the file was written for, e.g. with its classes= or "
            "input_shape=."
        )
    network.load_state_dict(tensors, strict=False)
