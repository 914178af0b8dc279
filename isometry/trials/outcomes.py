"""Tables of trials read for a summary: methods named, first and last rows of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from isometry.trials.script import format_spread

__all__ = ["before_finetuning", "last_epoch", "name_methods", "percent"]


def name_methods(table: pd.DataFrame, pruners: Mapping[str, str], repairs: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows from pruning on, with a column `method`, and with one row at epoch 0 per trial.

    That row is the repaired network of trials with a repair, else the pruned one: what fine-tuning starts from.

    Args:
        table: as `run` returns it.
        pruners: {pruner in the table: its name}.
        repairs: {repair in the table: suffix of the name}; none for others.
    """
    rows = table[~table["phase"].isin(["dense", "sparse"])].copy()
    rows["method"] = rows["pruner"].map(pruners).fillna(rows["pruner"]) + rows["repair"].map(repairs).fillna("")
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
