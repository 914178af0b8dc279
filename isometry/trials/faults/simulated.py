"""Crashes and losses of power, simulated: a process that ends at a chosen file operation, and what a disk would keep of its files."""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import os
import pathlib
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Disk", "fork", "mutate"]


class Disk:
    """Counts the file operations below a folder and ends this process at one of them. Only for a forked process.

    Making a folder, opening to write, each half of a write, syncing, renaming and deleting are operations.

    Args:
        root: the folder.
        crash_at: end the process before this operation, counted from 1; None never does.
        loss: None keeps all that was written, as after a crash of the process. "data" empties files that were not synced.
            "names" also undoes what happened to names in folders that were not synced since.
    """

    def __init__(self, root: Path, crash_at: int | None = None, loss: str | None = None) -> None:
        self.root, self.crash_at, self.loss, self.count = root.resolve(), crash_at, loss, 0
        self.synced = {path.stat().st_ino for path in self.root.rglob("*") if path.is_file()}
        self.undo: list[tuple[Path, Callable[[], None]]] = []

    def install(self) -> None:
        """Replace the functions of this process that change files."""
        self.originals = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        self.open = io.open
        copies: Any = getattr(pathlib, "_normal_accessor", os)  # Python 3.10's paths have their own
        for name, place in itertools.product(self.originals, {os, copies}):
            setattr(place, name, getattr(self, name))
        builtins.open = io.open = self.open_file  # type: ignore[assignment]
        if copies is not os:
            copies.open = self.open_file

    def operation(self) -> None:
        """Count an operation that is about to happen; end the process if it is the one."""
        self.count += 1
        if self.count == self.crash_at:
            if self.loss is not None:
                self.lose()
            os._exit(137)

    def inside(self, path: Any) -> bool:
        """Whether a path is below the folder."""
        return not isinstance(path, int) and Path(path).resolve().is_relative_to(self.root)

    def lose(self) -> None:
        """Make the folder what a disk may hold when the power fails now."""
        if self.loss == "names":
            for _, undo in reversed(self.undo):
                with contextlib.suppress(OSError):
                    undo()
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced:
                os.truncate(path, 0)

    def remember(self, path: Path) -> Callable[[], None]:
        """Return a function that puts a file back as it is now."""
        if not path.exists():
            return lambda: self.originals["unlink"](path)
        with self.open(path, "rb") as file:
            content = file.read()
        whole = path.stat().st_ino in self.synced

        def restore() -> None:
            with self.open(path, "wb") as file:
                file.write(content)
            (self.synced.add if whole else self.synced.discard)(path.stat().st_ino)

        return restore

    def fsync(self, descriptor: int) -> None:
        """Sync a file or folder."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.inside(path) or path == self.root.parent:
            self.operation()
            if path.is_dir():
                self.undo = [(folder, undo) for folder, undo in self.undo if folder != path]
            else:
                self.synced.add(os.fstat(descriptor).st_ino)
        self.originals["fsync"](descriptor)

    def replace(self, source: Any, target: Any) -> None:
        """Rename a file."""
        if self.inside(target):
            self.operation()
            for path in (Path(source), Path(target)):
                self.undo.append((path.resolve().parent, self.remember(path)))
        self.originals["replace"](source, target)

    def unlink(self, path: Any, **options: Any) -> None:
        """Delete a file."""
        if self.inside(path) and Path(path).exists():
            self.operation()
            self.undo.append((Path(path).resolve().parent, self.remember(Path(path))))
        self.originals["unlink"](path, **options)

    def mkdir(self, path: Any, *arguments: Any, **options: Any) -> None:
        """Make a folder."""
        if self.inside(path) and not Path(path).exists():
            self.operation()
            self.undo.append((Path(path).resolve().parent, lambda: os.rmdir(path)))
        self.originals["mkdir"](path, *arguments, **options)

    def open_file(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """Open a file; one to write comes with a `write` in two halves."""
        if not (set(mode) & set("wax+") and self.inside(path)):
            return self.open(path, mode, *arguments, **options)
        self.operation()
        if not Path(path).exists():
            self.undo.append((Path(path).resolve().parent, self.remember(Path(path))))
        file = self.open(path, mode, *arguments, **options)
        self.synced.discard(os.fstat(file.fileno()).st_ino)
        return _Halves(file, self)


class _Halves:
    """A file whose writes are two operations each."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def write(self, content: Any) -> int:
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            self.file.write(part)
            self.file.flush()
            self.disk.operation()
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextlib.contextmanager
def fork(work: Callable[[], object]) -> Iterator[int]:
    """Call `work` in a forked process, the leader of a group of its own, silently; yield its id, and end the group after.

    Its exit status is 1 after an error.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def mutate(path: Path, kind: str, chance: random.Random) -> bool:
    """Damage a file; return whether its content has changed.

    Args:
        path: the file.
        kind: "bit flip"; "truncation", to any shorter length; or "swap", of two blocks of up to 64 bytes.
        chance: where.
    """
    content = bytearray(path.read_bytes())
    before = bytes(content)
    if not content:
        return False
    if kind == "bit flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "truncation":
        del content[chance.randrange(len(content)) :]
    else:
        size = min(64, len(content) // 2)
        first, second = sorted(chance.randrange(len(content) - size + 1) for _ in range(2))
        second = max(second, first + size) if first + 2 * size <= len(content) else second
        block = content[first : first + size]
        content[first : first + size] = content[second : second + size]
        content[second : second + size] = block
    path.write_bytes(content)
    return bytes(content) != before
