import gzip
import lzma
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isometry import data


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


def test_digits_are_split_once_and_disjoint(digits: data.Data) -> None:
    assert [len(part.targets) for part in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]
    assert digits.input_shape == (1, 8, 8)
    assert torch.bincount(digits.test.targets).min() >= 34
    rows = torch.cat([part.inputs for part in (digits.train, digits.validation, digits.test)]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797
    again = data.load("digits")
    assert torch.equal(again.train.inputs, digits.train.inputs)
    whole = data.load("digits", validation=0).train.inputs
    assert abs(float(whole.mean())) < 1e-5
    assert abs(float(whole.std()) - 1) < 1e-5


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_idx_files_are_found_plain_or_packed(tmp_path: Path, packed: bool, nested: bool, monkeypatch) -> None:
    write_mnist(tmp_path / "root" / ("mnist" if nested else ""), packed=packed)
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path / "root"))
    mnist = data.load("mnist")
    assert mnist.train.inputs.shape == (55000, 1, 32, 32)
    assert (len(mnist.validation.targets), len(mnist.test.targets)) == (5000, 10000)
    assert float(mnist.train.inputs.min()) >= -0.1307 / 0.3081 - 1e-5


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    images = files["train-images-idx3-ubyte"]
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is truncated or corrupt: expected a whole \.gz"):
        data.load("mnist", tmp_path)
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-7], 1))
    with pytest.raises(ValueError, match=r"expected 60000 items, 240016 bytes .* found 240009 bytes"):
        data.load("mnist", tmp_path)
    images.write_bytes(files["train-labels-idx1-ubyte"].read_bytes())
    with pytest.raises(ValueError, match=r"expected the magic number 2051, found 2049"):
        data.load("mnist", tmp_path)
    images.write_bytes(gzip.compress(b"no"))
    with pytest.raises(ValueError, match="no IDX file"):
        data.load("mnist", tmp_path)
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"found no train-images-idx3-ubyte\.gz"):
        data.load("mnist", tmp_path)


def test_a_set_with_a_missing_part_is_named(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "mnist")
    files["t10k-labels-idx1-ubyte"].unlink()
    with pytest.raises(FileNotFoundError, match=r"but not t10k-labels-idx1-ubyte\.gz"):
        data.load("mnist", tmp_path)


def test_unknown_names_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="'minst'; it knows cifar10, cifar100, digits, fashion-mnist, mnist"):
        data.load("minst")
    with pytest.raises(ValueError, match="validation=1437; it takes 0 to 1436"):
        data.load("digits", validation=1437)


def test_downloads_are_checked_against_their_md5(tmp_path: Path, monkeypatch) -> None:
    calls = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, progressbar: bool) -> str:
        calls.append((url, known_hash))
        return str(files[fname.removesuffix(".gz")])

    files = write_mnist(tmp_path / "cache")
    monkeypatch.delenv("ISOMETRY_DATA", raising=False)
    monkeypatch.setattr(data.pooch, "retrieve", retrieve)
    assert len(data.load("fashion-mnist").test.targets) == 10000
    assert len(calls) == 4
    assert all(known.startswith("md5:") and len(known) == 36 for _, known in calls)


@pytest.mark.data
def test_real_mnist_has_the_published_mean_and_std(real_data: Path) -> None:
    mnist = data.load("mnist", real_data, validation=0)
    assert torch.bincount(mnist.train.targets)[0] == 5923
    pixels = mnist.train.inputs * 0.3081 + 0.1307
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=2e-3)  # resized; the published mean is that of 28x28
    assert pixels.shape == (60000, 1, 32, 32)


def write_cifar(folder: Path, name: str, suffix: str) -> np.ndarray:
    """Write a set in CIFAR's binary layout, a hundredth of its size; return the first test record."""
    folder.mkdir(parents=True)
    labels, files = (
        (2, {"train.bin": 500, "test.bin": 100})
        if name == "cifar100"
        else (1, {**{f"data_batch_{i}.bin": 100 for i in range(1, 6)}, "test_batch.bin": 100})
    )
    pack = {"": bytes, ".gz": lambda b: gzip.compress(b, 1), ".xz": lambda b: lzma.compress(b, preset=0)}[suffix]
    block = np.random.default_rng(0).integers(0, 10, (100, labels + 3072), dtype=np.uint8)
    for file, count in files.items():
        (folder / (file + suffix)).write_bytes(pack(np.tile(block, (count // 100, 1)).tobytes()))
    return block[0]


@pytest.mark.parametrize(("name", "suffix", "classes"), [("cifar10", ".xz", 10), ("cifar100", ".gz", 100)])
def test_cifar_is_read_packed_or_plain_and_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str, classes: int
) -> None:
    assert data._CIFAR[name].counts == (50000, 10000)
    monkeypatch.setitem(data._CIFAR, name, replace(data._CIFAR[name], counts=(500, 100)))
    record = write_cifar(tmp_path / name, name, suffix)
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    found = data.load(name, tmp_path, normalisation=half, validation=0)
    assert (len(found.train.targets), len(found.test.targets), found.classes) == (500, 100, classes)
    assert int(found.test.targets[0]) == int(record[-3073])  # cifar100: the second label, the fine one
    pixels = torch.from_numpy(record[-3072:].reshape(3, 32, 32).astype(np.float32)) / 255
    torch.testing.assert_close(found.test.inputs[0], (pixels - 0.5) / 0.25)
    assert isinstance(found.augment, data.CropFlip)
    assert data.load(name, tmp_path, validation=0, augment=False).augment is None
    file = next((tmp_path / name).glob("test*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        data.load(name, tmp_path)
    file.unlink()
    file.with_suffix("").write_bytes(b"\0" * 3073)
    width = 3074 if name == "cifar100" else 3073
    with pytest.raises(ValueError, match=rf"expected 100 records of {width} bytes.*found 3073 bytes"):
        data.load(name, tmp_path)
    with pytest.raises(ValueError, match=r"normalisation, which only cifar10 and cifar100 take"):
        data.load("digits", normalisation=half)


def test_only_photographs_are_augmented() -> None:
    assert data.load("digits").augment is None
