"""A loss of power on a real file system."""

import shutil
import subprocess
from pathlib import Path

import pytest

from isometry.files import write
from isometry.trials.faults.disks import mounted


def test_what_was_written_is_kept_and_what_was_not_synced_is_lost(tmp_path: Path) -> None:
    image, after, text = tmp_path / "disk.img", tmp_path / "after.img", 1000 * "word "
    try:
        with mounted(image) as disk:
            (disk / "careless").write_text(text)
            write(disk / "careful", text)
            shutil.copyfile(image, after)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"an image cannot be mounted: {error}")
    with mounted(after) as disk:
        assert (disk / "careful").read_text() == text
        assert not ((disk / "careless").exists() and (disk / "careless").read_text())
