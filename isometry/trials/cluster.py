"""Trials on the workers of a Dask cluster, which need not share a file system: results travel through Dask.

The client's process reads and writes the folder of a run as a run without a cluster does, with the same locks, records and
digests. joblib's backend for Dask does not serve here: one worker lost for good ends its whole call without saying which stage it was,
and it knows nothing of files.
"""

from __future__ import annotations

import hashlib
import queue
import secrets
import traceback
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, Timeout

from isometry.trials.execution import Job, Outcome, acquire_lock, record_failure, warn_of_waiting
from isometry.trials.parcel import Delivery, execute_parcel, pickle_job, read_files, write_files
from isometry.trials.record import find
from isometry.trials.resumption import remove_checkpoints

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["execute_on_workers"]

_FEWEST, _MOST = 8, 128  # stages sent at a time, between which two per thread; each holds a lock, which is an open file
_OBJECTS = 8  # data and networks of the user's that stay with the cluster
_FIRST = 100  # the priority of what stages need, before all of them
_POLL = 1.0  # seconds between looks at stages that another run computes


def execute_on_workers(
    client: Client, work: Mapping[str, Job], errors: dict[str, str]
) -> Generator[Outcome, None, None]:
    """Yield the outcomes of all stages as they end; put those that failed, or whose parent did, into `errors`.

    A stage is sent as soon as its parent is finished. Dask suspects every stage that waits at a worker when that is killed; those
    that it gives up run once more, each alone, so that one that takes its worker along is known. What was sent is cancelled
    when the generator is closed.

    Args:
        client: of the cluster.
        work: {folder of a stage: its job}.
        errors: {folder of a stage: why it failed}, filled.

    Raises:
        ConnectionError: the scheduler was lost, or cancelled a stage twice. What has ended is kept.
    """
    from distributed import CancelledError

    desk = _Desk(client, work)
    children: dict[str | None, list[Job]] = {}
    for job in work.values():
        parent = job.stage.parent
        children.setdefault(parent.folder if parent is not None and parent.folder in work else None, []).append(job)
    ready = children.get(None, [])
    try:
        while ready or desk.sent or desk.suspects:
            if not ready and not desk.sent:
                ready.append(desk.suspects.pop())
            ended = desk.send_those_free(ready)
            if not ended and (outcome := desk.receive()) is not None:
                ended = [outcome]
            while ended:
                outcome = ended.pop()
                yield outcome
                if outcome.error is None:
                    ready += children.get(outcome.folder, [])
                    continue
                errors[outcome.folder] = outcome.error
                ended += [Outcome(job.stage.folder, outcome.error) for job in children.get(outcome.folder, [])]
    except (CancelledError, Exception) as error:
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        raise ConnectionError(
            f"the Dask scheduler was lost, or cancelled a stage twice ({type(error).__name__}: {error}). What was finished is kept: call again."
        ) from error
    finally:
        desk.close()


