"""Tables that grow: what a written table has is kept, with where it came from, and is not run again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from isometry.files import read_table
from isometry.trials.stages import plan_stages
from isometry.trials.trial import Trial

__all__ = ["Written", "join_origins", "read_written"]


@dataclass(frozen=True)
class Written:
    """A table of trials and its provenance, as an analysis wrote them.

    Attributes:
        table: one row per trial, phase and epoch.
        origin: what `describe_origin` returned of all its trials.
    """

    table: pd.DataFrame
    origin: dict[str, Any]

    def has(self, trial: Trial, label: Mapping[str, Any], fixed: Sequence[str] = ("dataset",)) -> bool:
        """Whether the table has a trial, with the columns of its label.

        Args:
            trial: one that was run under the same settings, whichever the version of isometry.
            label: {column: value}, written as numbers of six digits.
            fixed: columns, of the trial's attributes, that have one value in the whole table.

        Raises:
            ValueError: under this name and label the table has a trial of other settings, with which this one would be mixed; or
                all its trials have another value in a fixed column.
        """
        for column in fixed:
            own = trial.dataset_name if column == "dataset" else getattr(trial, column)
            if others := sorted(set(self.table[column].map(_text)) - {_text(own)}):
                raise ValueError(
                    f"its rows have the {column} {', '.join(others)}, this command {_text(own)}; give them the same, or name "
                    "another folder, e.g. --out runs/extended"
                )
        names = self._names_of(label)
        if self._name(trial) in names:
            return True
        alike = re.compile(re.escape(trial.key) + "(-[0-9a-f]{8})?")
        if mixed := [name for name in names if alike.fullmatch(name)]:
            raise ValueError(
                f"its trial {mixed[0]} was run with other settings than this command would{self._difference(trial)}; name another "
                "folder, e.g. --out runs/extended"
            )
        return False

    def rename(self, trial: Trial, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a trial under its name here, or under one that no other trial here has."""
        name = self._name(trial)
        if name is None and trial.key in set(self.table["trial"]):
            name = _digested(trial)
        return rows if name is None else rows.assign(trial=name)

    def _name(self, trial: Trial) -> str | None:
        """Return what a trial is called here: its key, with the digest of its settings where another one has or had that key."""
        if plan_stages(trial)[-1].folder not in self.origin["settings"]:
            return None
        names = set(self.table["trial"])
        return next((name for name in (_digested(trial), trial.key) if name in names), None)

    def _difference(self, trial: Trial) -> str:
        """Return the settings in which the trial of that name here differs, in brackets."""
        settings: dict[str, Any] = self.origin["settings"]
        own = plan_stages(trial)[-1].settings
        for folder, other in settings.items():
            if folder[:-9] == trial.key:
                return f" ({', '.join(name for name in {**own, **other} if own.get(name) != other.get(name))})"
        return ", or its .json is older than it, which lacks them"

    def _names_of(self, label: Mapping[str, Any]) -> list[str]:
        """Return the trials with these columns."""
        if not set(label) <= set(self.table.columns):
            return []
        own = self.table.drop_duplicates(["trial", *label])
        for name, value in label.items():
            own = own[own[name].map(_text) == _text(value)]
        return list(own["trial"])


def read_written(csv: Path, network: str) -> Written | None:
    """Return a written table; of one whose provenance is kept by network, the rows of that network; None where there are none.

    Args:
        csv: the table; its provenance is beside it, as .json.
        network: as in the table's column.

    Raises:
        ValueError: there is a table without provenance.
    """
    if not csv.exists():
        return None
    provenance = csv.with_suffix(".json")
    if not provenance.exists():
        raise ValueError(f"{provenance}, which tells its trials' settings, is not beside it; run without --extend")
    table, origin = read_table(csv), json.loads(provenance.read_text())
    if "networks" in origin:
        if network not in origin["networks"]:
            return None
        table, origin = table[table["network"] == network], origin["networks"][network]
    return _without_failures(table, origin)


def _without_failures(table: pd.DataFrame, origin: dict[str, Any]) -> Written | None:
    """Return what is left without the trials that failed, which are to be tried again; None where nothing is."""
    if "error" not in table.columns or not table["error"].notna().any():
        return Written(table, origin)
    names = set(table.loc[table["error"].notna(), "trial"])
    table = table[~table["trial"].isin(names)].drop(columns="error")
    settings = {
        folder: each for folder, each in origin["settings"].items() if not {folder, folder[:-9]} & names
    }  # a trial is called by its folder, or by that without the digest
    left = {name: value for name, value in origin.items() if name != "failed"}
    return (
        Written(table, {**left, "settings": settings, "trials": origin["trials"] - len(names)}) if len(table) else None
    )


def join_origins(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of two sets of trials as that of one: counts and seconds add up, lists hold every entry once.

    A stage that trials of both share, and that was not computed again, is counted in the seconds of both.

    Args:
        first: as `describe_origin` returns it.
        second: likewise; where both are one text or another kind of value, and differ, both texts are kept.
    """
    joined = dict(first)
    for name, value in second.items():
        before = joined.get(name)
        if before is None:
            joined[name] = value
        elif isinstance(value, list):
            every = [*before, *(entry for entry in value if entry not in before)]
            joined[name] = sorted(every) if name == "seeds" else every
        elif isinstance(value, dict):
            joined[name] = before | value
        elif isinstance(value, int | float):
            joined[name] = round(before + value, 1)
        elif value not in before.split("; "):
            joined[name] = f"{before}; {value}"
    return joined


def _digested(trial: Trial) -> str:
    return f"{trial.key}-{plan_stages(trial)[-1].folder[-8:]}"


def _text(value: Any) -> str:
    """Return a cell as a table of six digits has it; a missing value is the empty text."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return f"{value:.6g}" if number else str(value)
