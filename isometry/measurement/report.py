"""Report: the Jacobian spectrum of a network, what follows from it, and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isometry.measurement.brackets import Brackets
from isometry.spectra import Estimate, Spectrum, mean_with_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cost", "Report"]


@dataclass(frozen=True)
class Cost:
    """What a measurement cost.

    Attributes:
        forwards: forward passes of one sample each.
        products: products of one sample's J or Jᵀ with a vector; Jᵀu is about one backward pass of one sample.
        seconds: wall-clock time.
    """

    forwards: int
    products: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Report:
    """The Jacobian spectrum of a network and what follows from it.

    J is d output / d input of one sample; it has r = min(outputs, inputs) singular values, the JSVs.

    Attributes:
        spectrum: the JSVs [B, r] with weights; quadrature nodes where `method` is "krylov".
        method: "exact" or "krylov".
        cost: what that took.
        inputs: which inputs, in words.
        layers: a table with one row per layer, or None.
        notes: how it was done: routes of differentiation, folding, bottlenecks, why sampling ended.
        brackets: the quadrature bounds of a krylov measurement, else None.
    """

    spectrum: Spectrum
    method: str
    cost: Cost
    inputs: str
    layers: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    brackets: Brackets | None = None

    @property
    def sample_means(self) -> Tensor:
        """[B]: every sample's mean JSV; the middle of its bracket where it is known by one."""
        if self.brackets is None:
            return self.spectrum.sample_means
        return self.brackets.middle

    @property
    def estimate(self) -> Estimate:
        """The mean JSV with its error; the sample is the unit, so that probe errors are part of the spread."""
        if self.brackets is None:
            return mean_with_error(self.sample_means)
        return mean_with_error(self.sample_means, self.brackets.lower, self.brackets.upper)

    @property
    def mean_jsv(self) -> float:
        """The mean over samples of the mean of the r JSVs; 1 at dynamical isometry."""
        return self.estimate.value

    @property
    def sem(self) -> float:
        """Standard error of the mean JSV over samples, probe errors included; nan for one sample."""
        return self.estimate.sem

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean JSV over inputs like these; (nan, nan) for one sample."""
        return self.estimate.interval

    @property
    def components(self) -> dict[str, float]:
        """The parts of the error: standard errors of `samples` and `probes`, half-width of the `quadrature` bracket."""
        if self.brackets is None:
            return {"samples": self.sem, "probes": 0.0, "quadrature": 0.0}
        # Samples with one probe say nothing of it.
        probes = float(self.brackets.probe_variance.nanmean() / len(self.spectrum))
        half = float((self.brackets.upper - self.brackets.lower).mean() / 2)
        between = math.sqrt(max(self.sem**2 - probes, 0.0)) if not math.isnan(probes) else self.sem
        return {"samples": between, "probes": math.sqrt(probes), "quadrature": half}

    @property
    def std_jsv(self) -> float:
        """Standard deviation over the pool of all samples' JSVs."""
        return self.spectrum.std

    @property
    def max_jsv(self) -> float:
        """The largest JSV of the pool; a `Bound` (>=) from a krylov measurement."""
        return self.spectrum.max

    @property
    def min_jsv(self) -> float:
        """The smallest JSV of the pool; a `Bound` (<=) from a krylov measurement."""
        return self.spectrum.min

    @property
    def condition_number(self) -> float:
        """The mean over samples of largest over smallest JSV; a `Bound` (>=) from a krylov measurement."""
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
        """Return the statistics as a table of one row, ready for `pandas.concat`.

        Bounds are plain numbers there: of a "krylov" report the largest is a lower, the smallest an upper bound.
        """
        import pandas as pd

        return pd.DataFrame([self.statistics()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, in types that JSON knows."""
        brackets = self.brackets
        return {
            "values": self.spectrum.values.tolist(),
            "weights": self.spectrum.weights.tolist(),
            "complete": self.spectrum.complete,
            "method": self.method,
            "cost": asdict(self.cost),
            "inputs": self.inputs,
            "layers": None if self.layers is None else self.layers.to_dict("list"),
            "notes": list(self.notes),
            "brackets": brackets
            and {
                "lower": brackets.lower.tolist(),
                "upper": brackets.upper.tolist(),
                "probe_variance": brackets.probe_variance.tolist(),
                "largest_residual": brackets.largest_residual,
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` described."""
        import pandas as pd

        def numbers(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        layers, brackets = content["layers"], content["brackets"]
        return cls(
            Spectrum(numbers(content["values"]), numbers(content["weights"]), content["complete"]),
            content["method"],
            Cost(**content["cost"]),
            content["inputs"],
            None if layers is None else pd.DataFrame(layers),
            tuple(content["notes"]),
            brackets
            and Brackets(
                numbers(brackets["lower"]),
                numbers(brackets["upper"]),
                numbers(brackets["probe_variance"]),
                brackets["largest_residual"],
            ),
        )

    def _lines(self) -> list[tuple[str, str]]:
        low, high = self.interval
        error = f"95 % interval [{low:.4g}, {high:.4g}]" if not math.isnan(low) else "one sample: error unknown"
        rows = [("mean JSV", f"{self.mean_jsv:.4g}   {error}")]
        if self.brackets is not None:
            parts = (f"{name} {value:.2g}" for name, value in self.components.items())
            rows.append(("its errors", f"{', '.join(parts)} (two standard errors, one half-width)"))
        count, values = self.spectrum.values.shape
        rows += [
            ("std", f"{self.std_jsv:.4g}"),
            ("smallest, largest", f"{self.min_jsv:.4g}, {self.max_jsv:.4g}"),
            ("condition number", f"{self.condition_number:.4g}"),
            ("isometry gap", f"{self.isometry_gap:.4g}"),
            (
                "spectrum",
                f"{count} samples x {values} {'values' if self.spectrum.complete else 'nodes'}, {self.method}",
            ),
            ("inputs", self.inputs),
            ("cost", f"{self.cost.products} products, {self.cost.forwards} forwards, {self.cost.seconds:.2g} s"),
        ]
        if self.brackets is not None:
            rows.insert(4, ("largest within", f"{self.brackets.largest_residual:.2g} of a singular value"))
        return rows + [("note", note) for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {text}" for name, text in self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{text.replace('<', '&lt;')}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table>{rows}</table>"
