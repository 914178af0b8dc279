"""CIFAR's binary files."""

import gzip
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isometry import data


def write_cifar(folder: Path, name: str, suffix: str) -> np.ndarray:
    """Write a set in CIFAR's binary layout, a hundredth of its size; return the first test record."""
    folder.mkdir(parents=True)
    labels, files = (
        (2, {"train.bin": 500, "test.bin": 100})
        if name == "cifar100"
        else (1, {**{f"data_batch_{i}.bin": 100 for i in range(1, 6)}, "test_batch.bin": 100})
    )
    pack = {"": bytes, ".gz": lambda b: gzip.compress(b, 1), ".xz": lambda b: lzma.compress(b, preset=0)}[suffix]
    rng = np.random.default_rng(0)
    for file, count in files.items():  # the last one is the test file
        block = rng.integers(0, 10, (100, labels + 3072), dtype=np.uint8)
        (folder / (file + suffix)).write_bytes(pack(np.tile(block, (count // 100, 1)).tobytes()))
    return block[0]


@pytest.fixture(params=[("cifar10", ".xz"), ("cifar100", ".gz")], ids=["cifar10-xz", "cifar100-gz"])
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, np.ndarray]:
    """The name of a set written below tmp_path, a hundredth of its size, and the first test record."""
    name, suffix = request.param
    assert data.cifar.CIFAR_SETS[name].counts == (50000, 10000)
    monkeypatch.setitem(data.cifar.CIFAR_SETS, name, replace(data.cifar.CIFAR_SETS[name], counts=(500, 100), sha256={}))
    return name, write_cifar(tmp_path / name, name, suffix)


def test_cifar_is_read_packed_and_normalized(small: tuple[str, np.ndarray], tmp_path: Path) -> None:
    name, record = small
    classes = {"cifar10": 10, "cifar100": 100}[name]
    found = data.load(name, tmp_path, normalization=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), validation=0)
    assert (len(found.train.targets), len(found.test.targets), found.classes) == (500, 100, classes)
    assert int(found.test.targets[0]) == int(record[-3073])  # cifar100: the second label, the fine one
    pixels = torch.from_numpy(record[-3072:].reshape(3, 32, 32).astype(np.float32)) / 255
    torch.testing.assert_close(found.test.inputs[0], (pixels - 0.5) / 0.25)


def test_photographs_are_augmented_unless_told_otherwise(small: tuple[str, np.ndarray], tmp_path: Path) -> None:
    name, _ = small
    assert isinstance(data.load(name, tmp_path, validation=0).augment, data.CropFlip)
    assert data.load(name, tmp_path, validation=0, augment=False).augment is None


def test_a_truncated_archive_is_refused(small: tuple[str, np.ndarray], tmp_path: Path) -> None:
    name, _ = small
    file = next((tmp_path / name).glob("test*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        data.load(name, tmp_path)


def test_plain_files_of_the_wrong_size_are_refused(small: tuple[str, np.ndarray], tmp_path: Path) -> None:
    name, _ = small
    file = next((tmp_path / name).glob("test*"))
    file.unlink()
    file.with_suffix("").write_bytes(b"\0" * 3073)
    width = 3074 if name == "cifar100" else 3073
    with pytest.raises(ValueError, match=rf"expected 100 records of {width} bytes.*found 3073 bytes"):
        data.load(name, tmp_path)


def test_a_training_batch_as_test_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set = replace(data.cifar.CIFAR_SETS["cifar10"], counts=(500, 100), sha256={})
    monkeypatch.setitem(data.cifar.CIFAR_SETS, "cifar10", small_set)
    write_cifar(tmp_path / "cifar10", "cifar10", "")
    (tmp_path / "cifar10" / "test_batch.bin").write_bytes((tmp_path / "cifar10" / "data_batch_3.bin").read_bytes())
    with pytest.raises(ValueError, match=r"test_batch\.bin has the same content as data_batch_3\.bin.*download"):
        data.load("cifar10", tmp_path)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set = replace(data.cifar.CIFAR_SETS["cifar10"], counts=(500, 100))
    monkeypatch.setitem(data.cifar.CIFAR_SETS, "cifar10", small_set)
    write_cifar(tmp_path / "cifar10", "cifar10", "")
    with pytest.raises(ValueError, match=r"data_batch_1\.bin is not the published file.*isometry\.data\.Data"):
        data.load("cifar10", tmp_path)
