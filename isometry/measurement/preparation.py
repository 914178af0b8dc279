"""Preparation: what is measured, settled at two samples before the first estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, is_out_of_memory, join_names
from isometry.measurement.batch import Batch
from isometry.measurement.checks import check_per_sample, describe_nonfinite
from isometry.measurement.folding import fold_network
from isometry.measurement.function import NetworkFunction
from isometry.measurement.layers import LayerOutputs, find_layers, select_layers
from isometry.measurement.options import Options
from isometry.networks import required_inputs
from isometry.networks.modules import hooked

__all__ = ["Bottleneck", "Subject", "count_outputs", "prepare", "sample_shape"]

_REFUSALS = (
    RuntimeError,
    IndexError,
    AttributeError,
    NotImplementedError,
    TypeError,
    ValueError,
    KeyError,
    AssertionError,
)
_BOTTLENECK_FROM = 16  # below this rank, two Jacobians cost more than they save
FORWARDS, PRODUCTS = 6, 4
"""What preparation costs, in samples: two passes of the outputs, one with a graph and two gradients, single samples."""


@dataclass(frozen=True)
class Bottleneck:
    """A module narrower than the rank that everything from input to output passes through.

    Attributes:
        name: the module.
        width: entries of its output, per sample.
    """

    name: str
    width: int


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        function: the network as the user has it, in the precision of the computation.
        fast: the function that is differentiated: that of an equivalent folded copy, else `function` itself.
        rows: outputs per sample, m.
        columns: differentiated inputs per sample, n.
        layers: the layers to report on, or None.
        bottleneck: that of the network, or None.
        dtype: precision that inputs are converted to; None leaves them as they are.
        notes: how it will be measured, in words.
    """

    function: NetworkFunction
    fast: NetworkFunction
    rows: int
    columns: int
    layers: LayerOutputs | None = None
    bottleneck: Bottleneck | None = None
    dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The number of singular values per sample, min(m, n)."""
        return min(self.rows, self.columns)

    def converted(self, batch: Batch) -> Batch:
        """Return a batch in the precision of the computation."""
        return batch if self.dtype is None else batch.to(self.dtype)

    def fast_input(self, batch: Batch) -> Tensor:
        """Return the differentiated input in the memory layout that suits the fast function: [B, ...]."""
        x = self.fast.differentiated_input(batch)
        folded = self.fast is not self.function
        return x.contiguous(memory_format=torch.channels_last) if folded and x.ndim == 4 else x


def prepare(function: NetworkFunction, batch: Batch, options: Options) -> Subject:
    """Check a network at two samples of a batch, and settle precision, fast copy, layers and bottleneck.

    Args:
        function: of the network, its state preserved.
        batch: the first one.
        options: of the measurement.

    Raises:
        ValueError, TypeError: the network or its inputs cannot be measured; the message says what to do.
    """
    notes = []
    x = _differentiated_input(function, batch.part(0, 1))
    dtype = options.dtype
    if dtype is None and x.dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
        notes.append(f"computed in float32, the model is in {str(x.dtype).removeprefix('torch.')}")
    if not x.is_floating_point():
        raise InvalidTypeError(
            f"got wrt={batch.key!r}, an input of dtype {x.dtype}, which has no derivative. Name a floating point one, or "
            "start after the embedding, e.g. measure(model, inputs, at='embedding')."
        )
    if function.at is None and not bool(torch.isfinite(x).all()):
        raise InvalidValueError(
            "got inputs with NaN or infinite entries; all must be finite, e.g. "
            "measure(model, torch.nan_to_num(inputs))."
        )
    if dtype is not None:
        function, batch = function.in_dtype(dtype), batch.to(dtype)
    pair = batch.pair()
    outputs = _outputs(function, pair)
    if not bool(torch.isfinite(outputs).all()):
        raise InvalidValueError(describe_nonfinite(function, pair))
    check_per_sample(function, pair, outputs)
    layers: LayerOutputs | None = None
    if options.layers is not False:
        names = [name for name in select_layers(function.model, options.layers) if name != function.at]
        layers, unconnected = find_layers(function, pair, names)
        if unconnected:
            notes.append(f"without {join_names(unconnected)}: not between the input and the output")
    folded = fold_network(function, pair, frozenset(layers.names if layers else ()))
    if folded is not None:
        notes.append("on an equivalent copy: BatchNorm folded where possible, channels last")
    columns = function.differentiated_input(pair)[0].numel()
    subject = Subject(function, folded or function, outputs[0].numel(), columns, layers, None, dtype, tuple(notes))
    if subject.rank > _BOTTLENECK_FROM and options.layers is False and function.at is None:
        bottleneck = _find_bottleneck(function, pair, subject.rank)
        if bottleneck is not None:
            note = f"through the bottleneck at {bottleneck.name} ({bottleneck.width} of {subject.rank})"
            subject = replace(subject, bottleneck=bottleneck, notes=(*subject.notes, note))
    return subject


def sample_shape(function: NetworkFunction, batch: Batch) -> tuple[int, ...]:
    """Return the shape of one sample of the differentiated input."""
    return tuple(_differentiated_input(function, batch.part(0, 1)).shape[1:])


def count_outputs(function: NetworkFunction, batch: Batch) -> int:
    """Return the number of outputs per sample."""
    return _outputs(function, batch)[0].numel()


def _differentiated_input(function: NetworkFunction, batch: Batch) -> Tensor:
    try:
        return function.differentiated_input(batch)
    except (InvalidValueError, InvalidTypeError):
        raise
    except _REFUSALS as error:
        raise _refusal(function, batch, error) from error


def _outputs(function: NetworkFunction, batch: Batch) -> Tensor:
    try:
        return function.outputs(batch)
    except (InvalidValueError, InvalidTypeError):
        raise
    except _REFUSALS as error:
        raise _refusal(function, batch, error) from error


def _refusal(function: NetworkFunction, batch: Batch, error: BaseException) -> Exception:
    """Return the error to raise where the network does not accept its inputs."""
    x = batch.values
    if is_out_of_memory(error):
        return RuntimeError(f"measure() ran out of memory at two samples: {error}")
    dtype = next((p.dtype for p in function.model.parameters() if p.is_floating_point()), None)
    if isinstance(x, Tensor) and x.is_floating_point() and dtype not in (None, x.dtype):
        return InvalidValueError(
            f"got inputs of dtype {x.dtype} for a model in {dtype} ({error}). Convert one of them, e.g. "
            f"measure(model, inputs.to({dtype}))."
        )
    needed = required_inputs(function.model)
    if isinstance(x, Tensor) and needed is not None and len(needed) > 1:
        return InvalidValueError(
            f"got one input for a model that takes {len(needed)}, {', '.join(needed)} ({error}). Pass all of them and say which "
            f"one is differentiated, e.g. measure(model, ({', '.join(needed)}), wrt=0)."
        )
    tensor = isinstance(x, Tensor)
    arrived = f"inputs of shape {tuple(x.shape)}, dtype {x.dtype}" if tensor else f"a batch of {type(x).__name__}"
    return InvalidValueError(
        f"got {arrived}, which the model does not accept ({error}). Pass inputs of the shape it was built for, e.g. "
        "measure(model, torch.randn(64, *shape))."
    )


@torch.no_grad()
def _find_bottleneck(function: NetworkFunction, pair: Batch, rank: int) -> Bottleneck | None:
    """Return the narrowest module that everything passes through, if one has at most 0.8 times the rank."""
    widths: dict[str, int] = {}
    runs: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.ndim > 1 and len(result) == 2 and result.is_floating_point():
                widths[name] = result[0].numel()
                runs[name] = runs.get(name, 0) + 1

        return hook

    named = [(name, module) for name, module in function.model.named_modules() if name]
    with hooked(*(module.register_forward_hook(note(name)) for name, module in named)):
        _outputs(function, pair)
    narrow = [name for name, width in widths.items() if width <= 0.8 * rank and runs[name] == 1]
    for name in sorted(narrow, key=widths.__getitem__)[:3]:
        rest = replace(function, at=name)
        # With the module's output fixed, nothing else may carry the input to the output.
        x = rest.differentiated_input(pair)
        shifted = pair.shifted()
        if torch.equal(rest.bound_to(pair)(x), rest.bound_to(shifted)(rest.differentiated_input(pair))):
            return Bottleneck(name, widths[name])
    return None
