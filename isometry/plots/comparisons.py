"""Networks beside each other, and their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isometry.measurement.report import Report
from isometry.plots.axes import new_axes, require_columns
from isometry.plots.colors import distinct_colors

__all__ = ["comparison", "layers"]


def comparison(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the table of `isometry.compare`: one bar per network, its mean JSV with the 95 % interval over samples.

    Args:
        table: columns `network`, `mean_jsv`, `interval_low`, `interval_high`.
        ax: where to draw; a new figure when None.
    """
    ax = new_axes(ax)
    require_columns(table, "comparison", "network", "mean_jsv", "interval_low", "interval_high")
    means = table["mean_jsv"].to_numpy()
    reach = np.nan_to_num(np.stack([means - table["interval_low"], table["interval_high"] - means]).clip(0))
    colors = distinct_colors(table["network"])
    for row, name in enumerate(table["network"]):
        ax.bar(row, means[row], yerr=reach[:, [row]], color=colors[str(name)], capsize=4, width=0.6)
    ax.set_xticks(range(len(table)), table["network"], rotation=20 if len(table) > 4 else 0)
    positive = means[means > 0]
    if len(positive) and positive.max() / positive.min() > 30:
        ax.set_yscale("log")
    ax.axhline(1, color="#d62728", linewidth=1, linestyle=":", label="isometry")
    ax.set_ylabel("mean JSV (95 % interval over samples)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def layers(table: Report | pd.DataFrame | Mapping[str, Report], ax: Axes | None = None) -> Axes:
    """Draw where in the network the JSVs are lost: the mean JSV of the map from each layer to the output.

    Args:
        table: a report measured with `layers`, its table, or {name: such a report}.
        ax: where to draw; a new figure when None.
    """
    ax = new_axes(ax)
    named: dict[str, Any] = dict(table) if isinstance(table, Mapping) else {"network": table}
    names, colors = list[str](), distinct_colors(named)
    for name, entry in named.items():
        rows = entry.layers if isinstance(entry, Report) else entry
        if rows is None:
            raise ValueError("plots.layers() got a report without layers; measure it with layers=True.")
        require_columns(rows, "layers", "layer", "mean_jsv", "interval_low", "interval_high")
        names = list(rows["layer"])
        reach = [rows["mean_jsv"] - rows["interval_low"], rows["interval_high"] - rows["mean_jsv"]]
        ax.errorbar(
            range(len(rows)), rows["mean_jsv"], [side.fillna(0).clip(lower=0) for side in reach], marker="o", markersize=3, capsize=2,
            color=colors[name], label=name, linewidth=1.3,
        )  # fmt: skip
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    ax.set_yscale("log")
    ax.axhline(1, color="#d62728", linewidth=1, linestyle=":", label="isometry")
    ax.set_xlabel("layer, from input to output")
    ax.set_ylabel("mean JSV from the layer's output\nto the network's (95 % interval)")
    ax.legend(frameon=False, fontsize="small")
    return ax
