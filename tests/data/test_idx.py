"""IDX files, the format of MNIST: found, checked, named where they cannot be read."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from isometry import data
from isometry.data import idx


@pytest.fixture(autouse=True)
def tiny_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of images of 2x2, whose content is not known."""
    if "real_data" not in request.fixturenames:
        for name, source in idx.IDX_SETS.items():
            monkeypatch.setitem(idx.IDX_SETS, name, replace(source, size=(2, 2), sha256=(None,) * 4))


def write_mnist(folder: Path, *, packed: bool = True, train: int = 60000) -> dict[str, Path]:
    """A set in MNIST's format: tiny where it can be, real sizes where the format says so."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", train), ("t10k", 10000)):
        images, labels = rng.integers(0, 256, (count, 2, 2), np.uint8), rng.integers(0, 10, count, np.uint8)
        for name, header, body in (
            (f"{part}-images-idx3-ubyte", struct.pack(">IIII", 2051, count, 2, 2), images),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 2049, count), labels),
        ):
            path = folder / (name + (".gz" if packed else ""))
            content = header + body.tobytes()
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            files[name] = path
    return files


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("nested", [True, False], ids=["folder of its own", "root"])
def test_idx_files_are_found_plain_or_packed(tmp_path: Path, packed: bool, nested: bool, monkeypatch) -> None:
    write_mnist(tmp_path / "root" / ("mnist" if nested else ""), packed=packed)
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path / "root"))
    mnist = data.load("mnist")
    assert mnist.train.inputs.shape == (55000, 1, 32, 32)
    assert (len(mnist.validation.targets), len(mnist.test.targets)) == (5000, 10000)
    assert float(mnist.train.inputs.min()) >= -0.1307 / 0.3081 - 1e-5


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is truncated or corrupt: expected a whole \.gz"):
        data.load("mnist", tmp_path)


def test_a_file_with_too_few_bytes_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    whole = images.read_bytes()
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-7], 1))
    with pytest.raises(ValueError, match=r"expected 60000 items, 240016 bytes .* found 240009 bytes"):
        data.load("mnist", tmp_path)


def test_a_file_with_the_wrong_magic_number_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    images.write_bytes(files["train-labels-idx1-ubyte"].read_bytes())
    with pytest.raises(ValueError, match=r"expected the magic number 2051, found 2049"):
        data.load("mnist", tmp_path)


def test_a_file_too_short_for_a_header_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    images.write_bytes(gzip.compress(b"no"))
    with pytest.raises(ValueError, match="no IDX file"):
        data.load("mnist", tmp_path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"found no train-images-idx3-ubyte\.gz"):
        data.load("mnist", tmp_path)


def test_a_set_with_a_missing_part_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    files["t10k-labels-idx1-ubyte"].unlink()
    with pytest.raises(FileNotFoundError, match=r"but not t10k-labels-idx1-ubyte\.gz"):
        data.load("mnist", tmp_path)


def test_downloads_are_checked_against_their_md5(tmp_path: Path, monkeypatch) -> None:
    calls = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, progressbar: bool) -> str:
        calls.append((url, known_hash))
        return str(files[fname.removesuffix(".gz")])

    files = write_mnist(tmp_path / "cache")
    monkeypatch.delenv("ISOMETRY_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(data.load("fashion-mnist").test.targets) == 10000
    assert len(calls) == 4
    assert all(known.startswith("md5:") and len(known) == 36 for _, known in calls)


def rewrite(path: Path, place: int, values: bytes) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[place : place + len(values)] = values
    path.write_bytes(gzip.compress(content, 1))


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    rewrite(write_mnist(tmp_path / "mnist")["t10k-labels-idx1-ubyte"], 100, b"\x0a")
    with pytest.raises(
        ValueError, match=r"t10k-labels-idx1-ubyte\.gz is corrupt.*label 10, but the set has 10 classes"
    ):
        data.load("mnist", tmp_path)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    rewrite(write_mnist(tmp_path / "mnist")["train-images-idx3-ubyte"], 8, struct.pack(">II", 1, 4))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is corrupt.*images of 2x2, found 1x4"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_content_that_is_not_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    write_mnist(tmp_path / "mnist", packed=packed)
    monkeypatch.setitem(idx.IDX_SETS, "mnist", replace(idx.IDX_SETS["mnist"], sha256=(None, None, None, "0" * 64)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.* is not the published file.*isometry\.data\.Data"):
        data.load("mnist", tmp_path)


@pytest.mark.data
def test_real_mnist_has_the_published_mean_and_std(real_data: Path) -> None:
    mnist = data.load("mnist", real_data, validation=0)
    assert torch.bincount(mnist.train.targets)[0] == 5923
    pixels = mnist.train.inputs * 0.3081 + 0.1307
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=2e-3)  # resized; the published mean is that of 28x28
    assert pixels.shape == (60000, 1, 32, 32)
