"""Losses of power on a real file system: ext4 in an image behind a loop device, as it was when the process was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from isometry.trials.faults.restarts import Sweep
from isometry.trials.faults.simulated import fork

__all__ = ["lose_power", "mounted"]

_BYTES = 32 * 2**20
_OPTIONS = "loop,noauto_da_alloc"  # ext4 does not bring renamed files to the disk by itself


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Give the folder where the ext4 file system of an image is mounted, made first where the image does not exist.

    Raises:
        OSError, subprocess.CalledProcessError: this process may not mount, or a tool is missing.
    """
    folder = image.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    if not image.exists():
        with open(image, "wb") as file:
            file.truncate(_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", _OPTIONS, image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def lose_power(s: Sweep, moment: float) -> str:
    """Kill a sweep `moment` seconds after its start, keep what had reached the disk by then, and start it again on that."""
    with s.folder() as folder:
        folder.mkdir()
        image, after = folder / "disk.img", folder / "after.img"
        with mounted(image) as disk, fork(lambda: s.run(disk / "runs")) as pid:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            shutil.copyfile(image, after)  # without what the kernel still holds in memory
        with mounted(after) as disk:
            return s.restart(disk / "runs")
