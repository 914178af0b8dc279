"""Tables of trials: statistics against the ratio, over fine-tuning, and what they lead to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from isometry.plots.axes import draw_legend, label_of, new_axes, require_columns
from isometry.plots.colors import distinct_colors

__all__ = ["outcome", "sweep", "trajectory"]

_FEW_EPOCHS = 10  # up to here the axis is linear and every epoch has its tick
_OUTCOMES = ("accuracy", "loss")
_ZERO = "at the lower end: 0"


def trajectory(table: pd.DataFrame, ax: Axes | None = None, *, y: str = "mean_jsv", by: str = "method") -> Axes:
    """Draw `y` against the fine-tuning epoch, one line per method: the mean over seeds, the band one standard deviation.

    Args:
        table: columns `epoch` (0 is just before fine-tuning), `by` and `y`, such as that of `isometry.sweep`. Where it has several
            ratios, every one has a line of its own; rows of the dense network are a dash-dotted line at their mean.
        ax: where to draw; a new figure when None.
        y: the column drawn; mean JSVs get a logarithmic axis with the isometry line at 1.
        by: the column that names the method; names that contain "+" are drawn dashed.
    """
    require_columns(table, "trajectory", "epoch", by, y)
    ax = new_axes(ax)
    rows = _after_pruning(table, by).dropna(subset=[y])
    names = rows[by].astype(str)
    if "ratio" in rows and by != "ratio" and rows["ratio"].nunique() > 1:
        names = _with_ratios(names, rows["ratio"])
    colors = distinct_colors(names, dashed=True)
    for name, part in rows.groupby(names, sort=False):
        over = part.groupby("epoch")[y].agg(["mean", "std"]).fillna(0.0)
        style: dict[str, Any] = {"color": colors[name], "linestyle": "--" if "+" in str(name) else "-"}
        ax.plot(over.index, over["mean"], label=name, linewidth=1.4, marker="o" if len(over) == 1 else None, **style)
        floor = over["mean"] * 0.05 if y == "mean_jsv" else -math.inf
        low, high = np.maximum(over["mean"] - over["std"], floor), over["mean"] + over["std"]
        ax.fill_between(over.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
    _draw_dense(table, ax, y)
    _mark_epochs(ax, int(rows["epoch"].max()) if len(rows) else 0)
    ax.set_ylabel(label_of(y, table))
    if y == "mean_jsv":
        ax.set_yscale("log")
        ax.axhline(1, color="#d62728", linewidth=1, linestyle=":")
    draw_legend(ax)
    return ax


def _after_pruning(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the rows from pruning on, one per trial and epoch: of a repaired trial at epoch 0 the repaired network."""
    if "phase" not in table:
        return table
    rows = table[~table["phase"].isin(["dense", "sparse"])]
    return rows.drop_duplicates([by, "trial", "epoch"], keep="last") if "trial" in rows else rows


def _with_ratios(names: pd.Series, ratios: pd.Series) -> pd.Series:
    """Return every name with its ratio, in front of the repair: "L1, 0.5 + oracle"."""
    parts = names.str.split(" + ", n=1, regex=False)
    repairs = parts.str[1].map(lambda repair: f" + {repair}", na_action="ignore").fillna("")
    return parts.str[0] + ", " + ratios.map("{:g}".format) + repairs


def _draw_dense(table: pd.DataFrame, ax: Axes, y: str) -> None:
    """Draw a line at the mean of the dense networks, where the table has some as a method of their own."""
    if "phase" in table and "method" in table:
        dense = table.loc[(table["phase"] == "dense") & (table["method"] == "dense"), y].dropna()
        if len(dense):
            ax.axhline(
                dense.mean(), color=distinct_colors(["dense"])["dense"], linewidth=1, linestyle="-.", label="dense"
            )


