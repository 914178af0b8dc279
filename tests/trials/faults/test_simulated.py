"""Simulated crashes, losses of power and damage."""

import os
import random
import sys
from pathlib import Path

import pytest

from isometry.files import write
from isometry.trials.faults.simulated import Disk, fork, mutate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def end(disk: Disk, work: object) -> int:
    """Run `work` in a process with this disk; return its exit status."""

    def body() -> None:
        disk.install()
        work()  # type: ignore[operator]

    with fork(body) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_file_written_by_write_is_old_or_new_wherever_the_power_fails(tmp_path: Path) -> None:
    for loss in (None, "data", "names"):
        found = []
        for point in range(1, 20):
            (tmp_path / "file").write_text("old")
            if end(Disk(tmp_path, point, loss), lambda: write(tmp_path / "file", "new")) == 0:
                break
            found.append((tmp_path / "file").read_text())
        assert set(found) == {"old", "new"} if loss != "names" else {"old"}
        assert found == sorted(found, reverse=True)
        assert len(found) == 6  # open, half, whole, sync, rename, sync


def test_a_file_that_is_not_synced_is_lost(tmp_path: Path) -> None:
    def careless() -> None:
        (tmp_path / "partial").write_text("new")
        os.replace(tmp_path / "partial", tmp_path / "file")
        os.mkdir(tmp_path / "later")

    for loss, text in ((None, "new"), ("data", ""), ("names", "old")):
        (tmp_path / "file").write_text("old")
        point = 5  # open, half, whole, rename, mkdir
        assert end(Disk(tmp_path, point, loss), careless) == 137
        assert (tmp_path / "file").read_text() == text


@pytest.mark.parametrize("kind", ["bit flip", "truncation", "swap"])
def test_a_mutation_changes_a_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4)
    assert any(mutate(tmp_path / "file", kind, random.Random(seed)) for seed in range(3))
