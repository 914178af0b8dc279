"""Widths: what modules say of their own sizes, brought into line with their tensors after a cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from isometry.networks.attention import can_lose_heads, narrow
from isometry.networks.modules import is_transposed
from isometry.networks.units import is_transposed_linear, unit_weight
from isometry.surgery.groups import Cut, UnitGroup

__all__ = ["Convolution", "Widths", "original_convolutions", "resize"]

_WIDTHS = re.compile(
    r"all_head|split_size|(^|_)(embed|hidden|inner|attn|attention|model|proj|value|key|qkv?)_?(dim|size)$|^dim$|^d_model$"
)
_SIZES = re.compile(
    r"dim|size|width|channel|feature|hidden|embed|unit|filter|plane|neuron|shape|model|length|^(d|c|n|nf|nx|in|out|inp|oup)$|_(in|out)$|^(in|out)_"
)
"""What sizes are called; an integer of the same value with another name, an interval for instance, is not one."""
_OWN = (nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.PReLU)
_HEADS = re.compile(r"(^|_)heads?$")


class Convolution(NamedTuple):
    """The sizes of a convolution."""

    in_channels: int
    out_channels: int
    groups: int


def original_convolutions(model: nn.Module) -> dict[str, Convolution]:
    """Return {name: sizes} of all convolutions of a network."""
    return {
        name: Convolution(module.in_channels, module.out_channels, module.groups)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    }


class Widths:
    """The sizes before one group is cut, and what has to follow from them."""

    def __init__(self, model: nn.Module, group: UnitGroup, originals: Mapping[str, Convolution]) -> None:
        self._model, self._group = model, group
        self._sizes: dict[tuple[str, int], int] = {}
        self._convolutions: dict[str, Convolution] = {}
        for cut in group.cuts:
            owner, _, key = cut.tensor.rpartition(".")
            module = model.get_submodule(owner)
            tensor = getattr(module, key)
            sizes = (tensor,) if isinstance(tensor, int) else tensor.shape if isinstance(tensor, Tensor) else tensor
            self._sizes[cut.tensor, cut.dim] = sizes[cut.dim]
            if isinstance(module, nn.modules.conv._ConvNd):
                self._convolutions[owner] = originals[owner]

    def before(self, cut: Cut) -> int:
        """Return the size of the dimension before this group is cut."""
        return self._sizes[cut.tensor, cut.dim]

    def shorten_shape(self, module: Any, size: int) -> None:
        """Set the shape of a LayerNorm, or the number of channels of an InstanceNorm, without weights."""
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (size,)
        else:
            module.num_features = size

    def adapt(self, removed: int) -> None:
        """Bring the attributes of all modules concerned into line, after `removed` units were cut."""
        owners = {cut.tensor.rpartition(".")[0]: cut for cut in self._group.cuts}
        for owner in owners:
            module = self._model.get_submodule(owner)
            resize(module, self._convolutions.get(owner, module))
            if can_lose_heads(module):
                narrow(module)  # type: ignore[arg-type]
            if not unit_weight(module) and not isinstance(module, (nn.modules.batchnorm._NormBase, *_OWN)):
                self._adapt_sizes(owner, module)
        if self._group.heads:
            self._adapt_heads(removed)

    def _adapt_sizes(self, owner: str, module: nn.Module) -> None:
        """Give attributes that hold a size before the cut, by name and value, the size after it, in a layer of somebody else's."""
        for cut in self._group.cuts:
            at, _, key = cut.tensor.rpartition(".")
            if at != owner:
                continue
            before, after = self.before(cut), getattr(module, key).shape[cut.dim]
            for name, value in vars(module).items():
                if type(value) is int and value == before > 1 and _SIZES.search(name.lower()):
                    setattr(module, name, after)

    def _adapt_heads(self, removed: int) -> None:
        """Give the attention module of a group its new number of heads, and its new width."""
        units, kept = self._group.units, self._group.units - removed
        widths = {
            member.width: member.width // units * kept
            for member in (*self._group.of("units"), *self._group.of("inputs"))
            if member.width % units == 0 and member.width > units
        }
        paths = [member.layer.split(".")[:-1] for member in self._group.members]
        common = paths[0]
        for path in paths[1:]:
            common = [a for a, b in zip(common, path, strict=False) if a == b] if path != common else common
        for module in self._model.get_submodule(".".join(common)).modules():
            if unit_weight(module) or type(module).__module__.startswith("torch.nn"):
                continue
            for name, value in list(vars(module).items()):
                if type(value) is not int or value <= 0:
                    continue
                if _HEADS.search(name) and value % units == 0:
                    if name != "num_key_value_groups":
                        setattr(module, name, value // units * kept)
                elif value in widths and _WIDTHS.search(name):
                    setattr(module, name, widths[value])


def resize(module: Any, before: Any) -> None:
    """Set a layer's channel counts from the shapes of its tensors.

    Args:
        module: any layer.
        before: a convolution's `in_channels`, `out_channels` and `groups` in the original network.
    """
    weight = getattr(module, "weight", None)
    if is_transposed_linear(module):
        module.nx, module.nf = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.conv._ConvNd):
        transposed = is_transposed(module)
        if before.groups > 1 and before.groups == before.in_channels:
            # Depthwise: as many filters per channel as before.
            filters = len(module.weight) * (module.weight.shape[1] if transposed else 1)
            module.groups = filters // (before.out_channels // before.in_channels)
        first, second = module.weight.shape[:2]
        module.in_channels, module.out_channels = (
            (first, second * module.groups) if transposed else (second * module.groups, first)
        )
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        channels = module.running_mean if module.running_mean is not None else weight
        module.num_features = len(channels) if channels is not None else module.num_features
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        each = module.num_groups == module.num_channels
        module.num_channels = len(weight)
        module.num_groups = module.num_channels if each else module.num_groups
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