class _Desk:
    """Sends stages to workers and receives what they return.

    Attributes:
        client: of the cluster.
        sent: {key: (future, job, lock of its folder)} of the stages under way.
        suspects: stages whose workers were killed, or that Dask cancelled.
    """

    def __init__(self, client: Client, work: Mapping[str, Job]) -> None:
        self.client = client
        self.sent: dict[str, tuple[Future, Job, BaseFileLock]] = {}
        self.suspects: list[Job] = []
        self._suspected: set[str] = set()
        self._run = secrets.token_hex(8)  # no other run of this cluster has the same keys
        self._ended: queue.Queue[Future] = queue.Queue()
        self._held: dict[str, Future] = {}  # files of stages, by their folders
        self._objects: dict[int, tuple[Any, str, Future]] = {}  # by their ids
        self._reads = {name: [stage.folder for stage in job.stage.reads] for name, job in work.items()}
        self._readers = Counter(folder for folders in self._reads.values() for folder in folders)
        self._foreign: set[str] = set()

    def send_those_free(self, ready: list[Job]) -> list[Outcome]:
        """Send the first stages that no other run computes, and remove them from `ready`; return those that one has finished."""
        ended, busy = [], []
        ready.sort(key=lambda job: (job.rank, -job.stage.duration))
        most = min(max(2 * sum(self.client.nthreads().values()), _FEWEST), _MOST) if ready else 0
        while ready and len(self.sent) < most:
            job = ready.pop(0)
            try:
                lock = acquire_lock(job.folder, timeout=0)
            except Timeout:
                busy.append(job)
                if job.stage.folder not in self._foreign:
                    warn_of_waiting(job.folder)
                self._foreign.add(job.stage.folder)
                continue
            except OSError as error:
                ended.append(Outcome(job.stage.folder, record_failure(job, str(error), traceback.format_exc())))
                continue
            try:
                if find(job.stage, job.runs, weights=job.weights).record is not None:
                    ended.append(Outcome(job.stage.folder))
                    lock.release()
                else:
                    self._send(job, lock)
            except BaseException:
                lock.release()
                raise
        ready += busy
        return ended

    def receive(self) -> Outcome | None:
        """Wait for a stage to end, store its files and return its outcome; None where none has ended for good for a while."""
        from distributed import CancelledError, KilledWorker

        try:
            future = self._ended.get(timeout=_POLL)
        except queue.Empty:
            return None
        key = str(future.key)
        _, job, lock = self.sent[key]
        try:
            outcome = _store(job, future)
        except (CancelledError, KilledWorker) as error:
            if self.client.status == "running" and job.stage.folder not in self._suspected:
                self._suspect(job)
                return None
            if isinstance(error, CancelledError):
                raise
            text = "its workers were killed, the last one while it ran nothing else, for want of memory perhaps"
            outcome = Outcome(job.stage.folder, record_failure(job, text, f"{text}\n{error}"))
        finally:
            del self.sent[key]
            lock.release()
            future.cancel()  # forgotten by the scheduler, so that a failure can be tried again
        for folder in self._reads[job.stage.folder]:
            self._readers[folder] -= 1
            if not self._readers[folder]:
                self._held.pop(folder, None)
        return outcome

    def _suspect(self, job: Job) -> None:
        """Keep a stage for later; what it reads is held anew where that was given up, too."""
        self.suspects.append(job)
        self._suspected.add(job.stage.folder)
        self._held = {name: future for name, future in self._held.items() if future.status != "error"}
        self._objects = {key: entry for key, entry in self._objects.items() if entry[2].status != "error"}

    def close(self) -> None:
        """Cancel what is under way."""
        futures = [future for future, _, _ in self.sent.values()]
        for _, _, lock in self.sent.values():
            lock.release()
        self.sent, self._held, self._objects = {}, {}, {}
        if futures and self.client.status == "running":
            self.client.cancel(futures)

    def _send(self, job: Job, lock: BaseFileLock) -> None:
        used: dict[str, Future] = {}

        def refer(value: Any) -> str:
            name, used[name] = self._hold_object(value)
            return name

        content = pickle_job(job, refer)
        inputs = {folder: self._hold_files(job.runs, folder) for folder in self._reads[job.stage.folder]}
        again = "-alone" if job.stage.folder in self._suspected else ""
        key = f"isometry-{job.stage.phase}-{job.stage.folder}-{self._run}{again}"
        own = read_files(job.folder)
        priority = job.stage.duration - 2 * job.rank  # durations are at most 1: of a lower rank first
        future = self._submit(execute_parcel, content, own, inputs, used, key=key, priority=priority)
        self.sent[key] = future, job, lock
        future.add_done_callback(self._ended.put)

    def _hold_files(self, runs: Path, folder: str) -> Future:
        """Return the files of a finished stage, which stay with the cluster until all stages that read them have ended."""
        if folder not in self._held:
            files = read_files(runs / folder)
            self._held[folder] = self._hold(files, _digest(files))
        return self._held[folder]

    def _hold_object(self, value: Any) -> tuple[str, Future]:
        """Return the name of data or a network of the user's, and its pickle, which stays with the cluster for a while."""
        import cloudpickle

        if id(value) not in self._objects:
            content = cloudpickle.dumps(value)
            name = hashlib.sha256(content).hexdigest()
            self._objects[id(value)] = value, name, self._hold(content, name)
        entry = self._objects[id(value)] = self._objects.pop(id(value))  # the last used is the last
        if len(self._objects) > _OBJECTS:
            del self._objects[next(iter(self._objects))]
        return entry[1:]

    def _hold(self, content: Any, digest: str) -> Future:
        """Return bytes as the result of a task, with which Dask can do what it does with results: send, lose and get them back."""
        key = f"isometry-held-{digest}-{self._run}-{len(self._suspected)}"  # another than that of one given up
        return self._submit(_same, content, key=key, priority=_FIRST)

    def _submit(self, *task: Any, **options: Any) -> Future:
        import dask

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):  # files are large
            return self.client.submit(*task, **options)


def _same(content: Any) -> Any:
    return content


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _store(job: Job, future: Future) -> Outcome:
    """Write what a worker returned to the folder of the stage; return how that ended. Raise what Dask did not run to its end."""
    from distributed import CancelledError, KilledWorker

    try:
        delivery: Delivery = future.result()
        write_files(job.folder, delivery.files)
        if delivery.outcome.error is not None:
            return delivery.outcome
        finding = find(job.stage, job.runs, weights=job.weights)
        if finding.record is None:
            raise ValueError(f"what the worker returned is not whole: {finding.damage}")
        remove_checkpoints(job.folder)
        return delivery.outcome
    except (CancelledError, KilledWorker):
        raise
    except Exception as error:  # whatever keeps a worker from executing it, or its files from being written
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            text += f", which workers must be able to import, e.g. client.upload_file('{error.name}.py')"
        return Outcome(job.stage.folder, record_failure(job, text, traceback.format_exc()))
