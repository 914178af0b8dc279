"""What travels to and from workers that share no file system: a stage, the files that it reads, the files that it wrote.

Nothing here imports Dask on its own account; `execute_parcel` is what a worker of Dask calls.
"""

from __future__ import annotations

import io
import os
import pickle
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from isometry.files import software, write
from isometry.trials.dataset import Own
from isometry.trials.execution import ERROR_FILE, Job, Outcome, clear_results, execute
from isometry.trials.record import RECORD

__all__ = ["Delivery", "describe_worker", "execute_parcel", "pickle_job", "read_files", "write_files"]

_TURN = threading.Lock()  # generators and settings of torch belong to the process: its threads take turns


class Delivery(NamedTuple):
    """What a worker returns.

    Attributes:
        outcome: how the stage ended.
        files: {name: content} of the stage's folder.
    """

    outcome: Outcome
    files: dict[str, bytes]


def describe_worker() -> dict[str, str]:
    """Return the versions of the process that calls this."""
    return software()


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a stage's folder, by name, but of hidden ones; none where there is no folder."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in found if path.is_file() and not path.name.startswith(".")}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a stage's folder instead of those that are there, each whole or not at all, the record last."""
    clear_results(folder)
    for name in sorted(files, key=lambda name: name == RECORD):
        write(folder / name, files[name])


def pickle_job(job: Job, hold: Callable[[Any], str]) -> bytes:
    """Return a job as bytes, without the data and networks of the user's in it, which many jobs share.

    Args:
        job: which.
        hold: is given each of these, and returns the name by which `execute_parcel` gets it.
    """
    import cloudpickle  # which Dask needs

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return hold(value) if isinstance(value, Own | nn.Module) else None

    file = io.BytesIO()
    Pickler(file).dump(job)
    return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, objects: Mapping[str, bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self._objects, self._loaded = objects, dict[str, Any]()

    def persistent_load(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = pickle.loads(self._objects[name])
        return self._loaded[name]


def execute_parcel(
    content: bytes,
    own: Mapping[str, bytes],
    inputs: Mapping[str, Mapping[str, bytes]],
    objects: Mapping[str, bytes],
) -> Delivery:
    """Execute a stage in a temporary folder of this worker, as `execute` does, and return the files that it wrote.

    Args:
        content: what `pickle_job` returned.
        own: files of the stage's folder, by which an interrupted stage continues.
        inputs: {folder of a stage that it reads: files of that}.
        objects: {name: pickled data or network} of those that `pickle_job` left out.
    """
    from distributed import get_worker

    with _TURN, tempfile.TemporaryDirectory(dir=get_worker().local_directory) as temporary:
        runs = Path(temporary)
        sent: Job = _Unpickler(content, objects).load()
        job = sent._replace(runs=runs, parent=os.getpid())
        for folder, files in {job.stage.folder: own, **inputs}.items():
            (runs / folder).mkdir(parents=True)
            for name, data in files.items():
                (runs / folder / name).write_bytes(data)
        outcome, files = execute(job), read_files(job.folder)
        if outcome.error is not None:
            outcome = outcome._replace(error=outcome.error.replace(str(runs), str(sent.runs)))
            files[ERROR_FILE] = (
                files.get(ERROR_FILE, b"") + f"\nin process {os.getpid()} of {platform.node()}\n".encode()
            )
        return Delivery(outcome, files)
