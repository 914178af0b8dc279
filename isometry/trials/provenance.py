"""Where the numbers of a run came from."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isometry.trials.stages import plan_stages
from isometry.trials.trial import Trial

__all__ = ["describe_origin"]


def describe_origin(trials: Sequence[Trial], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return commits, versions, seeds, seconds of computing and settings of trials that `run` has finished.

    Args:
        trials: those given to `run`.
        folder: that given to `run`.
    """
    chains = [plan_stages(trial) for trial in trials]
    folders = dict.fromkeys(stage.folder for chain in chains for stage in chain)
    records = [json.loads((Path(folder) / name / "done.json").read_text()) for name in folders]
    seconds = sum(record.pop("seconds") for record in records)
    return {
        "software": [dict(items) for items in sorted({tuple(record.items()) for record in records})],
        "seeds": sorted({trial.seed for trial in trials}),
        "trials": len(trials),
        "computing_seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, {platform.system()}",
        "settings": {chain[-1].folder: chain[-1].settings for chain in chains},
    }
