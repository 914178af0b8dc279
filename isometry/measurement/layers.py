"""Layer by layer: where in a network the Jacobian's singular values are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError, join_names
from isometry.measurement.batch import Batch
from isometry.measurement.function import NetworkFunction
from isometry.measurement.operators import operator_statistics
from isometry.networks.modules import clone_output, first_tensor, hooked
from isometry.spectra import Spectrum, mean_with_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LayerOutputs", "find_layers", "layer_table", "select_layers"]

_LISTS = (nn.Sequential, nn.ModuleList)


def select_layers(model: nn.Module, layers: bool | int | str | Sequence[str]) -> list[str]:
    """Return the names of the modules to report on.

    Args:
        model: the network.
        layers: True for its blocks: the entries of its Sequentials and ModuleLists, modules without parameters left out,
            and inside other modules down to the nearest repeated blocks, which are two or more modules of one kind, with
            modules of their own, in one list; a number for all modules of that depth; a name pattern (fnmatch) or several.

    Raises:
        ValueError: nothing matches; the message lists the modules.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layers is True:
        selected = _blocks(model, "")
    elif isinstance(layers, int):
        selected = [name for name in names if name.count(".") == layers - 1]
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        selected = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not selected:
        raise InvalidValueError(
            f"got layers={layers!r}, which matches no module; the model's are {join_names(names) or 'none'}. E.g. layers=True "
            "for its blocks, layers=1 for the outermost, layers='*conv*' for a pattern."
        )
    return selected


def _blocks(module: nn.Module, prefix: str) -> list[str]:
    blocks = []
    repeated = _is_repeated(module)
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if isinstance(child, _LISTS) or (not repeated and any(map(_is_repeated, child.modules()))):
            blocks += _blocks(child, full + ".")
        elif next(child.parameters(), None) is not None or next(child.buffers(), None) is not None:
            blocks.append(full)
    return blocks


def _is_repeated(module: nn.Module) -> bool:
    """Whether a module is a list of two or more modules of one kind that have modules of their own."""
    children = list(module.children())
    kinds = {type(child) for child in children}
    composite = all(next(child.children(), None) is not None and not isinstance(child, _LISTS) for child in children)
    return isinstance(module, _LISTS) and len(children) > 1 and len(kinds) == 1 and composite


@dataclass(frozen=True)
class LayerOutputs:
    """The layers that a measurement reports on.

    Attributes:
        names: in the order of the forward pass.
        widths: {layer: entries of its output}.
        input_sizes: {layer: spatial size of its input}.
    """

    names: tuple[str, ...]
    widths: Mapping[str, int]
    input_sizes: Mapping[str, tuple[int, ...]]

    @property
    def entries(self) -> int:
        """Entries of all layers' outputs together, per sample."""
        return sum(self.widths.values())

    @contextlib.contextmanager
    def captured(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Lend a dict in which a forward pass leaves the outputs of the layers: {layer: [B, ...]}."""
        with _capture(model, self.names) as captured:
            yield captured


@contextlib.contextmanager
def _capture(
    model: nn.Module, names: Sequence[str], input_sizes: dict[str, tuple[int, ...]] | None = None
) -> Iterator[dict[str, Tensor]]:
    captured: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            first = first_tensor(result)
            if first is not None and first.ndim and first.requires_grad:
                captured[name] = first  # of a module that runs several times, the last run
                if input_sizes is not None:
                    input_sizes[name] = tuple(args[0].shape[2:]) if args and isinstance(args[0], Tensor) else ()
            return clone_output(result)

        return record

    with hooked(*(model.get_submodule(name).register_forward_hook(hook(name)) for name in names)):
        yield captured


def find_layers(function: NetworkFunction, pair: Batch, names: Sequence[str]) -> tuple[LayerOutputs, list[str]]:
    """Return those layers that lie between the input and the output, and the names of the others.

    Args:
        function: of the network, its state preserved.
        pair: two samples.
        names: candidates.

    Raises:
        ValueError: a layer's output does not have the samples in front, or no layer lies between; a network that
            cannot be differentiated with respect to its layers.
    """
    input_sizes: dict[str, tuple[int, ...]] = {}
    with _capture(function.model, names, input_sizes) as captured:
        start = function.differentiated_input(pair).requires_grad_(True)
        outputs = function.bound_to(pair)(start)
    for name, activation in captured.items():
        if len(activation) != len(outputs):
            raise InvalidValueError(
                f"got layers= with {name}, whose output has the shape {tuple(activation.shape)} for {len(outputs)} samples; "
                "the samples must come first. Choose others, e.g. layers=['pattern'], or pass batch_first=True to recurrent "
                "and attention layers."
            )
    widths = {name: activation[0].numel() for name, activation in captured.items()}
    between = _on_the_way(outputs, start, captured)
    if outputs.requires_grad and not between:
        raise InvalidValueError(
            f"got layers= with {join_names(names)}, none of which has an output between the input and the output. Choose "
            "others, e.g. layers=True."
        )
    return LayerOutputs(tuple(between), widths, input_sizes), [name for name in names if name not in between]


def _on_the_way(outputs: Tensor, start: Tensor, captured: Mapping[str, Tensor]) -> list[str]:
    """Return the captured layers whose output has a gradient."""
    if not outputs.requires_grad:
        return []
    try:
        gradients = torch.autograd.grad(
            outputs, [*captured.values(), start], torch.ones_like(outputs), allow_unused=True
        )
    except (RuntimeError, NotImplementedError) as error:
        raise InvalidValueError(
            f"cannot differentiate this network with respect to its layers ({error}). Measure it without layers=, or make it "
            "differentiable there, e.g. checkpoint(..., use_reentrant=False)."
        ) from error
    return [name for name, gradient in zip(captured, gradients, strict=False) if gradient is not None]


def layer_table(model: nn.Module, layers: LayerOutputs, spectra: Mapping[str, Sequence[Spectrum]]) -> pd.DataFrame:
    """Return one row per layer, from input to output.

    Columns: `layer`, `kind`, `width` (entries of its output); `mean_jsv`, `sem`, `interval_low`, `interval_high`, `std_jsv`, `condition_number` of the
    map from the layer's output to the network's output; `operator_mean`, `operator_min`, `operator_max` and
    `distance` (root mean square of s - 1) of the layer's own linear map where it is one layer, and how that is known
    in `operator`: "exact", "krylov" (the mean is the middle of a bracket, min and max are bounds) or "".
    """
    import pandas as pd

    rows = []
    for name, parts in spectra.items():
        spectrum = Spectrum.pool(parts)
        estimate = mean_with_error(spectrum.sample_means)
        module = model.get_submodule(name)
        row = {
            "layer": name,
            "kind": type(module).__name__,
            "width": layers.widths[name],
            "mean_jsv": spectrum.mean,
            "sem": estimate.sem,
            "interval_low": estimate.interval[0],
            "interval_high": estimate.interval[1],
            "std_jsv": spectrum.std,
            "condition_number": spectrum.condition_number,
        }
        rows.append(row | operator_statistics(module, layers.input_sizes[name]))
    return pd.DataFrame(rows)
