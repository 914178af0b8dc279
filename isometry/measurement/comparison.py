"""compare: several networks measured at the same inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from isometry.data import Data
from isometry.measurement.measuring import measure
from isometry.networks import example_inputs
from isometry.networks.modules import unwrap
from isometry.repairs import orthogonalize, recover
from isometry.spectra import mean_with_error

__all__ = ["compare"]


def compare(
    networks: Mapping[str, nn.Module], inputs: Any = None, *, oracle: bool = False, seed: int = 0, **options: Any
) -> pd.DataFrame:
    """Measure several networks at the same inputs.

    Args:
        networks: {name: model}; the first is what the others are compared with.
        inputs: as `measure` takes them; an iterable is read once. None draws inputs for the first network's shape.
        oracle: add to every network its repaired twin: "<name> + oracle" (`recover`, for linear MLPs) or "<name> + OrthP"
            (`orthogonalize`, with the reference's gain of sqrt(2) for ReLU; of 1 where the network's activations are
            modules and none of them is a ReLU) for the others.
        seed: of inputs drawn for None, and of probes: the same for all networks.
        options: further arguments of `measure`, the same for all networks.

    Returns:
        A table with a row a network: the statistics of its report (of a krylov one, `max_jsv`, `min_jsv` and
        `condition_number` are the bounds that the report prints with their signs), and `difference` from the first network's mean JSV
        with `difference_low`, `difference_high`, the 95 % interval of the paired differences sample by sample.

    Raises:
        ValueError: no network is given; and whatever `measure` refuses.
    """
    if not isinstance(networks, Mapping) or not networks:
        told = "no networks" if isinstance(networks, Mapping) else f"a {type(networks).__name__}"
        raise ValueError(
            f"compare() got {told}; it takes {{name: model}}, e.g. compare({{'dense': a, 'pruned': b}}, x)."
        )
    if inputs is None:
        inputs = example_inputs(next(iter(networks.values())), 64, seed=seed)
    elif isinstance(inputs, Iterable) and not isinstance(inputs, Tensor | Data | Mapping | tuple | list):
        inputs = list(inputs)  # read once: a shuffling loader would give every network other inputs
    everything = dict(networks)
    if oracle:
        for name, model in networks.items():
            kind, repaired = _repaired(unwrap(model))
            if f"{name} + {kind}" in networks:
                raise ValueError(
                    f"compare() got a network named {name + ' + ' + kind!r}, which is what oracle=True calls the repaired "
                    f"{name!r}. Give it another name."
                )
            everything[f"{name} + {kind}"] = repaired
    rows: list[dict[str, Any]] = []
    reference: tuple[Tensor, Tensor, Tensor] | None = None
    for name, model in everything.items():
        report = measure(model, inputs, seed=seed, **options)
        means = report.sample_means
        ends = (report.brackets.lower, report.brackets.upper) if report.brackets is not None else (means, means)
        reference = (means, *ends) if reference is None else reference
        first, low_first, high_first = reference
        if len(means) != len(first):
            raise ValueError(
                f"compare() got {len(means)} samples for {name} and {len(first)} for {next(iter(everything))}: with "
                "rtol= or budget= networks stop at different samples, which cannot be paired. Leave them out."
            )
        if means is first:  # with itself
            gap = mean_with_error(means - first)
        else:
            gap = mean_with_error(means - first, ends[0] - high_first, ends[1] - low_first)
        low, high = gap.interval
        rows.append(
            {
                "network": name,
                **report.statistics(),
                "difference": gap.value,
                "difference_low": low,
                "difference_high": high,
            }
        )
    return pd.DataFrame(rows)


def _repaired(model: nn.Module) -> tuple[str, nn.Module]:
    try:
        return "oracle", recover(model)
    except ValueError:
        activations = [m for m in model.modules() if type(m).__module__ == nn.ReLU.__module__]
        rectified = not activations or any(isinstance(module, nn.ReLU) for module in activations)
        return "OrthP", orthogonalize(model, gain=math.sqrt(2) if rectified else 1.0)
