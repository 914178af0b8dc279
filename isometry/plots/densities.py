"""Densities of Jacobian singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes

from isometry.measurement.report import Report
from isometry.plots.axes import new_axes
from isometry.plots.colors import distinct_colors
from isometry.spectra import Spectrum
from isometry.spectra.laws import Law

__all__ = ["spectrum"]


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
        x: a report or spectrum, or {name: report or spectrum}.
        ax: where to draw; a new figure when None.
        bins: number of bins.
        law: a closed-form law drawn over it, with its Kolmogorov-Smirnov distance to the first spectrum.
    """
    ax = new_axes(ax)
    named = {"network": x} if isinstance(x, Report | Spectrum) else dict(x)
    if not named:
        raise ValueError(
            "plots.spectrum() got no spectra; it takes at least one, e.g. spectrum(isometry.measure(model))."
        )
    reports = {name: r.spectrum if isinstance(r, Report) else r for name, r in named.items()}
    values = np.concatenate([r.values[r.weights > 0].numpy() for r in reports.values()])
    top = max(float(values.max()), 1.0) * 1.05
    positive = values[values > top * 1e-9]
    low = min(float(positive.min()), 1.0) * 0.95 if len(positive) else 0.5
    logarithmic = top / low > 30
    edges = np.geomspace(low, top, bins + 1) if logarithmic else np.linspace(0, top, bins + 1)
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


def _draw_nodes(ax: Axes, nodes: Spectrum, name: str, mean: float, shade: str) -> None:
    """Draw quadrature nodes against the share of the spectrum that each stands for."""
    weighted = nodes.weights > 1e-6
    shares = nodes.weights[weighted] * nodes.values.shape[1]
    label = f"{name}, mean {mean:.3g}, nodes (not the JSVs)"
    ax.plot(nodes.values[weighted], shares, ".", color=shade, markersize=3, alpha=0.5, label=label)
