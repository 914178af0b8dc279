"""Axes, their labels, and the columns that a table must have."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

__all__ = ["draw_legend", "label_of", "new_axes", "require_columns"]


def new_axes(ax: Axes | None) -> Axes:
    """Return the given axes, or new ones."""
    return plt.subplots(figsize=(6.4, 4.2), layout="constrained")[1] if ax is None else ax


def draw_legend(ax: Axes) -> None:
    """Draw the legend, beside the axes where it is long."""
    beside = len(ax.get_legend_handles_labels()[1]) > 7
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
    ax.legend(frameon=False, fontsize="small", **place)


def label_of(column: str, table: pd.DataFrame) -> str:
    """Return what a column of a table of trials is called on an axis."""
    names = {
        "mean_jsv": "mean JSV",
        "accuracy": "test accuracy",
        "ratio": "ratio of units removed",
        "lr": "learning rate",
    }
    trained_on = "evaluated_on" in table and (table["evaluated_on"] == "training data").any()
    if column in ("accuracy", "loss") and trained_on:
        return f"{column} on the training data"
    return names.get(column, column.replace("_", " "))


def require_columns(table: Any, verb: str, *columns: str) -> None:
    """Raise an error that names the columns unless a table has them, and rows."""
    missing = [column for column in columns if column not in getattr(table, "columns", [])]
    if missing or not len(table):
        found = f"a {type(table).__name__}"
        if isinstance(table, pd.DataFrame):
            found = f"a table with {len(table)} rows and the columns {', '.join(map(str, table.columns)) or 'none'}"
        raise ValueError(
            f"plots.{verb}() got {found}; it takes a DataFrame with rows and "
            f"the columns {', '.join(columns)}, e.g. the one that "
            f"{'isometry.compare' if verb == 'comparison' else 'isometry.sweep'} returns."
        )
