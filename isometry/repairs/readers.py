"""Readers: the layers of a pruned network that read removed units, and what their outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from isometry.errors import InvalidValueError, join_names
from isometry.networks import placed
from isometry.networks.masks import computed_weight
from isometry.networks.modules import (
    BATCH_NORMS,
    UNIT_LAYERS,
    call,
    feeding_layers,
    hooked,
    is_transposed,
    output_leaves,
)
from isometry.networks.units import is_transposed_linear

__all__ = ["Reader", "Sums", "find_readers", "find_unrepaired"]

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
_WITHOUT_INPUTS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
_ADVICE = "It takes the network before pruning, e.g. repair(pruned, reference=dense, data=x)."


@dataclass(frozen=True)
class Reader:
    """A layer to solve for.

    Attributes:
        layer: its name.
        norm: the name of the BatchNorm that follows it; None where none does.
        summed: whether the output of the layer, or of its BatchNorm, is added to another tensor of its shape.
        cut: whether it reads removed units itself, rather than what other layers made of them.
    """

    layer: str
    norm: str | None
    summed: bool
    cut: bool

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


def find_readers(
    model: nn.Module, reference: nn.Module, inputs: Any, *, downstream: bool, outputs: bool
) -> list[Reader]:
    """Return the layers of `model` that read fewer units than in `reference`, in the order of the forward pass.

    Layers of the same widths count too where they have weights of exactly 0 that `reference` does not have (a mask).

    Args:
        model: the pruned network, in eval mode.
        reference: the network before pruning, likewise.
        inputs: [B, ...], a batch for both.
        downstream: whether the hidden layers after the first of them that can be solved for count, too.
        outputs: whether layers that give the network's outputs do.

    Raises:
        InvalidValueError: the networks differ in more than widths; or a layer among them cannot be solved for.
    """
    layers, originals = _unit_layers(model), _unit_layers(reference)
    _check_architecture(layers, originals)
    pruned, dense = _trace(model, inputs), _trace(reference, inputs)
    if pruned.shapes != dense.shapes:
        raise InvalidValueError(
            f"got a model with outputs of {pruned.shapes} and a reference with outputs of {dense.shapes}. {_ADVICE}"
        )
    # torch's own attention does not run its output projection as a module: there is nothing to compare with.
    hidden = pruned.counts.keys() - dense.counts.keys()
    cut = [name for name, layer in layers.items() if name not in hidden and _reads_removed(layer, originals[name])]
    for name in cut:
        if reason := _unsolvable(layers[name], pruned.counts.get(name, 0)):
            raise InvalidValueError(
                f"cannot solve for {name} ({type(layers[name]).__name__}), which reads removed units and {reason}. Keep the "
                "units before it (prune(..., layers=...)), or use another repair, e.g. recalibrate(pruned, x)."
            )
    readers: list[Reader] = []
    for name, count in pruned.counts.items():
        if name in hidden:
            continue
        wanted = outputs if name in pruned.outputs else downstream
        if name in cut or (wanted and readers and not _unsolvable(layers[name], count)):
            norm = pruned.norms.get(name) if pruned.norms.get(name) == dense.norms.get(name) else None
            readers.append(Reader(name, norm, (norm or name) in pruned.summed & dense.summed, name in cut))
    return readers


def find_unrepaired(model: nn.Module, reference: nn.Module, readers: Sequence[Reader]) -> list[str]:
    """Return the modules that read removed units, or may, and that are no layers that could be solved for.

    These are output projections inside torch's attention, linear layers with transposed weights, and modules with matrices of
    their own that are narrower than in `reference`.
    """
    solved, originals, names = {reader.layer for reader in readers}, dict(reference.named_modules()), list[str]()
    for name, module in model.named_modules():
        original: Any = originals.get(name)
        if original is None or name in solved or isinstance(module, nn.MultiheadAttention):
            continue
        if isinstance(module, UNIT_LAYERS):
            reads = _reads_removed(module, original)
        elif is_transposed_linear(module):
            reads = len(module.weight) != len(original.weight)
        else:
            before, known = dict(original.named_parameters(recurse=False)), isinstance(module, _WITHOUT_INPUTS)
            own = module.named_parameters(recurse=False)
            reads = not known and any(p.ndim > 1 and key in before and p.shape != before[key].shape for key, p in own)
        if reads:
            names.append(name or type(module).__name__)
    return names


def _unit_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, UNIT_LAYERS)}


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _units(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _check_architecture(layers: Mapping[str, Any], originals: Mapping[str, Any]) -> None:
    """Raise an InvalidValueError unless the layers are those of the reference with at most as many inputs and units."""
    if list(layers) != list(originals):
        only = sorted(set(layers) ^ set(originals)) or sorted(layers)
        raise InvalidValueError(
            f"got a model and a reference that differ in their layers: {join_names(only)}. {_ADVICE}"
        )
    for name, layer in layers.items():
        original = originals[name]
        kinds = [parametrize.type_before_parametrizations(module) for module in (layer, original)]
        same = kinds[0] is kinds[1] and all(
            getattr(layer, key, None) == getattr(original, key, None) for key in ("kernel_size", "stride", "padding")
        )
        if not same or _inputs(layer) > _inputs(original) or _units(layer) > _units(original):
            raise InvalidValueError(
                f"got a reference in which {name} is {original}, and a model with {layer}. {_ADVICE}"
            )


def _reads_removed(layer: Any, original: Any) -> bool:
    """Whether a layer has fewer inputs than the original; or the same weights but for more zeros."""
    if _inputs(layer) != _inputs(original):
        return True
    if layer.weight.shape != original.weight.shape:
        return False
    return bool(((layer.weight == 0) & (original.weight != 0).to(layer.weight.device)).any())


def _unsolvable(layer: nn.Module, calls: int) -> str | None:
    """Return why a layer that runs so often cannot be solved for, None where it can."""
    if is_transposed(layer):
        return "is a transposed convolution"
    if computed_weight(layer):
        return "has a weight that is computed from other parameters"
    return None if calls == 1 else f"runs {calls} times in a forward pass"


@dataclass(frozen=True)
class _Trace:
    """What one forward pass shows.

    Attributes:
        counts: {layer: how often it ran}, in the order in which layers finish first.
        norms: {layer: the BatchNorm with running statistics that reads its output}.
        summed: layers and BatchNorms whose outputs are added to another tensor of their shape.
        outputs: layers whose outputs are the network's.
        shapes: of the network's outputs.
    """

    counts: dict[str, int]
    norms: dict[str, str]
    summed: set[str]
    outputs: set[str]
    shapes: list[tuple[int, ...]]


def _trace(model: nn.Module, inputs: Any) -> _Trace:
    modules = {n: m for n, m in model.named_modules() if isinstance(m, (*UNIT_LAYERS, *BATCH_NORMS))}
    counts: dict[str, int] = {}
    results: dict[str, Tensor] = {}
    summed: set[str] = set()
    sums = Sums(lambda name, output, other: summed.add(name))

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, result: Tensor) -> None:
            if isinstance(module, UNIT_LAYERS):
                counts[name] = counts.get(name, 0) + 1
                results[name] = result
            sums.expect(name, result)

        return hook

    with hooked(*(module.register_forward_hook(watch(name)) for name, module in modules.items())), sums:
        pairs, returned = feeding_layers(model, lambda: call(model, placed(inputs, model)))
    tensors = [leaf for leaf in output_leaves(returned) if isinstance(leaf, Tensor)]
    outputs = {name for name, result in results.items() if any(result is tensor for tensor in tensors)}
    return _Trace(counts, dict(pairs), summed, outputs, [tuple(tensor.shape) for tensor in tensors])
