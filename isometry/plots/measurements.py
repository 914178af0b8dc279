"""Measurements of networks as pictures: spectra, comparisons, layers, importances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from isometry import networks
from isometry.measurement.report import Report
from isometry.plots.axes import new_axes, require_columns
from isometry.plots.colors import color, distinct_colors
from isometry.spectra import Spectrum
from isometry.spectra.laws import Law

__all__ = ["comparison", "importance_history", "importances", "layers", "spectrum"]


def spectrum(
    x: Report | Spectrum | Mapping[str, Report | Spectrum],
    ax: Axes | None = None,
    *,
    bins: int = 60,
    law: Law | None = None,
) -> Axes:
    """Draw the density of the JSVs, one step line per network, with the isometry line at 1.

    Of a krylov measurement only quadrature nodes are known, which are no sample of the JSVs: they are drawn as points, each as
    high as its weight, averaged over samples and probes.

    The axis is logarithmic where the values span more than a factor of 30. Bars of one standard error over samples
    are drawn where a bin holds enough to see them.

    Args:
        x: a report or spectrum, or {name: report or spectrum}. The reference of a report is drawn as "dense".
        ax: where to draw; a new figure when None.
        bins: number of bins.
        law: a closed-form law drawn over it, with its Kolmogorov-Smirnov distance to the first spectrum.
    """
    named: dict[str, Any] = (
        {"network": x} if isinstance(x, Report | Spectrum) else dict(x) if isinstance(x, Mapping) else {}
    )
    if not named or not all(isinstance(entry, Report | Spectrum) for entry in named.values()):
        kinds = ", ".join(type(entry).__name__ for entry in named.values()) or "no spectra"
        raise ValueError(
            f"plots.spectrum() got a {type(x).__name__} of {kinds}; it takes a report or {{name: report}}, e.g. "
            "spectrum(isometry.measure(model))."
        )
    ax, named = new_axes(ax), _with_dense(named)
    reports = {name: r.spectrum if isinstance(r, Report) else r for name, r in named.items()}
    values = np.concatenate([r.values[r.weights > 0].numpy() for r in reports.values()])
    top = max(float(values.max()), 1.0) * 1.05
    positive = values[values > top * 1e-9]
    low = min(float(positive.min()), 1.0) * 0.95 if len(positive) else 0.5
    logarithmic = top / low > 30
    edges = _log_edges(positive, bins) if logarithmic else np.linspace(0, top, bins + 1)
    colors = distinct_colors(reports)
    for name, report in reports.items():
        mean = entry.mean_jsv if isinstance(entry := named[name], Report) else report.mean
        if not report.complete:
            _draw_nodes(ax, report, name, mean, colors[name])
            continue
        share, error = (part.numpy() for part in report.histogram(torch.from_numpy(edges)))
        width = np.diff(np.log10(edges)) if logarithmic else np.diff(edges)
        ax.stairs(share / width, edges, color=colors[name], label=f"{name}, mean {mean:.3g}", linewidth=1.6)
        if np.isfinite(error).all():
            middle = np.sqrt(edges[1:] * edges[:-1]) if logarithmic else (edges[1:] + edges[:-1]) / 2
            ax.errorbar(
                middle, share / width, error / width, fmt="none", ecolor=colors[name], elinewidth=0.7, alpha=0.6
            )
    if law is not None:
        s = np.geomspace(low, top, 800) if logarithmic else np.linspace(0, top, 800)
        density = law.pdf(s) * (s * math.log(10) if logarithmic else 1)
        gap = law.distance(next(iter(reports.values())))
        name = f"{type(law).__name__}, mean {law.mean_jsv:.3g}, KS distance {gap:.3f}"
        ax.plot(s, density, color="black", linewidth=1.2, label=name)
        # A density may diverge at an edge: the histogram sets the scale.
        if ax.patches:
            ax.set_ylim(top=1.25 * max(float(patch.get_data().values.max()) for patch in ax.patches))  # type: ignore[attr-defined]
    ax.axvline(1, color="#d62728", linewidth=1, linestyle=":", label="isometry")
    if logarithmic:
        ax.set_xscale("log")
    ax.set_xlabel("Jacobian singular value")
    ax.set_ylabel("density (per decade)" if logarithmic else "density")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _log_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the edges of bins [bins + 1] over positive values [n] and, around them, a factor of 1.5 at least."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.5, 1.0)
    widen = max(1.05, 1.5 * math.sqrt(low / high))
    return np.geomspace(low / widen, high * widen, bins + 1)


def _with_dense(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is drawn with the first report's reference in front, as "dense", unless something has that name."""
    reference = next((x.reference for x in named.values() if isinstance(x, Report) and x.reference is not None), None)
    return dict(named) if reference is None or "dense" in named else {"dense": reference, **named}


