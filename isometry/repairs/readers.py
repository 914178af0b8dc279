"""Readers: the layers of a pruned network that read removed units, and what their outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from isometry.errors import InvalidValueError, join_names
from isometry.networks.modules import BATCH_NORMS, UNIT_LAYERS, feeding_layers, hooked, is_transposed
from isometry.repairs.orthogonalization import check_own_weight

__all__ = ["Reader", "Sums", "find_readers"]

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)


@dataclass(frozen=True)
class Reader:
    """A layer that reads removed units.

    Attributes:
        layer: its name.
        norm: the name of the BatchNorm that follows it; None where none does.
        summed: whether the output of the layer, or of its BatchNorm, is added to another tensor of its shape.
    """

    layer: str
    norm: str | None
    summed: bool

    @property
    def last(self) -> str:
        """The name of the module whose output is matched."""
        return self.norm or self.layer


class Sums(TorchFunctionMode):
    """While active, calls `seen(name, output, other)` before one of the expected tensors is added to another one."""

    def __init__(self, seen: Callable[[str, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._seen = seen
        self._expected: dict[int, tuple[str, Tensor, int]] = {}

    def expect(self, name: str, output: Tensor) -> None:
        """Wait for the sum that an output goes into; the name is for `seen`."""
        self._expected[id(output)] = (name, output, output._version)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS and not kwargs and all(isinstance(part, Tensor) for part in args[:2]):
            for one, other in (args, args[::-1]):
                name, _, version = self._expected.pop(id(one), ("", None, 0))
                # What changed the output in place, an activation for instance, stands between it and the sum.
                if name and one.shape == other.shape and one._version == version:
                    self._seen(name, one, other)
        return func(*args, **(kwargs or {}))


def find_readers(model: nn.Module, reference: nn.Module, inputs: Tensor, everything: bool = False) -> list[Reader]:
    """Return the layers of `model` that read fewer units than in `reference`, in the order of the forward pass.

    Layers of the same widths count too where they have weights of exactly 0 that `reference` does not have (a mask).

    Args:
        model: the pruned network, in eval mode.
        reference: the network before pruning, likewise.
        inputs: [B, ...], a batch for both.

    Raises:
        InvalidValueError: the networks differ in more than widths; or a layer among them cannot be solved for.
    """
    layers, originals = _unit_layers(model), _unit_layers(reference)
    _check_architecture(layers, originals)
    calls, found = _trace(model, inputs), _trace(reference, inputs)
    if [tensor.shape for tensor in calls.outputs] != [tensor.shape for tensor in found.outputs]:
        raise InvalidValueError(
            f"got a model whose outputs have the shapes {[tuple(t.shape) for t in calls.outputs]}, and a reference with "
            f"{[tuple(t.shape) for t in found.outputs]}; it takes the network before pruning, e.g. repair(pruned, reference=dense, data=x)."
        )
    readers: list[Reader] = []
    for name in calls.counts:
        if _reads_removed(layers[name], originals[name]) or (everything and readers):
            _check_solvable(name, layers[name], calls.counts[name])
            norm = calls.norms.get(name)
            if norm != found.norms.get(name):
                norm = None
            summed = (norm or name) in calls.summed & found.summed
            readers.append(Reader(name, norm, summed))
    return readers


def _unit_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, UNIT_LAYERS)}


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _units(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _check_architecture(layers: Mapping[str, Any], originals: Mapping[str, Any]) -> None:
    """Raise an InvalidValueError unless the layers are those of the reference with at most as many inputs and units."""
    advice = "It takes the network before pruning, e.g. repair(pruned, reference=dense, data=x)."
    if not layers or list(layers) != list(originals):
        only = sorted(set(layers) ^ set(originals)) or list(layers)
        raise InvalidValueError(
            f"got a model and a reference of different layers: {join_names(only) or 'none'} {'is' if len(only) == 1 else 'are'} "
            f"not in both. {advice}"
        )
    for name, layer in layers.items():
        original = originals[name]
        same = type(layer) is type(original) and all(
            getattr(layer, key, None) == getattr(original, key, None) for key in ("kernel_size", "stride", "padding")
        )
        if not same or _inputs(layer) > _inputs(original) or _units(layer) > _units(original):
            raise InvalidValueError(f"got a reference whose {name} is {original}, and a model with {layer}. {advice}")


def _reads_removed(layer: Any, original: Any) -> bool:
    """Whether a layer has fewer inputs than the original; or the same weights but for more zeros."""
    if _inputs(layer) != _inputs(original):
        return True
    if layer.weight.shape != original.weight.shape:
        return False
    return bool(((layer.weight == 0) & (original.weight != 0).to(layer.weight.device)).any())


def _check_solvable(name: str, layer: nn.Module, calls: int) -> None:
    check_own_weight(name, layer)
    reason = "is a transposed convolution" if is_transposed(layer) else "runs more than once" if calls > 1 else None
    if reason:
        raise InvalidValueError(
            f"cannot solve for the weight of {name} ({type(layer).__name__}), which reads removed units and {reason}. "
            f"Leave the layers before it unpruned, or use another repair, e.g. recalibrate(model, data)."
        )


@dataclass(frozen=True)
class _Trace:
    """What one forward pass shows.

    Attributes:
        counts: {layer: how often it ran}, in the order in which layers finish first.
        norms: {layer: the BatchNorm that follows}.
        summed: layers and BatchNorms whose outputs are added to another tensor of their shape.
        outputs: the network's.
    """

    counts: dict[str, int]
    norms: dict[str, str]
    summed: set[str]
    outputs: list[Tensor]


def _trace(model: nn.Module, inputs: Tensor) -> _Trace:
    modules = {n: m for n, m in model.named_modules() if isinstance(m, (*UNIT_LAYERS, *BATCH_NORMS))}
    counts: dict[str, int] = {}
    summed: set[str] = set()

    def add(name: str, output: Tensor, other: Tensor) -> None:
        summed.add(name)

    sums = Sums(add)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, result: Tensor) -> None:
            if isinstance(module, UNIT_LAYERS):
                counts[name] = counts.get(name, 0) + 1
            sums.expect(name, result)

        return hook

    with hooked(*(module.register_forward_hook(watch(name)) for name, module in modules.items())), sums:
        pairs, outputs = feeding_layers(model, lambda: model(inputs))
    norms = {layer: norm for layer, norm in pairs if model.get_submodule(norm).track_running_stats}
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return _Trace(counts, norms, summed, tensors)
