"""Folders of images: classes by subfolder, the papers' crops, nothing in memory before it is needed."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isometry
from isometry import networks
from isometry.data import IMAGENET, Batches, folder
from isometry.data.crops import CenterCrop, RandomCrop, to_tensor
from tests.models import flat_weights

Image = pytest.importorskip("PIL.Image")


def write(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ImageNet's layout: three classes, four training images and two test images of each."""
    for part, count in (("train", 4), ("val", 2)):
        for name in ("owl", "ant", "cat"):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.{'png' if i % 2 else 'bmp'}", len(name) * 100 + i)
    (tmp_path / "train" / "owl" / "notes.txt").write_text("not an image")
    return tmp_path


def test_classes_are_numbered_by_name_and_split_as_the_folders_are(tree: Path) -> None:
    data = folder(tree, size=8, batch_size=5)
    assert (data.classes, data.input_shape) == (("ant", "cat", "owl"), (3, 8, 8))
    train, test = ([pair for pair in part] for part in (data.train, data.test))  # noqa: C416
    assert [len(pair.targets) for pair in train] == [5, 5, 2]
    assert torch.cat([pair.targets for pair in test]).tolist() == [0, 0, 1, 1, 2, 2]
    assert train[0].inputs.shape == (5, 3, 8, 8)
    assert train[0].inputs.dtype == torch.float32
    assert "12 samples by 5" in str(data)


def test_a_fifth_of_every_class_is_for_testing_where_there_is_one_folder(tree: Path) -> None:
    for _ in range(2):
        data = folder(tree / "train", size=8)
        train, test = (part.source.dataset.files for part in (data.train, data.test))
        assert len(train) == 9
        assert [target for _, target in test] == [0, 1, 2]
        assert not {path for path, _ in train} & {path for path, _ in test}
        again = test
    assert again == folder(tree / "train", size=8).test.source.dataset.files


def test_images_are_read_when_they_are_needed(tree: Path) -> None:
    data = folder(tree, size=8)
    broken = tree / "val" / "owl" / "0.bmp"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{broken.name} is no whole image \(.*\); replace or delete it"):
        list(data.test)


def test_a_center_crop_is_the_middle_of_the_resized_image() -> None:
    width, height = 120, 90
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([columns * 2, rows * 2, 0 * rows], 2).astype(np.uint8))
    crop = np.asarray(CenterCrop(21, 24)(image)).astype(float)
    scale = 90 / 24
    for axis, length in ((0, width), (1, height)):  # bilinear resizing keeps linear ramps, but for the borders
        found = crop[..., axis].mean(axis) / 2
        resized = int(24 * length / 90)
        expected = (np.arange(21) + round((resized - 21) / 2) + 0.5) * scale - 0.5
        np.testing.assert_allclose(found[2:-2], expected[2:-2], atol=1)


def test_a_random_crop_has_the_published_areas_and_shapes() -> None:
    crop, boxes = RandomCrop(), []
    torch.manual_seed(0)
    for _ in range(3000):
        left, upper, right, lower = crop._box(400, 400)
        assert 0 <= left < right <= 400
        assert 0 <= upper < lower <= 400
        boxes.append(((right - left) * (lower - upper) / 160_000, (right - left) / (lower - upper)))
    areas, aspects = np.array(boxes).T
    assert 0.08 - 0.01 < areas.min() < 0.1
    assert areas.max() > 0.9
    # An area a fits a square with probability min(1, -log a / log(4/3)), the density of the areas that are kept.
    grid = np.linspace(0.08, 1, 10_001)
    distribution = np.cumsum(np.minimum(1, -np.log(grid) / np.log(4 / 3)))
    expected = np.interp([0.1, 0.5, 0.9], distribution / distribution[-1], grid)
    assert np.quantile(areas, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=0.03)
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.02)
    assert (aspects.min(), aspects.max()) == pytest.approx((3 / 4, 4 / 3), rel=0.02)


