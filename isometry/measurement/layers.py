"""Layer by layer: where in a network the Jacobian's singular values are lost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from isometry.measurement.jacobian import Jacobian
from isometry.networks.modules import clone_output, hooked
from isometry.spectra import (
    Convolution,
    Matrices,
    Operator,
    Spectrum,
    bidiagonalize,
    circular,
    exact,
    probes,
    singular_values,
)

__all__ = ["LayerOutputs", "select_layers"]

_DENSE_UP_TO = 600


def select_layers(model: nn.Module, layers: bool | int | str | Sequence[str]) -> list[str]:
    """Return the names of the modules to report on.

    Args:
        model: the network.
        layers: True for its blocks (what stands in its Sequentials, parameter-free leaves left out); a number for all
            modules of that depth; a name pattern (fnmatch) or several.

    Raises:
        ValueError: nothing matches; the message lists the modules.
    """
    names = {name: module for name, module in model.named_modules() if name}
    if layers is True:
        found = _blocks(model, "")
    elif isinstance(layers, int):
        found = [name for name in names if name.count(".") == layers - 1]
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        raise ValueError(
            f"measure() got layers={layers!r}, which matches no module; the model's are {', '.join(names) or 'none'}. E.g. "
            "layers=True for its blocks, layers=1 for the outermost, layers='*conv*' for a pattern."
        )
    return found


def _blocks(module: nn.Module, prefix: str) -> list[str]:
    found = []
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += _blocks(child, full + ".")
        elif next(child.parameters(), None) is not None or next(child.buffers(), None) is not None:
            found.append(full)
    return found


@dataclass
class LayerOutputs:
    """The activations of chosen layers in one forward pass, and the spectra of the maps from them to the output.

    Attributes:
        names: the layers, in the order of the forward pass once it has run.
        spectra: {layer: spectra of chunks of samples}.
        sizes: {layer: (entries of its output, spatial size of its input)}.
    """

    names: list[str]
    spectra: dict[str, list[Spectrum]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def listening(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Lend a dict in which a forward pass leaves the outputs of the layers."""
        caught: dict[str, Tensor] = {}

        def hook(name: str) -> Any:
            def record(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
                first = result[0] if isinstance(result, tuple) else result
                if isinstance(first, Tensor) and first.ndim and first.requires_grad:
                    caught[name] = first  # of a module that runs several times, the last run
                    size = tuple(args[0].shape[2:]) if args and isinstance(args[0], Tensor) else ()
                    self.sizes[name] = (first[0].numel(), size)
                return clone_output(result)

            return record

        with contextlib.ExitStack() as stack:
            for name in self.names:
                stack.enter_context(hooked(model.get_submodule(name).register_forward_hook(hook(name))))
            yield caught

    def settle(self, caught: dict[str, Tensor], outputs: Tensor, leaf: Tensor) -> list[str]:
        """Keep the layers that lie between the input and `outputs`; return the names of the others.

        Args:
            caught: outputs of the layers in a forward pass of two samples.
            outputs: [2, ...], what that pass ended in.
            leaf: [2, ...], what it began with.

        Raises:
            ValueError: a layer's output does not have the samples in front, or no layer lies between; a network that
                cannot be differentiated with respect to its layers.
        """
        for name, activation in caught.items():
            if len(activation) != len(outputs):
                raise ValueError(
                    f"measure() got layers= with {name}, whose output has the shape {tuple(activation.shape)} for "
                    f"{len(outputs)} samples; the samples must come first. Choose others, e.g. layers=['pattern'], or pass "
                    "batch_first=True to recurrent and attention layers."
                )
        names = list(caught)
        found: tuple[Any, ...] = ()
        if outputs.requires_grad:
            try:
                found = torch.autograd.grad(
                    outputs, [*(caught[name] for name in names), leaf], torch.ones_like(outputs), allow_unused=True
                )
            except (RuntimeError, NotImplementedError) as error:
                raise ValueError(
                    f"measure() cannot differentiate this network with respect to its layers ({error}). Measure it without "
                    "layers=, or make it differentiable there, e.g. checkpoint(..., use_reentrant=False)."
                ) from error
        between = [name for name, gradient in zip(names, found, strict=False) if gradient is not None]
        if outputs.requires_grad and not between:
            raise ValueError(
                f"measure() got layers= with {', '.join(self.names)}, none of which has an output on the way from the input "
                "to the output. Choose others, e.g. layers=True."
            )
        left = [name for name in self.names if name not in between]
        self.names = between
        return left

    def measured(self, jacobian: Jacobian, caught: dict[str, Tensor]) -> Spectrum:
        """Return the spectrum of `jacobian`, and keep those from every layer: all from the same m backward passes."""
        # As they are now: a checkpoint runs its part of the forward pass again on the way back.
        names = [name for name in self.names if name in caught]
        tapped = [caught[name] for name in names]
        stores = [
            torch.empty(jacobian.batch, jacobian.rows, width, dtype=jacobian.dtype, device=jacobian.device)
            for width in (jacobian.columns, *(activation[0].numel() for activation in tapped))
        ]
        cotangent = torch.zeros_like(jacobian.outputs, memory_format=torch.contiguous_format)
        for row in range(jacobian.rows):
            cotangent.view(jacobian.batch, -1)[:, row] = 1
            for store, gradient in zip(stores, jacobian.pullback(cotangent, tapped), strict=True):
                # The order of columns does not matter for singular values: as they lie in memory is fastest.
                order = sorted(range(1, gradient.ndim), key=gradient.stride, reverse=True)
                store[:, row] = gradient.permute(0, *order).reshape(jacobian.batch, -1)
            cotangent.view(jacobian.batch, -1)[:, row] = 0
        jacobian.products += jacobian.rows
        jacobian.routes.add("loop")
        if not bool(torch.isfinite(stores[0]).all()):
            raise FloatingPointError("gradient")
        for name, store in zip(names, stores[1:], strict=True):
            self.spectra.setdefault(name, []).append(Spectrum.of(singular_values(store).cpu()))
        return Spectrum.of(singular_values(stores[0]))

    def table(self, model: nn.Module) -> pd.DataFrame:
        """Return a row a layer, from input to output.

        Columns: `layer`, `kind`, `width` (entries of its output); `mean_jsv`, `sem`, `std_jsv`, `condition_number` of the
        map from the layer's output to the network's output; `operator_mean`, `operator_min`, `operator_max` and
        `distance` (root mean square of s - 1) of the layer's own linear map where it is one layer, and how that is known
        in `operator`: "exact", "krylov" (the mean is the middle of a bracket, min and max are bounds) or "".
        """
        rows = []
        for name in self.spectra:
            spectrum = Spectrum.pool(self.spectra[name])
            means = spectrum.sample_means
            module = model.get_submodule(name)
            row = {
                "layer": name,
                "kind": type(module).__name__,
                "width": self.sizes[name][0],
                "mean_jsv": spectrum.mean,
                "sem": float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else math.nan,
                "std_jsv": spectrum.std,
                "condition_number": spectrum.condition_number,
            }
            rows.append(row | operator_statistics(module, self.sizes[name][1]))
        return pd.DataFrame(rows)


@torch.no_grad()
def operator_statistics(module: nn.Module, size: tuple[int, ...]) -> dict[str, Any]:
    """Return statistics of a layer's own linear map: dense and small layers exactly, large convolutions by bounds.

    Args:
        module: any; what is neither Linear nor an ordinary convolution has no operator.
        size: spatial size of its input.
    """
    values = _values(module, size)
    if values is None:
        return dict.fromkeys(("operator_mean", "operator_min", "operator_max", "distance"), math.nan) | {"operator": ""}
    if isinstance(values, Tensor):
        gap = float((values - 1).square().mean().sqrt())
        ends = {"operator_min": float(values.min()), "operator_max": float(values.max())}
        return {"operator_mean": float(values.mean()), **ends, "distance": gap, "operator": "exact"}
    run = bidiagonalize(
        values,
        probes(1, 4, values.rank, torch.Generator().manual_seed(0), values.kernel),
        steps=24,
        rtol=0.02,
    )
    lower, upper = run.bracket()
    spectrum = run.spectrum()
    return {
        "operator_mean": float((lower + upper).mean() / 2),
        "operator_min": float(spectrum.min),
        "operator_max": float(spectrum.max),
        "distance": math.sqrt(spectrum.isometry_gap),
        "operator": "krylov",
    }


def _values(module: nn.Module, size: tuple[int, ...]) -> Tensor | Convolution | None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        return singular_values(weight.detach().float())
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not size:
        return None
    kernel = module.weight.detach().float()
    padding = _padding(module)
    if padding is None:
        return None
    if module.padding_mode == "circular":
        same = all(2 * p == d * (k - 1) for p, d, k in zip(padding, module.dilation, kernel.shape[2:], strict=True))
        fits = not any(n % s for n, s in zip(size, module.stride, strict=True))
        if same and fits and module.groups == 1 and set(module.dilation) == {1}:
            return circular(kernel, size, module.stride)
        return None
    if module.padding_mode != "zeros":
        return None
    operator = Convolution(kernel, size, module.stride, padding, module.dilation, module.groups)
    return _dense(operator) if operator.rank <= _DENSE_UP_TO else operator


def _padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...] | None:
    """Return the zeros on either side of every dimension; None where the two sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(total % 2 for total in both) else tuple(total // 2 for total in both)


def _dense(operator: Operator) -> Tensor:
    return exact(Matrices(operator.dense())).values[0]
