"""Where the numbers of a run came from, and which of them are there."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isometry.trials.record import read_record
from isometry.trials.stages import plan_stages
from isometry.trials.trial import Trial

__all__ = ["describe_origin", "is_finished"]


def describe_origin(trials: Sequence[Trial], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return commits, versions, seeds, seconds of computing and settings of trials that `run` has finished, and which stages failed.

    Args:
        trials: those given to `run`.
        folder: that given to `run`.
    """
    chains = [plan_stages(trial) for trial in trials]
    stages = {stage.folder: stage for chain in chains for stage in chain}
    found = {name: read_record(stage, Path(folder)) for name, stage in stages.items()}
    records = [record for record in found.values() if record is not None]
    seconds = sum(record["seconds"] for record in records)
    devices = sorted({record["device"] for record in records if "device" in record})
    failed = {"failed": [name for name, record in found.items() if record is None]}
    return {
        "software": [dict(items) for items in sorted({tuple(record["software"].items()) for record in records})],
        "seeds": sorted({trial.seed for trial in trials}),
        "trials": len(trials),
        "computing_seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, {platform.system()}",
        **({"devices": devices} if devices else {}),
        "settings": {chain[-1].folder: chain[-1].settings for chain in chains},
        **(failed if failed["failed"] else {}),
    }


def is_finished(trial: Trial, folder: str | os.PathLike[str]) -> bool:
    """Whether all stages of a trial have been run.

    Args:
        trial: which.
        folder: that given to `run`.
    """
    return all(read_record(stage, Path(folder)) is not None for stage in plan_stages(trial))
