"""A Dask scheduler and workers, each a process of its own, on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

distributed = pytest.importorskip("distributed", reason="pip install 'isometry[cluster]'")
ROOT = Path(__file__).parents[2]


class Cluster:
    """A scheduler and workers, each a process of its own in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, list[subprocess.Popen]()
        self.scheduler = self.start("scheduler", "--scheduler-file", str(folder / "address"), "--port", "0")
        wait_until(lambda: (folder / "address").exists() and (folder / "address").stat().st_size)
        self.client = distributed.Client(scheduler_file=str(folder / "address"), timeout=120)
        self.address = self.client.scheduler.address

    def start(self, kind: str, *options: str) -> subprocess.Popen:
        here = self.folder / f"{kind}-{len(self.workers)}"
        here.mkdir(parents=True)
        variables = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(here),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",  # the default is 3, which takes longer
        }  # fmt: skip
        command = [sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", "--dashboard-address", ":0", *options]
        with open(here / "log", "w") as log:
            return subprocess.Popen(command, cwd=here, env=variables, stdout=log, stderr=log)

    def restart(self, count: int) -> None:
        """Start as many workers as are missing."""
        while sum(worker.poll() is None for worker in self.workers) < count:
            options = ("--nthreads", "1", "--no-nanny", "--local-directory", "scratch")
            self.workers.append(self.start("worker", self.address, *options))

    def supply(self, count: int) -> None:
        """Start as many workers as are missing, and wait for them."""
        self.restart(count)
        self.client.wait_for_workers(count, timeout=120)

    def close(self) -> None:
        self.client.close()
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def wait_until(happens: Any) -> None:
    end = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)
