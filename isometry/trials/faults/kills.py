"""Sweeps that are killed, in part or as a whole, and sweeps that run twice at once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from isometry.trials.faults.restarts import CRASHED, SAME, Sweep
from isometry.trials.faults.simulated import fork

__all__ = ["killed", "killed_pool", "two_runs"]


def killed(s: Sweep, sent: signal.Signals, moment: float) -> str:
    """Send a signal to a sweep, `moment` seconds after its start, and start it again."""
    with s.folder() as folder:
        with fork(lambda: s.run(folder)) as pid:
            time.sleep(moment)
            os.kill(pid, sent)
            if sent == signal.SIGINT:
                os.waitpid(pid, 0)
        return s.restart(folder)


def two_runs(s: Sweep, chance: random.Random) -> str:
    """Start a sweep twice on one folder, the second time a little later, and once more at the end."""
    with s.folder() as folder:
        with fork(lambda: s.run(folder)) as first:
            time.sleep(chance.uniform(0, 0.3 * s.seconds))
            together = s.restart(folder)
            _, status = os.waitpid(first, 0)
        after = s.restart(folder)
        return next((outcome for outcome in (together, after) if outcome != SAME), SAME if status == 0 else CRASHED)


def killed_pool(s: Sweep, chance: random.Random, *, worker: bool) -> str:
    """Kill the main process of two workers, and start again at once; or one of the workers, and let the main process go on."""
    with s.folder() as folder:
        with fork(lambda: s.run(folder, jobs=2)) as pid:
            while not (any(folder.rglob("training.safetensors")) or _has_ended(pid)):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, s.seconds))
            victims = (
                [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if worker else [pid]
            )
            workers = [p for p in victims if not worker or "LokyProcess" in Path(f"/proc/{p}/cmdline").read_text()]
            if workers and not _has_ended(pid):
                os.kill(chance.choice(workers), signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            outcome = s.restart(folder)  # at once, while orphans may still write
            time.sleep(0 if worker else 1)
        if worker and status != 0:
            return CRASHED
        return outcome if outcome != SAME else s.restart(folder)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
