"""Candidates: what kinds of input a network may take, as its attributes, its configuration and its first layers suggest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.data.nests import map_tensors, tensors_in
from isometry.networks.modules import is_transposed

__all__ = ["Candidates", "InputSpec", "describe_inputs", "list_candidates"]

_SIZES = (32, 28, 64, 96, 128, 224, 256, 299, 384, 512)  # CIFAR's and MNIST's, then ascending
_UNUSUAL = (8, 16, 48, 112, 160, 192, 448)
_LONG = (1024, 4096, 16000)  # signals of one dimension
_LENGTH = 16  # tokens of a sequence, where any number is accepted
_LENGTHS = (_LENGTH, 8, 32, 64, 128, 256, 512, 1024, 2048)
_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)
_KINDS = 6  # first layers of different kinds that are tried


@dataclass(frozen=True)
class InputSpec:
    """What one input of a network is like.

    Attributes:
        shape: of one input.
        vocabulary: the number of different token ids; None for floating point inputs.
        embedding: name of the module that embeds token ids, where derivatives can start; None where that is not known.
        reason: how that is known, in words; empty where the network says so itself.
    """

    shape: tuple[int, ...]
    vocabulary: int | None = None
    embedding: str | None = None
    reason: str = ""

    @classmethod
    def of(cls, inputs: Tensor) -> InputSpec:
        """Return that of a batch of inputs [B, ...]."""
        integers = not inputs.is_floating_point() and not inputs.is_complex()
        return cls(tuple(inputs.shape[1:]), int(inputs.max()) + 1 if integers and inputs.numel() else None)

    def draw(self, model: nn.Module, count: int, seed: int = 0) -> Tensor:
        """Return `count` inputs on the model's device: [count, ...], standard normal ones, or uniform token ids.

        Floating point inputs have the dtype of the model's first floating point parameter.
        """
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary is not None:
            return torch.randint(self.vocabulary, (count, *self.shape), generator=generator).to(like.device)
        return torch.randn(count, *self.shape, generator=generator).to(like.device, like.dtype)

    def __str__(self) -> str:
        kind = "standard normal inputs" if self.vocabulary is None else f"random token ids below {self.vocabulary}"
        return f"{kind} of shape {self.shape}"


def describe_inputs(inputs: Any) -> Any:
    """Return the `InputSpec` of a batch's inputs, or a tuple or dict of those of several; None where they are not alike.

    Args:
        inputs: a tensor [B, ...], or a tuple or dict of tensors; those that all samples share cannot be described.
    """
    tensors = tensors_in(inputs)
    if len({len(tensor) if tensor.ndim else 0 for tensor in tensors}) != 1:
        return None
    of: Any = InputSpec.of
    return map_tensors(inputs, of)


@dataclass(frozen=True)
class Candidates:
    """Inputs of one kind that a network may take.

    Attributes:
        specs: in the order in which they are tried.
        layer: name and kind of the layer that suggests them, in words.
        sized: whether they differ in size alone, so that one is preferred that leaves some extent before the head.
    """

    specs: tuple[InputSpec, ...]
    layer: str
    sized: bool = False


def list_candidates(model: nn.Module) -> Iterator[Candidates]:
    """Yield the candidates, the likeliest first: by the model's stated size, by its first layers, as images.

    Stated are `image_size`, `img_size` or `in_size` of its `config` or of a module, `num_channels`, `vocab_size` and
    `max_position_embeddings` of its `config`.
    """
    seen: set[tuple[Any, ...]] = set()
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None or kind in seen or len(seen) == _KINDS:
            continue
        seen.add(kind)
        yield from _of_kind(model, *kind, f"{name or 'the model'} ({type(module).__name__})")
    if any(kind[0] in ("features", "sequence") for kind in seen):  # the layer may read patches
        layer = next(f"{name} ({type(module).__name__})" for name, module in model.named_modules() if _kind(module))
        for channels in (3, 1):
            yield from _of_kind(model, "images", channels, 2, layer)


def _kind(module: nn.Module) -> tuple[str, int, int] | None:
    """Return (what a layer reads, how many channels, features or tokens, spatial dimensions)."""
    layer: Any = module
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "tokens", layer.num_embeddings, 0
    if isinstance(module, nn.modules.conv._ConvNd):
        return "latents" if is_transposed(module) else "images", layer.in_channels, len(layer.kernel_size)
    if isinstance(module, nn.BatchNorm1d):
        return "features", layer.num_features, 0
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
        dimensions = next((d for d in (1, 2, 3) if f"{d}d" in type(module).__name__), 2)
        return "images", layer.num_features, dimensions
    if isinstance(module, _SEQUENTIAL):
        return "sequence", layer.input_size if isinstance(module, nn.RNNBase) else layer.embed_dim, 0
    if isinstance(module, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return "features", layer.normalized_shape[0], 0
    if next(module.parameters(recurse=False), None) is None:
        return None
    features, channels = getattr(module, "in_features", None), getattr(module, "in_channels", None)
    if isinstance(features, int):
        return "features", features, 0
    if isinstance(channels, int):
        kernel = getattr(module, "kernel_size", None)
        return "images", channels, len(kernel) if isinstance(kernel, tuple) else 2
    return None


def _of_kind(model: nn.Module, kind: str, count: int, dimensions: int, layer: str) -> Iterator[Candidates]:
    reason = f"what {layer} takes"
    if kind == "tokens":
        yield _tokens(model, count, layer)
    elif kind in ("features", "sequence"):
        shapes = [(count,), *((length, count) for length in _LENGTHS)]
        if kind == "sequence" or any(isinstance(module, _SEQUENTIAL) for module in model.modules()):
            shapes = [*shapes[1:], shapes[0]]  # these layers take [B, F] for one sequence
        yield Candidates(_specs(shapes, reason), layer)
    elif kind == "latents":
        shapes = [(count, *[side] * dimensions) for side in (1, 4, 8, *_SIZES)]
        yield Candidates(_specs(shapes, reason), layer)
    else:
        stated = _number(_config(model, "num_channels"))
        for channels in dict.fromkeys([count] if stated is None else [stated, count]):
            yield from _images(model, channels, dimensions, layer)


def _images(model: nn.Module, channels: int, dimensions: int, layer: str) -> Iterator[Candidates]:
    stated = [(channels, *size) for size in _stated_sizes(model, dimensions)]
    yield Candidates(_specs(stated, "the size that the model states"), layer)
    sizes = (*_SIZES, *_UNUSUAL, *(_LONG if dimensions == 1 else ()))
    yield Candidates(
        _specs([(channels, *[side] * dimensions) for side in sizes], f"by trying, from {layer}"), layer, True
    )
    if dimensions == 1 and channels == 1:  # a signal whose channel the model adds itself
        yield Candidates(_specs([(side,) for side in sizes], f"by trying, from {layer}"), layer)


def _tokens(model: nn.Module, count: int, layer: str) -> Candidates:
    stated, limit = _number(_config(model, "vocab_size")), _number(_config(model, "max_position_embeddings"))
    positions = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    # Learned positions that are added as they are: [T, D] or [1, T, D].
    positions += [p.shape[-2] for name, p in model.named_parameters() if "pos" in name.lower() and p.ndim in (2, 3)]
    lengths = [length for length in (*_LENGTHS, *positions) if limit is None or length <= limit]
    if limit is not None:
        lengths.append(limit)
    vocabulary = min(count, stated or count)
    specs = _specs([(length,) for length in dict.fromkeys(lengths)], f"what {layer} takes")
    return Candidates(tuple(replace(spec, vocabulary=vocabulary) for spec in specs), layer)


def _specs(shapes: list[tuple[int, ...]], reason: str) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(shape, reason=reason) for shape in shapes)


def _config(model: nn.Module, name: str) -> Any:
    """Return an entry of the model's `config`, an object or a mapping; None where there is none."""
    config = getattr(model, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _stated_sizes(model: nn.Module, dimensions: int) -> Iterator[tuple[int, ...]]:
    """Yield the spatial sizes that the model's configuration or its modules state."""
    names = ("image_size", "img_size", "in_size")
    values = [_config(model, name) for name in names]
    values += [getattr(module, name, None) for module in model.modules() for name in names]
    sizes: dict[tuple[int, ...], None] = {}
    for value in values:
        sides = [value] * dimensions if _number(value) else value
        if isinstance(sides, list | tuple) and len(sides) == dimensions and all(map(_number, sides)):
            sizes[tuple(sides)] = None
    yield from sizes
