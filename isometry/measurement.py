"""measure: the Jacobian spectrum of a network, with error bars; Report: what it returns; compare: several networks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Data, Split
from isometry.jacobian import Jacobian, check_independence, chunk_size, forward, frozen
from isometry.networks import example_inputs, input_shape
from isometry.spectra import Estimate, Spectrum, exact, mean_with_error

__all__ = ["Cost", "Report", "compare", "measure"]

_SAMPLES = 64


@dataclass(frozen=True)
class Cost:
    """The price of a measurement.

    Attributes:
        forwards: forward passes of one sample each.
        products: products of one sample's J or Jᵀ with a vector, each about one backward pass of one sample.
        seconds: wall-clock time.
    """

    forwards: int
    products: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """The Jacobian spectrum of a network and what follows from it.

    J is d output / d input of one sample; it has r = min(outputs, inputs) singular values, the JSVs.

    Attributes:
        spectrum: the JSVs, [B, r], with weights.
        method: how it was measured.
        cost: what that took.
        inputs: which inputs, in words.
        layers: a table with a row a layer, or None.
    """

    spectrum: Spectrum
    method: str
    cost: Cost
    inputs: str
    layers: pd.DataFrame | None = None

    @property
    def estimate(self) -> Estimate:
        """The mean JSV with its error; the sample is the unit."""
        return mean_with_error(self.spectrum.sample_means)

    @property
    def mean_jsv(self) -> float:
        """The mean over samples of the mean of the r JSVs; 1 at dynamical isometry."""
        return self.estimate.value

    @property
    def sem(self) -> float:
        """Standard error of the mean JSV over samples; nan for one sample."""
        return self.estimate.sem

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean JSV over inputs like these; (nan, nan) for one sample."""
        return self.estimate.interval

    @property
    def std_jsv(self) -> float:
        """Standard deviation over the pool of all samples' JSVs."""
        return self.spectrum.std

    @property
    def max_jsv(self) -> float:
        """The largest JSV of the pool."""
        return self.spectrum.max

    @property
    def min_jsv(self) -> float:
        """The smallest JSV of the pool."""
        return self.spectrum.min

    @property
    def condition_number(self) -> float:
        """The mean over samples of largest over smallest JSV."""
        return self.spectrum.condition_number

    @property
    def isometry_gap(self) -> float:
        """The mean of (s - 1)² over the pool; 0 exactly at dynamical isometry."""
        return self.spectrum.isometry_gap

    def statistics(self) -> dict[str, Any]:
        """Return the numbers of the report by name."""
        low, high = self.interval
        return {
            "mean_jsv": self.mean_jsv,
            "sem": self.sem,
            "interval_low": low,
            "interval_high": high,
            "std_jsv": self.std_jsv,
            "max_jsv": self.max_jsv,
            "min_jsv": self.min_jsv,
            "condition_number": self.condition_number,
            "isometry_gap": self.isometry_gap,
            "samples": len(self.spectrum),
            "jsvs": self.spectrum.values.shape[1],
            "method": self.method,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the statistics as a table of one row, ready for `pandas.concat`."""
        return pd.DataFrame([self.statistics()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, in types that JSON knows."""
        return {
            "values": self.spectrum.values.tolist(),
            "weights": self.spectrum.weights.tolist(),
            "complete": self.spectrum.complete,
            "method": self.method,
            "cost": asdict(self.cost),
            "inputs": self.inputs,
            "layers": None if self.layers is None else self.layers.to_dict("list"),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` described."""
        values, weights = (torch.tensor(content[key], dtype=torch.float64) for key in ("values", "weights"))
        layers = content["layers"]
        return cls(
            Spectrum(values, weights, content["complete"]),
            content["method"],
            Cost(**content["cost"]),
            content["inputs"],
            None if layers is None else pd.DataFrame(layers),
        )

    def _lines(self) -> list[tuple[str, str]]:
        low, high = self.interval
        error = f"95 % interval [{low:.4g}, {high:.4g}]" if not math.isnan(low) else "one sample: error unknown"
        return [
            ("mean JSV", f"{self.mean_jsv:.4g}   {error}"),
            ("std", f"{self.std_jsv:.4g}"),
            ("smallest, largest", f"{self.min_jsv:.4g}, {self.max_jsv:.4g}"),
            ("condition number", f"{self.condition_number:.4g}"),
            ("isometry gap", f"{self.isometry_gap:.4g}"),
            ("spectrum", f"{len(self.spectrum)} samples x {self.spectrum.values.shape[1]} values, {self.method}"),
            ("inputs", self.inputs),
            ("cost", f"{self.cost.products} products, {self.cost.forwards} forwards, {self.cost.seconds:.2g} s"),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {text}" for name, text in self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{text.replace('<', '&lt;')}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table>{rows}</table>"


def measure(
    model: nn.Module,
    inputs: Tensor | Iterable[Any] | None = None,
    *,
    method: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Measure the singular values of a network's input-output Jacobian (JSVs), sample by sample.

    The Jacobian is that of the outputs (logits) with respect to the input, in eval mode. The model comes out as it
    went in: modes, gradients, `requires_grad`, buffers, random state, dtype and device.

    Args:
        model: maps [B, ...] to a floating point tensor [B, ...], each sample by itself.
        inputs: a tensor [B, ...]; or a `Split`, (x, y), a `Data` (its test part), or an iterable of batches x or
            (x, y), a DataLoader for instance. None draws 64 standard normal inputs of the shape that the model's first
            layer tells, and the report says so.
        method: "exact" (all singular values, r = min(outputs, inputs) backward passes) or "auto".
        seed: of the inputs drawn for `inputs=None`.
        progress: False silences the progress bar, None shows it on work of some seconds.

    Returns:
        `Report`.

    Raises:
        ValueError: the input shape cannot be inferred; inputs are empty, of a shape that the model refuses, NaN or
            infinite; outputs or Jacobians that are not finite; samples that influence each other.
        TypeError: inputs are not floating point, or the output is not.
    """
    if method not in ("auto", "exact"):
        raise ValueError(f"measure() got method={method!r}; it knows 'auto' and 'exact', e.g. measure(model, inputs).")
    start = time.perf_counter()
    described, batches, total = _batches(model, inputs, seed)
    spectra: list[Spectrum] = []
    forwards = products = 0
    hidden = None if progress is None else not progress
    with frozen(model), tqdm(total=total, unit="sample", desc="measure", disable=hidden, delay=2) as bar:
        for batch in batches:
            for chunk in batch.split(_samples_at_once(model, batch)):
                jacobian = Jacobian(model, chunk)
                if not spectra:
                    check_independence(model, chunk)
                    forwards, products = 2, 2
                spectra.append(exact(jacobian))
                forwards += len(chunk)
                products += round(jacobian.products * len(chunk))
                bar.update(len(chunk))
    if not spectra:
        raise ValueError(
            "measure() got no inputs: the iterable is empty. Pass at least one batch, e.g. measure(model, x)."
        )
    cost = Cost(forwards, products, time.perf_counter() - start)
    spectrum = Spectrum.pool(spectra)
    return Report(spectrum, "exact", cost, f"{len(spectrum)} {described}")


def _samples_at_once(model: nn.Module, batch: Tensor) -> int:
    """Return how many samples' Jacobians fit the memory meant for them."""
    with torch.no_grad():
        outputs = forward(model, batch[:2])[0]
    return chunk_size(12 * min(outputs.numel(), batch[0].numel()) * batch[0].numel(), len(batch), 2**29)


def _batches(
    model: nn.Module, inputs: Tensor | Iterable[Any] | None, seed: int
) -> tuple[str, Iterator[Tensor], int | None]:
    """Return what the inputs are, the batches of them on the model's device, and how many samples (None: unknown)."""
    device = next((p.device for p in model.parameters()), None)
    if inputs is None:
        shape = input_shape(model, "measure(model, inputs)")
        drawn = example_inputs(model, _SAMPLES, seed=seed)
        return f"standard normal inputs of shape {shape}, as none were given", iter([_checked(drawn, device)]), _SAMPLES
    if isinstance(inputs, Data):
        inputs = inputs.test
    if isinstance(inputs, Split) or (
        isinstance(inputs, tuple)
        and len(inputs) == 2
        and all(isinstance(part, Tensor) for part in inputs)
        and not inputs[1].is_floating_point()
    ):
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        return f"inputs of shape {tuple(inputs.shape[1:])}", iter([_checked(inputs, device)]), len(inputs)
    if isinstance(inputs, Iterable):
        return "inputs of an iterable", (_checked(_first(batch), device) for batch in inputs), None
    raise TypeError(
        f"measure() got inputs of type {type(inputs).__name__}; it takes a tensor [B, ...] or an iterable of batches, "
        "e.g. measure(model, torch.randn(64, 784))."
    )


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) and batch else batch


def _checked(inputs: Any, device: torch.device | None) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"measure() got a batch of type {type(inputs).__name__}; batches are tensors x or pairs (x, y), e.g. "
            "measure(model, torch.utils.data.DataLoader(dataset, batch_size=64))."
        )
    if inputs.ndim < 2 or not inputs.numel():
        raise ValueError(
            f"measure() got inputs of shape {tuple(inputs.shape)}; it takes a non-empty batch [B, ...], e.g. "
            "measure(model, torch.randn(64, 784))."
        )
    if not inputs.is_floating_point():
        raise TypeError(
            f"measure() got inputs of dtype {inputs.dtype}, which have no derivative. Pass floating point inputs, e.g. "
            "measure(model, inputs.float())."
        )
    if not bool(torch.isfinite(inputs).all()):
        count = int((~torch.isfinite(inputs)).sum())
        raise ValueError(
            f"measure() got inputs with {count} NaN or infinite entries; all must be finite, e.g. "
            "measure(model, torch.nan_to_num(inputs))."
        )
    return inputs.detach().to(device) if device is not None else inputs.detach()


def compare(
    networks: Mapping[str, nn.Module], inputs: Tensor | Iterable[Any] | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """Measure several networks at the same inputs.

    Args:
        networks: {name: model}; the first is what the others are compared with.
        inputs: as `measure` takes them; an iterable is read once. None draws inputs for the first network's shape.
        seed: of the inputs drawn for `inputs=None`.

    Returns:
        A table with a row a network: the statistics of its report, and `difference` from the first network's mean JSV
        with `difference_low`, `difference_high`, the 95 % interval of the paired differences sample by sample.

    Raises:
        ValueError: no network is given; and whatever `measure` refuses.
    """
    if not networks:
        raise ValueError(
            "compare() got no networks; it takes {name: model}, e.g. compare({'dense': a, 'pruned': b}, x)."
        )
    if inputs is None:
        inputs = example_inputs(next(iter(networks.values())), _SAMPLES, seed=seed)
    elif not isinstance(inputs, Tensor | Data | tuple):
        inputs = list(inputs)
    rows, reference = [], None
    for name, model in networks.items():
        report = measure(model, inputs, seed=seed)
        means = report.spectrum.sample_means
        reference = means if reference is None else reference
        gap = mean_with_error(means - reference)
        rows.append(
            {
                "network": name,
                **report.statistics(),
                "difference": gap.value,
                "difference_low": gap.interval[0],
                "difference_high": gap.interval[1],
            }
        )
    return pd.DataFrame(rows)