def _draw_nodes(ax: Axes, nodes: Spectrum, name: str, mean: float, shade: str) -> None:
    """Draw quadrature nodes against the share of the spectrum that each stands for."""
    weighted = nodes.weights > 1e-6
    shares = nodes.weights[weighted] * nodes.values.shape[1]
    label = f"{name}, mean {mean:.3g}, nodes (not the JSVs)"
    ax.plot(nodes.values[weighted], shares, ".", color=shade, markersize=3, alpha=0.5, label=label)


def comparison(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the table of `isometry.compare`: one bar per network, its mean JSV with the 95 % interval over samples.

    The axis is logarithmic where the mean JSVs, or they and the isometry line at 1, span more than a factor of 30.

    Args:
        table: columns `network`, `mean_jsv`, `interval_low`, `interval_high`.
        ax: where to draw; a new figure when None.
    """
    require_columns(table, "comparison", "network", "mean_jsv", "interval_low", "interval_high")
    ax = new_axes(ax)
    means = table["mean_jsv"].to_numpy()
    reach = np.nan_to_num(np.stack([means - table["interval_low"], table["interval_high"] - means]).clip(0))
    colors = distinct_colors(table["network"])
    for row, name in enumerate(table["network"]):
        ax.bar(row, means[row], yerr=reach[:, [row]], color=colors[str(name)], capsize=4, width=0.6)
    ax.set_xticks(range(len(table)), table["network"], rotation=20 if len(table) > 4 else 0)
    positive = [*means[means > 0], 1.0]  # with the line at 1, beside which small bars would vanish
    if max(positive) / min(positive) > 30:
        ax.set_yscale("log")
        ax.set_ylim(min(positive) / 3, 3 * max(positive))  # the smallest is a bar, too
    ax.axhline(1, color="#d62728", linewidth=1, linestyle=":", label="isometry")
    ax.set_ylabel("mean JSV (95 % interval over samples)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def layers(table: Report | pd.DataFrame | Mapping[str, Report], ax: Axes | None = None) -> Axes:
    """Draw where in the network the JSVs are lost: the mean JSV of the map from each layer to the output.

    Args:
        table: a report measured with `layers`, its table, or {name: such a report}. The reference of a report is drawn as
            "dense", at the layers that it shares with the others.
        ax: where to draw; a new figure when None.
    """
    named = _with_dense(dict(table) if isinstance(table, Mapping) else {"network": table})
    tables: dict[str, pd.DataFrame] = {}
    for name, entry in named.items():
        rows = entry.layers if isinstance(entry, Report) else entry
        if rows is None:
            raise ValueError("plots.layers() got a report without layers; measure it with layers=True.")
        tables[name] = rows
        require_columns(rows, "layers", "layer", "mean_jsv", "interval_low", "interval_high")
    ax = new_axes(ax)
    places: dict[str, int] = {}
    colors = distinct_colors(named)
    for name, rows in tables.items():
        x = [places.setdefault(layer, len(places)) for layer in rows["layer"]]
        reach = [rows["mean_jsv"] - rows["interval_low"], rows["interval_high"] - rows["mean_jsv"]]
        ax.errorbar(
            x, rows["mean_jsv"], [side.fillna(0).clip(lower=0) for side in reach], marker="o", markersize=3, capsize=2,
            color=colors[name], label=name, linewidth=1.3,
        )  # fmt: skip
    ax.set_xticks(range(len(places)), list(places), rotation=90, fontsize="x-small")
    ax.set_yscale("log")
    ax.axhline(1, color="#d62728", linewidth=1, linestyle=":", label="isometry")
    ax.set_xlabel("layer, from input to output")
    ax.set_ylabel("mean JSV from the layer's output\nto the network's (95 % interval)")
    ax.legend(frameon=False, fontsize="small")
    return ax


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
    by_layer = networks.importances(x) if isinstance(x, nn.Module) else dict(x)
    ax = new_axes(ax)
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
    require_columns(rows, "importance_history", "method", "epoch", "low", "high", "units")
    ax = new_axes(ax)
    epochs = sorted(rows["epoch"].unique())
    for shade, epoch in zip(plt.get_cmap("viridis")(np.linspace(0.9, 0.0, len(epochs))), epochs, strict=True):
        part = rows[rows["epoch"] == epoch]
        edges = [*part["low"], part["high"].iloc[-1]]
        ax.stairs(part["units"], edges, color=shade, label=f"epoch {epoch:.0f}", linewidth=1.6)
    ax.set(xlabel="log10 importance", ylabel="units (seed 0)", yscale="symlog")
    ax.set_title(str(rows["method"].iloc[0]), fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="best")
    return ax