def test_an_image_that_no_crop_fits_is_cropped_in_the_middle() -> None:
    assert RandomCrop(scale=(5.0, 5.0))._box(400, 100) == (133, 0, 266, 100)
    assert RandomCrop(scale=(5.0, 5.0))._box(100, 400) == (0, 133, 100, 266)


def test_random_crops_are_mirrored_half_of_the_time_and_follow_torchs_generator() -> None:
    image = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    torch.manual_seed(0)
    crops = [np.asarray(RandomCrop(8)(image)).astype(int) for _ in range(400)]
    mirrored = [crop[0, 0] > crop[0, -1] for crop in crops]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.1)
    torch.manual_seed(0)
    assert all((np.asarray(RandomCrop(8)(image)) == crop).all() for crop in crops[:20])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_images_become_normalized_colors(mode: str) -> None:
    image = Image.new("RGB", (5, 4), (255, 0, 51)).convert(mode)
    expected = np.asarray(image.convert("RGB"))[0, 0] / 255
    found = to_tensor(image, IMAGENET)
    assert found.shape == (3, 4, 5)
    torch.testing.assert_close(found[:, 1, 1], torch.tensor([(c - m) / s for c, m, s in zip(expected, *IMAGENET, strict=True)], dtype=torch.float32))  # fmt: skip


def test_folders_train_reproducibly_and_with_workers(tree: Path) -> None:
    found = []
    for workers in (0, 0, 2):
        net = networks.build("conv-4", 3, seed=0, input_shape=(3, 8, 8), widths=(4, 4, 4, 4))
        data = folder(tree, size=8, batch_size=4, workers=workers)
        epochs = list(isometry.train(net, data, lr=0.05, epochs=2, seed=3))
        assert [epoch.steps for epoch in epochs] == [3, 6]
        assert isometry.evaluate(net, data).samples == 6
        found.append(flat_weights(net))
    assert torch.equal(found[0], found[1])
    assert all(math.isfinite(float(weights.sum())) for weights in found)


def test_folders_are_measured_and_pruned(tree: Path) -> None:
    data = folder(tree, size=8, batch_size=4)
    net = networks.build("conv-4", 3, seed=0, input_shape=(3, 8, 8), widths=(4, 4, 4, 4))
    report = isometry.measure(net, data)
    assert len(report.spectrum) == 6
    pruned = isometry.prune(
        net, isometry.TPP(delta=1.0, interval=1, stabilize=2, zero_out=None), 0.5, data=data, progress=False
    )
    assert pruned.history["steps"].iloc[-1] == 3
    repaired = isometry.repair(pruned.model, reference=net, data=data, progress=False)
    assert isinstance(data.train, Batches)
    assert not torch.equal(flat_weights(repaired), flat_weights(pruned.model))


def _empty(tree: Path) -> Path:
    (tree / "train" / "bee").mkdir()
    return tree


def _unknown(tree: Path) -> Path:
    write(tree / "val" / "yak" / "0.png", 3)
    return tree


def _single(tree: Path) -> Path:
    write(tree / "one" / "ant" / "0.png", 3)
    return tree / "one"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda tree: tree / "nowhere",
            {},
            r"got .*nowhere, which is no folder; it takes one with a subfolder per class, as in path/train/cat/1\.jpg",
        ),
        (lambda tree: tree / "val" / "owl", {}, "no subfolders of classes"),
        (_empty, {}, r"no images in bee of .*train; .*\.jpg"),
        (_unknown, {}, r"the classes yak in .*val that are not in .*train"),
        (_single, {}, r"one image of the class 'ant' and no folders train and val"),
        (lambda tree: tree, {"size": 0}, r"size=0, batch_size=64, workers=0; it takes positive numbers"),
    ],
    ids=["no folder", "a class alone", "empty class", "unknown class", "one image", "size"],
)
def test_other_folders_are_refused_with_the_layout(
    tree: Path, change: Any, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"data\.folder\(\) .*{message}"):
        folder(change(tree), **options)


def test_without_pillow_the_error_says_what_to_install(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'isometry\[images\]'"):
        folder(tree)