def _mark_epochs(ax: Axes, last: int) -> None:
    """Label the axis of epochs: every one of a few, else ever rarer ones; the last one always."""
    ax.set_xlabel("fine-tuning epoch")
    if last <= _FEW_EPOCHS:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=last + 1, min_n_ticks=1))
        ax.set_xlim(*((0, last) if last else (-0.5, 0.5)))
        return
    ax.set_xscale("symlog", linthresh=1)
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000) if tick * 1.6 < last]
    ax.xaxis.set_major_locator(FixedLocator([*ticks, last]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    ax.set_xlim(0, last)


def sweep(
    table: pd.DataFrame, ax: Axes | None = None, *, x: str = "ratio", y: str = "mean_jsv", by: str = "method"
) -> Axes:
    """Draw `y` against `x`, one line per method, error bars of one standard deviation over seeds.

    Args:
        table: columns `x`, `y`, `by`, such as that of `isometry.sweep`. Of a trial with rows of several epochs, statistics of the
            Jacobian are those just before fine-tuning, accuracy and loss those of the last epoch, where `x` is the ratio. Rows
            of the dense network are a line at their mean.
        ax: where to draw; a new figure when None.
        x: the column on the horizontal axis.
        y: the column drawn; mean JSVs get a logarithmic axis with the isometry line at 1.
        by: the column that names the method.
    """
    require_columns(table, "sweep", x, y, by)
    ax = new_axes(ax)
    rows, moment = _after_pruning(table, by).dropna(subset=[y]), ""
    if x == "ratio" and "epoch" in rows and "trial" in rows and rows.duplicated([by, "trial"]).any():
        last = y in _OUTCOMES
        rows = rows.sort_values("epoch", kind="stable")
        rows = rows.drop_duplicates([by, "trial"], keep="last" if last else "first").sort_index()
        moment = ", fine-tuned" if last else ", just before fine-tuning"
    colors = distinct_colors(rows[by], dashed=True)
    for name, part in rows.groupby(by, sort=False):
        over = part.groupby(x)[y].agg(["mean", "std"]).fillna(0.0)
        ax.errorbar(
            over.index, over["mean"], over["std"], label=str(name), color=colors[str(name)], marker="o",
            markersize=4, capsize=3, linestyle="--" if "+" in str(name) else "-", linewidth=1.4,
        )  # fmt: skip
        if y == "mean_jsv":
            _mark_zeros(ax, list(over.index[over["mean"] == 0]), colors[str(name)])
    if x == "ratio":
        _draw_dense(table, ax, y)
    if y == "mean_jsv":
        ax.set_yscale("log")
        ax.axhline(1, color="#d62728", linewidth=1, linestyle=":")
    ax.set_xlabel(label_of(x, table))
    ax.set_ylabel(label_of(y, table) + moment)
    draw_legend(ax)
    return ax


def _mark_zeros(ax: Axes, places: Sequence[float], shade: str) -> None:
    """Mark means of exactly 0, which have no place on a logarithmic axis, at its lower end."""
    if len(places):
        style: dict[str, Any] = {"marker": "v", "linestyle": "none", "markersize": 7, "clip_on": False}
        known = any(line.get_label() == _ZERO for line in ax.lines)
        at_bottom = ax.get_xaxis_transform()
        ax.plot(places, [0.0] * len(places), color=shade, label=None if known else _ZERO, transform=at_bottom, **style)


def outcome(table: pd.DataFrame, ax: Axes | None = None, *, by: str = "method") -> Axes:
    """Draw the final accuracy of every trial against its mean JSV just before fine-tuning; the title has their correlation.

    Args:
        table: columns `trial`, `phase`, `epoch` (0 is just before fine-tuning), `lr`, `mean_jsv`, `accuracy` and `by`.
        ax: where to draw; a new figure when None.
        by: the column that names the method; names that contain "+" get open markers, every learning rate its own shape.
    """
    require_columns(table, "outcome", "trial", "phase", "epoch", "lr", "mean_jsv", "accuracy", by)
    ax = new_axes(ax)
    keys = ["trial", by, "lr"]
    start = table[table["epoch"] == 0].groupby(keys, sort=False)["mean_jsv"].first()
    final = table[table["phase"] == "finetune"].sort_values("epoch").groupby(keys)["accuracy"].last()
    points = pd.concat([start, final], axis=1).reset_index().dropna()
    shapes = dict(zip(sorted(points["lr"].unique(), reverse=True), "os^Dv", strict=False))
    colors = distinct_colors(points[by], dashed=True)
    for (method, lr), rows in points.groupby([by, "lr"], sort=False):
        shade = colors[str(method)]
        face = "none" if "+" in str(method) else shade
        ax.scatter(rows["mean_jsv"], rows["accuracy"], marker=shapes[lr], s=34, facecolors=face, edgecolors=shade)
    for lr, shape in shapes.items():
        ax.scatter([], [], marker=shape, color="k", label=f"lr {lr:g}")
    if points[by].str.contains("+", regex=False).any():
        ax.scatter([], [], marker="o", facecolors="none", edgecolors="k", label="open: repaired")
    ax.axvline(1, color="#d62728", linewidth=1, linestyle=":")
    ax.set(xscale="log", xlabel="mean JSV just before fine-tuning", ylabel="test accuracy at the end of fine-tuning")
    correlation = points["mean_jsv"].clip(lower=1e-12).rank().corr(points["accuracy"].rank())
    ax.set_title(f"one point per trial; rank correlation {correlation:.2f}, n = {len(points)}", fontsize="medium")
    ax.legend(frameon=False)
    return ax
