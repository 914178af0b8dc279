"""Histograms of unit importances."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from isometry import networks
from isometry.plots.axes import new_axes, require_columns
from isometry.plots.colors import color

__all__ = ["importance_history", "importances"]


def importances(
    x: nn.Module | Mapping[str, Tensor],
    ax: Axes | None = None,
    *,
    threshold: float | None = None,
    logarithmic: bool = False,
    bins: int = 40,
) -> Axes:
    """Draw the histogram of unit importances, all layers together; receding ones form two groups.

    Args:
        x: a network with bounded BatchNorm, or {layer: importances [C] in [0, 1]}.
        ax: where to draw; a new figure when None.
        threshold: importance below which units are removed, marked with the fraction of units below it.
        logarithmic: whether the axis of importances is; the group near 0 is visible only then.
        bins: number of bins.
    """
    ax = new_axes(ax)
    by_layer = networks.importances(x) if isinstance(x, nn.Module) else dict(x)
    every = np.concatenate([layer.detach().double().cpu().numpy() for layer in by_layer.values()])
    low = max(float(every.min()), 1e-12)
    edges = np.geomspace(low * 0.9, 1, bins + 1) if logarithmic else np.linspace(0, 1, bins + 1)
    ax.hist(np.clip(every, edges[0], None), bins=list(edges), color=color("rni"), label=f"{len(every)} units")
    if threshold is not None:
        share = float((every < threshold).mean())
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold, {share:.0%} below")
    if logarithmic:
        ax.set_xscale("log")
    ax.set_xlabel("importance, sigmoid(gamma)")
    ax.set_ylabel("units")
    ax.legend(frameon=False, fontsize="small")
    return ax


def importance_history(rows: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the histogram of importances at several epochs of one training.

    Args:
        rows: columns `method`, `epoch`, `low` and `high` (log10, the edges of a bin) and `units`.
        ax: where to draw; a new figure when None.
    """
    ax = new_axes(ax)
    require_columns(rows, "importance_history", "method", "epoch", "low", "high", "units")
    epochs = sorted(rows["epoch"].unique())
    for shade, epoch in zip(plt.get_cmap("viridis")(np.linspace(0.9, 0.0, len(epochs))), epochs, strict=True):
        part = rows[rows["epoch"] == epoch]
        edges = [*part["low"], part["high"].iloc[-1]]
        ax.stairs(part["units"], edges, color=shade, label=f"epoch {epoch:.0f}", linewidth=1.6)
    ax.set(xlabel="log10 importance", ylabel="units (seed 0)", yscale="symlog")
    ax.set_title(str(rows["method"].iloc[0]), fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="upper center")
    return ax
