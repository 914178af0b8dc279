"""compare: several networks measured at the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isometry.data import Data
from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.measurement import ratios
from isometry.measurement.inputs import MOST, has_length
from isometry.measurement.measuring import BRACKET, measure_with
from isometry.measurement.options import Options
from isometry.measurement.ratios import with_reference
from isometry.measurement.report import Report
from isometry.networks import find_inputs
from isometry.networks.modules import unwrap
from isometry.repairs import best_repair
from isometry.spectra import Estimate, mean_with_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RATIO_AT", "compare"]

RATIO_AT = "ratio at "
"""Begins the columns of ratios of layers, before the layer's name."""


@signed("compare")
def compare(
    networks: Mapping[str, nn.Module], inputs: Any = None, *, oracle: bool = False, seed: int = 0, **options: Any
) -> pd.DataFrame:
    """Measure several networks at the same inputs.

    Args:
        networks: {name: model}; the first, usually the dense one, is the reference that the others are compared with.
        inputs: as `measure` takes them; an iterable is read once (of one without a length, batches of 1024 samples). None
            draws inputs for the first network.
        oracle: add to every network its repaired twin: "<name> + oracle" (`recover`, for linear MLPs) or "<name> + OrthP"
            (`orthogonalize`, with the reference's gain of sqrt(2) for ReLU; of 1 where the network's activations are
            modules and none of them is a ReLU) for the others.
        seed: of inputs drawn for None, and of probes: the same for all networks.
        options: further arguments of `measure`, the same for all networks.

    Returns:
        A table with one row per network: the statistics of its report (of a krylov one, `max_jsv`, `min_jsv` and
        `condition_number` are the bounds that the report prints with their signs); `difference` from the first network's
        mean JSV with `difference_low`, `difference_high`; `ratio` to it, `sample_ratio` (the mean of the samples' own
        ratios), each with its `_low` and `_high`; and `verdict`, in words. These intervals are paired sample by sample, and
        hold at 95 % for all networks together. With layers, also `ratio at <layer>` for the layers that both have.
        `verdict` takes the first network for the yardstick; for linear networks, and at initialization, that is a mean JSV of 1.

    Raises:
        ValueError: no network is given; and whatever `measure` refuses.
    """
    import pandas as pd

    if not isinstance(networks, Mapping) or not networks:
        arrived = "no networks" if isinstance(networks, Mapping) else f"a {type(networks).__name__}"
        raise InvalidValueError(
            f"got {arrived}; it takes {{name: model}}, e.g. compare({{'dense': a, 'pruned': b}}, x)."
        )
    if inputs is None:
        first = next(iter(networks.values()))
        spec = find_inputs(first, "compare(networks, inputs)")
        inputs = spec.draw(first, 64, seed)
        options = {"at": spec.embedding, **options} if spec.vocabulary is not None else options
    elif isinstance(inputs, Iterable) and not isinstance(inputs, Tensor | Data | Mapping | tuple | list):
        inputs = _read_once(inputs)  # a shuffling loader would give every network other inputs
    names = [field.name for field in fields(Options) if field.name in options]
    how = Options(**{name: options.pop(name) for name in names}, seed=seed, bracket=BRACKET)
    everything = _with_repaired(networks) if oracle else dict(networks)
    confidence = 1 - 0.05 / max(1, len(everything) - 1)
    rows: list[dict[str, Any]] = []
    reference: tuple[str, Report] | None = None
    for name, model in everything.items():
        try:
            report = measure_with(how, model, inputs, **options)
        except (InvalidValueError, InvalidTypeError) as error:
            raise type(error)(f"cannot measure {name!r}: {error}") from error.__cause__
        reference = reference or (name, report)
        rows.append({"network": name, **_row(name, report, *reference, confidence)})
    return pd.DataFrame(rows)


def _read_once(inputs: Iterable[Any]) -> list[Any]:
    """Return the batches of an iterable; of one without a length, as many as hold `MOST` samples."""
    if has_length(inputs):
        return list(inputs)
    batches: list[Any] = []
    samples = 0
    for batch in inputs:
        batches.append(batch)
        part = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), ())
        samples += max(1, len(part))
        if samples >= MOST:
            break
    return batches


def _row(name: str, report: Report, first_name: str, first: Report, confidence: float) -> dict[str, Any]:
    """Return the columns of one network: its statistics, difference and ratios."""
    difference = _difference(name, report, first_name, first, confidence)
    low, high = difference.interval
    row = {**report.statistics(), "difference": difference.value, "difference_low": low, "difference_high": high}
    related = with_reference(report, first)
    row |= ratios.ratio_statistics(related, first, confidence)
    if report is first:
        row["verdict"] = "the reference"
    if related.layers is not None:
        row |= {
            f"{RATIO_AT}{layer}": ratio
            for layer, ratio in zip(related.layers["layer"], related.layers["ratio"], strict=True)
        }
    return row


def _with_repaired(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the networks with a repaired twin of each."""
    everything = dict(networks)
    for name, model in networks.items():
        try:
            kind, repaired = best_repair(unwrap(model))
        except ValueError as error:
            raise InvalidValueError(
                f"got oracle=True and no repair works for {name!r} ({error}). Leave that network out, or oracle=True."
            ) from error
        if f"{name} + {kind}" in networks:
            raise InvalidValueError(
                f"got a network named {name + ' + ' + kind!r}, which is what oracle=True calls the repaired {name!r}. Give it "
                "another name."
            )
        everything[f"{name} + {kind}"] = repaired
    return everything


def _difference(name: str, report: Report, first_name: str, first: Report, confidence: float) -> Estimate:
    """Return the difference of two reports' mean JSVs, paired sample by sample."""
    means, first_means = report.sample_means, first.sample_means
    if report.outputs != first.outputs:
        raise InvalidValueError(
            f"got {name} with {report.outputs} outputs and {first_name} with {first.outputs}; mean JSVs of different "
            "numbers of outputs are not comparable. Compare networks of the same task, e.g. compare({'dense': a, 'pruned': b}, x)."
        )
    if len(means) != len(first_means):
        raise InvalidValueError(
            f"got {len(means)} samples for {name} and {len(first_means)} for {first_name}: with rtol= or budget= networks "
            "stop at different samples, which cannot be paired. Leave them out."
        )
    if report is first:
        return mean_with_error(means - first_means, confidence=confidence)
    (low, high), (first_low, first_high) = (ratios.bounds_of(each, confidence) for each in (report, first))
    return mean_with_error(means - first_means, low - first_high, high - first_low, confidence=confidence)
