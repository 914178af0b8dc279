"""What an interrupted stage goes on from: a checkpoint, and the log of its rows."""

from __future__ import annotations

import warnings
from pathlib import Path

from isometry.files import read_records
from isometry.training.checkpoint import checkpoint_files, remove_damaged

__all__ = ["CHECKPOINT", "LOG", "SPENT", "check_resumable", "remove_checkpoints"]

CHECKPOINT, LOG, SPENT = "training.safetensors", "rows.jsonl", ".spent"
"""Of one stage: the state of its training, its rows so far, and the seconds that it took until its time was up."""


def remove_checkpoints(folder: Path) -> None:
    """Delete what only an interrupted stage needs."""
    for file in (*folder.glob(f"{CHECKPOINT}*"), *folder.glob(LOG), folder / SPENT):
        file.unlink(missing_ok=True)


def check_resumable(checkpoint: Path, log: Path | None, number: str) -> None:
    """Delete, with a warning, what an interrupted training cannot go on from.

    That is a damaged checkpoint, or one without the rows of its epochs in the log; the training then starts again.

    Args:
        checkpoint: the training's.
        log: what `write_records` wrote after every epoch; None for a training without rows.
        number: the key of the epoch's number in a row.
    """
    done = remove_damaged(checkpoint)
    if log is None:
        return
    try:
        found = [row[number] for row in read_records(log)]
        reason = None if found[:done] == list(range(1, done + 1)) else f"{log} lacks rows of the {done} epochs done"
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error)
    if reason is not None:
        warnings.warn(f"{reason}. It is deleted with its checkpoint, and the training starts again.", stacklevel=2)
        for file in (log, *checkpoint_files(checkpoint)):
            file.unlink(missing_ok=True)
