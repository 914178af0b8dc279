"""What is downloaded, and what to do by hand where that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pooch
import pytest

from isometry import data
from tests.data.test_cifar import write_cifar


def failing(*args: Any, **options: Any) -> str:
    raise OSError("no route to host")


@pytest.mark.parametrize(
    ("name", "file"), [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", r"data_batch_1\.bin.*, test_batch\.bin")]
)
def test_a_failed_download_says_which_files_go_where(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "retrieve", failing)
    monkeypatch.delenv("ISOMETRY_DATA", raising=False)
    message = rf"data\.load\('{name}'\) could not download http.* \(OSError: no route to host\).*put {file} into the folder {name} of the one that ISOMETRY_DATA names \(is not set\): \$ISOMETRY_DATA/{name}/.*root="
    with pytest.raises(ConnectionError, match=message):
        data.load(name)


def test_the_message_shows_what_the_variable_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "retrieve", failing)
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path))
    with pytest.raises(ConnectionError, match=rf"ISOMETRY_DATA names \(is '{tmp_path}'\)"):
        data.load("cifar100")


def test_an_unpacked_archive_is_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "cifar-100-binary"
    write_cifar(folder, "cifar100", "")
    paths = [str(path) for path in folder.iterdir()]

    def unpacked(url: str, *, processor: Callable[..., Any], **options: Any) -> list[str]:
        assert isinstance(processor, pooch.Untar)
        return paths

    monkeypatch.setattr(pooch, "retrieve", unpacked)
    monkeypatch.delenv("ISOMETRY_DATA", raising=False)
    from dataclasses import replace

    small = replace(data.cifar.CIFAR_SETS["cifar100"], counts=(500, 100), sha256={})
    monkeypatch.setitem(data.cifar.CIFAR_SETS, "cifar100", small)
    assert len(data.load("cifar100", validation=0).test.targets) == 100
