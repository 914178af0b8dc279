"""How trials are run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Manner"]


class Manner(NamedTuple):
    """How trials are run; see `run`. Errors name no file in a folder that is temporary.

    Attributes:
        capture: whether steps of training are captured as CUDA graphs, see `isometry.training.capture`.
        deadline: when to end, in seconds as `time.time` counts them: no stage begins then, and a training ends with its epoch,
            to go on from there in the next run. None for no limit; only where the stages are executed by processes of this machine.
        ranks: of the trials: what those of a lower rank need is executed first. None: all at once.
    """

    folder: Path
    jobs: int | None = None
    device: str = "cpu"
    progress: bool | None = None
    weights: bool = False
    temporary: bool = False
    client: Any = None
    capture: bool = False
    deadline: float | None = None
    ranks: Sequence[int] | None = None
