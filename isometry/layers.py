"""Layer by layer: where in a network the Jacobian's singular values are lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from isometry.spectra import (
    Convolution,
    Matrices,
    Operator,
    Spectrum,
    bidiagonalise,
    circular,
    exact,
    probes,
    singular_values,
)
from isometry.view import spared

__all__ = ["Taps", "chosen_layers"]

_DENSE_UP_TO = 600


def chosen_layers(model: nn.Module, layers: bool | int | str | Sequence[str]) -> list[str]:
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
class Taps:
    """The activations of chosen layers in one forward pass, and the spectra of the maps from them to the output.

    Attributes:
        names: the layers, in the order of the forward pass once it has run.
        spectra: {layer: spectra of chunks of samples}.
        sizes: {layer: (entries of its output, spatial size of its input)}.
    """

    names: list[str]
    spectra: dict[str, list[Spectrum]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    def listen(self, model: nn.Module, caught: dict[str, Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
        """Hook the layers so that a forward pass leaves their outputs in `caught`; return the hooks' handles."""

        def hook(name: str) -> Any:
            def record(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
                first = result[0] if isinstance(result, tuple) else result
                if isinstance(first, Tensor) and first.requires_grad:
                    caught[name] = first  # of a module that runs several times, the last run
                    size = tuple(args[0].shape[2:]) if args and isinstance(args[0], Tensor) else ()
                    self.sizes[name] = (first[0].numel(), size)
                return spared(result)

            return record

        return [model.get_submodule(name).register_forward_hook(hook(name)) for name in self.names]

    def add(self, name: str, rows: Tensor) -> None:
        """Take the Jacobians [B, r, width] from a layer's output to the network's."""
        self.spectra.setdefault(name, []).append(Spectrum.of(singular_values(rows).cpu()))

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
            rows.append(row | own_operator(module, self.sizes[name][1]))
        return pd.DataFrame(rows)


@torch.no_grad()
def own_operator(module: nn.Module, size: tuple[int, ...]) -> dict[str, Any]:
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
    run = bidiagonalise(
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
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or isinstance(module.padding, str) or not size:
        return None
    kernel = module.weight.detach().float()
    if module.padding_mode == "circular":
        same = all(
            2 * p == d * (k - 1) for p, d, k in zip(module.padding, module.dilation, kernel.shape[2:], strict=True)
        )
        fits = not any(n % s for n, s in zip(size, module.stride, strict=True))
        if same and fits and module.groups == 1 and set(module.dilation) == {1}:
            return circular(kernel, size, module.stride)
        return None
    if module.padding_mode != "zeros":
        return None
    operator = Convolution(kernel, size, module.stride, module.padding, module.dilation, module.groups)
    return _dense(operator) if operator.rank <= _DENSE_UP_TO else operator


def _dense(operator: Operator) -> Tensor:
    return exact(Matrices(operator.dense())).values[0]
