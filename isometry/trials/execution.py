"""The execution of one stage, in this process or in a worker: locked, cleaned up, its failure recorded."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from filelock import BaseFileLock, FileLock, Timeout

from isometry.files import make_folder, remove_leftovers, write
from isometry.measurement.measuring import interrupts_raised
from isometry.training.capture import capture_steps
from isometry.training.deadline import OutOfTimeError, is_over, stop_at
from isometry.trials.record import RECORD, find, write_record
from isometry.trials.resumption import SPENT, remove_checkpoints
from isometry.trials.stage import ROWS_FILE, Stage

__all__ = [
    "ERROR_FILE",
    "Job",
    "Outcome",
    "acquire_lock",
    "clear_results",
    "execute",
    "record_failure",
    "warn_of_waiting",
    "was_started",
]

ERROR_FILE = "error.txt"
_LOCK, _RUNNING = ".lock", ".running"
_POLL = 0.2  # seconds between looks at the parent, where the system cannot tell of its end
_watched: set[int] = set()


class Job(NamedTuple):
    """What a worker needs to execute a stage.

    Attributes:
        stage: which.
        runs: the folder of all stages.
        device: where networks live.
        weights: whether the network of a fine-tuning is kept.
        parent: the process that runs all trials.
        progress: whether trainings show a bar of their own; None: in terminals and notebooks.
        capture: whether steps of training are captured as CUDA graphs.
        deadline: when the stage is to end, finished or not, in seconds as `time.time` counts them; None for no limit.
        rank: stages of a lower rank are executed first.
    """

    stage: Stage
    runs: Path
    device: str
    weights: bool
    parent: int
    progress: bool | None = False
    capture: bool = False
    deadline: float | None = None
    rank: int = 0

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.runs / self.stage.folder


class Outcome(NamedTuple):
    """How a stage ended.

    Attributes:
        folder: the stage's.
        error: what went wrong, None where it is finished.
        notes: warnings of the stage: (text, category).
        postponed: whether its time was up before it was finished.
    """

    folder: str
    error: str | None = None
    notes: tuple[tuple[str, type[Warning]], ...] = ()
    postponed: bool = False


def execute(job: Job) -> Outcome:
    """Execute one stage unless it is done. An error is written to error.txt in its folder and returned, not raised."""
    if job.deadline is not None and is_over(job.deadline):
        return Outcome(job.stage.folder, postponed=True)
    _die_with(job.parent)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    error, postponed = None, False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _locked(job.folder):
                if (
                    find(job.stage, job.runs, weights=job.weights).record is None
                ):  # another run may have done it meanwhile
                    _compute(job)
        except OutOfTimeError:
            (job.folder / _RUNNING).unlink(missing_ok=True)
            postponed = True
        except Exception as failure:
            error = record_failure(job, f"{type(failure).__name__}: {failure}", traceback.format_exc())
        finally:
            torch.set_num_threads(threads)
    return Outcome(job.stage.folder, error, tuple((str(note.message), note.category) for note in caught), postponed)


@interrupts_raised()
def _compute(job: Job) -> None:
    folder, stage = job.folder, job.stage
    clear_results(folder)
    (folder / _RUNNING).touch()
    write(folder / "settings.json", json.dumps(stage.settings, indent=1))
    start, spent = time.perf_counter(), folder / SPENT
    before = float(spent.read_text()) if spent.exists() else 0.0
    try:
        with stop_at(job.deadline), capture_steps(job.capture):
            rows = stage.execute(job.runs, job.device, weights=job.weights, progress=job.progress)
    except OutOfTimeError:
        write(spent, str(before + time.perf_counter() - start))
        raise
    write(folder / ROWS_FILE, pd.DataFrame(rows).to_csv(index=False))
    device = torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else None
    write_record(stage, job.runs, before + time.perf_counter() - start, device)
    remove_checkpoints(folder)
    (folder / _RUNNING).unlink(missing_ok=True)


def clear_results(folder: Path) -> None:
    """Delete what another attempt at a stage left in its folder, but for what an interrupted one goes on from."""
    remove_leftovers(folder)
    for name in (RECORD, ERROR_FILE, "history.csv", _RUNNING):
        (folder / name).unlink(missing_ok=True)


def was_started(job: Job) -> bool:
    """Whether a process began to execute the stage and was killed before it ended."""
    return (job.folder / _RUNNING).exists()


def record_failure(job: Job, error: str, details: str) -> str:
    """Write why a stage failed to error.txt in its folder; return one line that names trial and file."""
    path = job.folder / ERROR_FILE
    with contextlib.suppress(OSError):  # of a full disk, for instance, which may be why it failed
        (job.folder / _RUNNING).unlink(missing_ok=True)
        write(path, f"{job.stage.trial.key}, {job.stage.phase}\n\n{details}\n")
    return f"{job.stage.trial.key}, {job.stage.phase}: {error} (see {path})"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a stage's folder; wait where another run computes that stage."""
    try:
        lock = acquire_lock(folder, timeout=1)
    except Timeout:
        warn_of_waiting(folder)
        lock = acquire_lock(folder)
    try:
        yield
    finally:
        lock.release()


def acquire_lock(folder: Path, timeout: float = -1) -> BaseFileLock:
    """Return the lock of a stage's folder, held; raise `filelock.Timeout` where another run holds it for `timeout` seconds."""
    make_folder(folder)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"cannot lock {folder / _LOCK} ({error}); choose a folder on a file system with locks, e.g. run(trials, '/tmp/runs')"
        ) from error
    return lock


def warn_of_waiting(folder: Path) -> None:
    """Say on the standard error that another run computes a stage."""
    print(f"waiting for another run that computes {folder}", file=sys.stderr, flush=True)


def _die_with(parent: int) -> None:
    """Kill this worker as soon as the process `parent`, which started it, ends. Does nothing in that process itself."""
    if parent == os.getpid() or parent in _watched or os.name == "nt":
        return
    _watched.add(parent)
    descriptor = None
    if hasattr(os, "pidfd_open"):  # Linux
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(parent)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_wait_for_end, args=(parent, descriptor), daemon=True).start()


def _wait_for_end(parent: int, descriptor: int | None) -> None:
    if descriptor is None:
        while os.getppid() == parent:
            time.sleep(_POLL)
    else:
        poller = select.poll()  # knows descriptors above 1024, too
        poller.register(descriptor, select.POLLIN)
        poller.poll()
    os.kill(os.getpid(), signal.SIGKILL)  # at once: whatever it writes now, nobody waits for
