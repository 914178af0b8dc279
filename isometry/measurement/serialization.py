"""Reports as content of a JSON file, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isometry.measurement.brackets import Brackets
from isometry.measurement.cost import Cost
from isometry.spectra import Spectrum

if TYPE_CHECKING:
    from isometry.measurement.report import Report

__all__ = ["from_dict", "to_dict"]

_BRACKETS = ("lower", "upper", "probe_variance", "shared", "probes", "steps")


def to_dict(report: Report) -> dict[str, Any]:
    """Return everything about a report, in types that standard JSON knows: what is not finite becomes None."""
    brackets = report.brackets
    layers, means = None if report.layers is None else report.layers.to_dict("list"), report.layer_means
    return {
        "values": report.spectrum.values.tolist(),
        "weights": report.spectrum.weights.tolist(),
        "complete": report.spectrum.complete,
        "resolution": report.spectrum.resolution,
        "method": report.method,
        "cost": asdict(report.cost),
        "inputs": report.inputs,
        "outputs": report.outputs,
        "layers": layers and {str(name): [_finite(value) for value in column] for name, column in layers.items()},
        "notes": list(report.notes),
        "layer_means": means and {name: values.tolist() for name, values in means.items()},
        "reference": None if report.reference is None else to_dict(report.reference),
        "brackets": brackets
        and {
            **{name: [_finite(value) for value in getattr(brackets, name).tolist()] for name in _BRACKETS},
            "largest_residual": brackets.largest_residual,
        },
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_dict(content: Mapping[str, Any], make: Callable[..., Report]) -> dict[str, Any]:
    """Return the fields of the report that `to_dict` described; `make` returns a report of such fields.

    Raises:
        ValueError: the content is not that of a report; the message says what is missing or wrong.
    """
    import pandas as pd

    try:
        layers, brackets = content["layers"], content["brackets"]
        means, reference = content.get("layer_means"), content.get("reference")  # absent from earlier versions
        spectrum = Spectrum(
            _numbers(content["values"]),
            _numbers(content["weights"]),
            content["complete"],
            content.get("resolution", 0.0),
        )
        weights = spectrum.weights
        if bool((spectrum.values < 0).any() | (weights < 0).any() | ((weights.sum(1) - 1).abs() > 1e-6).any()):
            raise ValueError("values must be at least 0, and each row of weights must sum to 1")
        return {
            "spectrum": spectrum,
            "method": str(content["method"]),
            "cost": Cost(**content["cost"]),
            "inputs": str(content["inputs"]),
            "outputs": content.get("outputs"),
            "layers": None if layers is None else pd.DataFrame({n: _column(n, column) for n, column in layers.items()}),
            "notes": tuple(map(str, content["notes"])),
            "layer_means": means and {str(name): _numbers(values) for name, values in means.items()},
            "reference": None if reference is None else make(**from_dict(reference, make)),
            "brackets": brackets
            and Brackets(
                largest_residual=brackets["largest_residual"], **{name: _numbers(brackets[name]) for name in _BRACKETS}
            ),
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Report.from_dict() got something else than the content of a report ({type(error).__name__}: {error}); it takes "
            "what to_dict() returned, e.g. Report.from_dict(json.loads(path.read_text()))."
        ) from error


def _numbers(values: Any) -> Tensor:
    filled = [math.nan if value is None else value for value in values]
    return torch.tensor(filled, dtype=torch.float64)


def _column(name: str, column: list[Any]) -> list[Any]:
    """Return a layer table's column with what JSON could not hold: infinite condition numbers, other unknown numbers."""
    missing = math.inf if name == "condition_number" else math.nan
    return [missing if value is None else value for value in column]
