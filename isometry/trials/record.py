"""The record of a finished stage, done.json: what its files were when it ended, by which versions, with which settings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from isometry.errors import join_names
from isometry.files import file_digest, read_table, read_tensors, seal, software, unseal, write
from isometry.trials.stage import MODEL_FILE, ROWS_FILE, Stage

__all__ = ["RECORD", "Finding", "find", "read_record", "warn_of_damage", "warn_of_versions", "write_record"]

RECORD = "done.json"
_RESULTS = (ROWS_FILE, MODEL_FILE, "history.csv")


class Finding(NamedTuple):
    """What is found of a stage on disk.

    Attributes:
        record: of a finished stage whose files are those of its record, else None.
        damage: why a record is not believed, else None. Both are None where a stage has not been finished.
    """

    record: dict[str, Any] | None = None
    damage: str | None = None


def write_record(stage: Stage, runs: Path, seconds: float, device: str | None = None) -> None:
    """Record a stage as finished; its files must have been written.

    Args:
        stage: which.
        runs: the folder of all stages.
        seconds: how long it took.
        device: the name of the GPU, if on one.
    """
    folder = runs / stage.folder
    files = {name: file_digest(folder / name) for name in _RESULTS if (folder / name).exists()}
    record = {"seconds": round(seconds, 1), "software": software(), "settings": stage.settings, "files": files}
    record |= {} if device is None else {"device": device}
    write(folder / RECORD, json.dumps(seal(record), indent=1))


def read_record(stage: Stage, runs: Path) -> dict[str, Any] | None:
    """Return the record of a stage, with the keys seconds and software at least; None where it has not been finished.

    Raises:
        ValueError: the record is damaged; the text names its file.
    """
    path = runs / stage.folder / RECORD
    try:
        record = unseal(json.loads(path.read_text()))
        if "files" not in record:  # of isometry before it wrote digests
            record = {"seconds": record.pop("seconds"), "software": record}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return record


def find(stage: Stage, runs: Path, *, weights: bool = False) -> Finding:
    """Return whether a stage is finished, after comparing its files with its record.

    Args:
        stage: which.
        runs: the folder of all stages.
        weights: whether the network must be among its files.
    """
    folder = runs / stage.folder
    try:
        record = read_record(stage, runs)
        if record is None:
            return Finding()
        damage = _find_damage(stage, folder, record) if "files" in record else _find_unreadable(stage, folder)
    except ValueError as error:
        return Finding(damage=str(error))
    if damage is None and weights and not (folder / MODEL_FILE).exists():
        return Finding()
    return Finding(None, damage) if damage else Finding(record)


def _find_damage(stage: Stage, folder: Path, record: Mapping[str, Any]) -> str | None:
    """Return what does not fit the record, None where everything does."""
    if json.dumps(record["settings"], sort_keys=True) != json.dumps(stage.settings, sort_keys=True):
        return f"{folder / RECORD} is of other settings"
    for name, digest in record["files"].items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if file_digest(folder / name) != digest:
            return f"{folder / name} does not fit its digest in {RECORD}"
    return None if ROWS_FILE in record["files"] else f"{folder / RECORD} names no {ROWS_FILE}"


def _find_unreadable(stage: Stage, folder: Path) -> str | None:
    """Return which file of a stage of an earlier version, without digests, cannot be read; None where all can be."""
    try:
        rows = read_table(folder / ROWS_FILE)
        whole = len(rows) > 0 and {"phase", "epoch", "diverged"} <= set(rows.columns)
        if whole and stage.keeps_network and not rows["diverged"].any():
            read_tensors(folder / MODEL_FILE)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, pd.errors.ParserError) as error:
        return f"{folder} cannot be read ({error})"
    return None if whole else f"{folder / ROWS_FILE} has no rows"


def warn_of_versions(records: Iterable[Mapping[str, Any]], runs: Path, verb: str, *, computing: bool) -> None:
    """Warn once where results in a folder are of several versions, or of one that wrote no digests.

    Args:
        records: of the stages that were finished before.
        runs: the folder of all stages.
        verb: the public function that the user called.
        computing: whether stages will be added by the present version.
    """
    records = list(records)
    versions = [record["software"] for record in records] + ([software()] if computing else [])
    mixed = [
        f"{name} {', '.join(found)}"
        for name in ("isometry", "commit", "torch", "numpy")
        if len(found := sorted({str(version.get(name, "unknown")) for version in versions})) > 1
    ]
    if mixed:
        warnings.warn(
            f"{verb}() got the folder {runs}, whose results are of several versions: {'; '.join(mixed)}. Numbers may differ "
            "between versions; compute all with one in a new folder, e.g. 'runs-2'.",
            stacklevel=4,
        )
    if old := [record for record in records if "files" not in record]:
        warnings.warn(
            f"{verb}() got the folder {runs}, where {len(old)} stages are of an isometry that wrote no digests; that their files can "
            "be read is all that was checked. Compute them again in a new folder, e.g. 'runs-2'.",
            stacklevel=4,
        )


def warn_of_damage(damages: Iterable[str], verb: str) -> None:
    """Warn once of what is damaged and computed again."""
    if found := list(damages):
        warnings.warn(f"{verb}() computes again what is damaged: {join_names(found)}.", stacklevel=4)
