"""Tables of trials read for a summary: methods named, first and last rows of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from isometry.trials.script import format_spread

__all__ = [
    "add_steps_spent",
    "before_finetuning",
    "gains",
    "last_epoch",
    "name_methods",
    "percent",
    "shortfall_by_jsv",
    "shortfall_by_network",
    "texts_before",
]

_CELL = ["network", "ratio", "lr", "seed"]
_JSV_COLUMNS = {"mean JSV": ("mean_jsv", 3), "std": ("std_jsv", 3), "condition number": ("condition_number", 0)}


def name_methods(table: pd.DataFrame, pruners: Mapping[str, str], repairs: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows from pruning on, with a column `method`, and with one row at epoch 0 per trial.

    That row is the repaired network of trials with a repair, else the pruned one: what fine-tuning starts from.

    Args:
        table: as `run` returns it; names in a column `method` are kept.
        pruners: {pruner in the table: its name}.
        repairs: {repair in the table: suffix of the name}; none for others.
    """
    rows = table[~table["phase"].isin(["dense", "sparse"])].copy()
    names = rows["pruner"].map(pruners).fillna(rows["pruner"]) + rows["repair"].map(repairs).fillna("")
    rows["method"] = rows["method"].fillna(names) if "method" in rows else names
    return rows[(rows["repair"] == "none") | (rows["phase"] != "pruned")]


def before_finetuning(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at epoch 0."""
    return rows[rows["epoch"] == 0]


def last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of fine-tuning at its last epoch."""
    tuned = rows[rows["phase"] == "finetune"]
    return tuned[tuned["epoch"] == tuned["epoch"].max()]


def percent(rows: pd.DataFrame, digits: int = 2, *, always: bool = True) -> str:
    """Return accuracies as text, in %; see `format_spread`."""
    return format_spread(100 * rows["accuracy"], digits, always=always)


def texts_before(rows: pd.DataFrame) -> dict[str, str]:
    """Return JSV statistics and accuracy as {heading: text}, of rows that `before_finetuning` returned."""
    texts = {name: format_spread(rows[column], digits, always=False) for name, (column, digits) in _JSV_COLUMNS.items()}
    return texts | {"just pruned, %": percent(rows, always=False)}


def add_steps_spent(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `spent`: the training steps so far, those before removal included.

    Those are in the column `steps_before`. Where there is none, all methods of a network end at the same number, and what a trial's
    fine-tuning lacks of it was spent before removal.
    """
    total = rows.groupby("trial")["steps"].transform("max")
    before = (total.groupby(rows["network"]).transform("max") - total).fillna(0)
    if "steps_before" in rows:
        before = rows["steps_before"].fillna(before)
    return rows.assign(spent=rows["steps"].fillna(0) + before)


def shortfall_by_jsv(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many points trials end behind the best of their cell, by ratio of the mean JSV to the dense one's and by rate.

    A cell is a network, ratio, rate and seed; a training that diverged ends at 0. Median and quartiles as text.

    Args:
        table: one row per trial with these columns, `jsv_ratio`, `accuracy` and `diverged`.
    """
    rows = _with_shortfall(table)
    bins = pd.cut(rows["jsv_ratio"], [0, 0.001, 0.01, 0.1, 0.5, 2, math.inf], include_lowest=True)
    lines = []
    for bin_, group in rows["behind"].groupby(bins, observed=True):
        line = {"mean JSV / dense": f"{max(bin_.left, 0):g} to {bin_.right:g}", "trials": len(group)}
        for lr, values in group.groupby(rows["lr"]):
            low, middle, high = (f"{q:.1f}" for q in values.quantile([0.25, 0.5, 0.75]))
            line[f"points behind, lr {lr:g}"] = f"{middle} ({low} to {high})"
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def shortfall_by_network(table: pd.DataFrame, lr: float) -> pd.DataFrame:
    """Return, by network at one rate, how trials end whose mean JSV is far below the dense one's, and near to it.

    Args:
        table: as `shortfall_by_jsv` takes it.
        lr: the rate.
    """
    rows = _with_shortfall(table[table["lr"] == lr]).reset_index(drop=True)
    parts = {"below 0.01": rows["jsv_ratio"] <= 0.01, "0.5 to 2": rows["jsv_ratio"].between(0.5, 2, inclusive="right")}
    lines = []
    for network, group in rows.groupby("network", sort=False):
        line = {"network": network}
        for name, chosen in parts.items():
            part = group[chosen[group.index]]
            line[f"{name}: trials"] = f"{len(part)}"
            line[f"{name}: points behind"] = f"{part['behind'].median():.1f}"
            line[f"{name}: ends at, %"] = f"{part['outcome'].median():.1f}"
        lines.append(line)
    return pd.DataFrame(lines).replace("nan", "")


def _with_shortfall(table: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with their `outcome`, and by how many points they end `behind` the best of their cell."""
    rows = table.assign(outcome=100 * table["accuracy"].where(~table["diverged"], 0.0))
    return rows.assign(behind=rows.groupby(_CELL)["outcome"].transform("max") - rows["outcome"])


def gains(table: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, by_network: bool = False) -> pd.DataFrame:
    """Return how many points a method ends ahead of another in the same cells, by rate: median, and in how many cells it is.

    Args:
        table: as `shortfall_by_jsv` takes it, with the column `method`.
        pairs: (method, the one it is compared with).
        by_network: whether each network has lines of its own.
    """
    if by_network:
        parts = []
        for name, part in table.groupby("network", sort=False):
            both = [pair for pair in pairs if set(pair) <= set(part["method"])]
            parts.append(gains(part, both).assign(network=name))
        found = pd.concat(parts).sort_values("points ahead", kind="stable")
        return found[["points ahead", "network", *found.columns.drop(["points ahead", "network"])]].fillna("")
    wide = _with_shortfall(table).pivot(index=_CELL, columns="method", values="outcome")
    lines = []
    for first, second in pairs:
        ahead = (wide[first] - wide[second]).dropna()
        line = {"points ahead": f"{first} over {second}"}
        for lr, values in ahead.groupby(level="lr"):
            line[f"lr {lr:g}"] = f"{values.median():.1f}, in {(values > 0).sum()} of {len(values)}"
        lines.append(line)
    return pd.DataFrame(lines)
