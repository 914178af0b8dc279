"""Crops and mirrors."""

import torch
from torch.nn import functional as F

from isometry.data import CropFlip


def test_crops_and_mirrors_are_windows_of_the_padded_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 2, 6, 7)
    cut = CropFlip(2)(images)
    assert cut.shape == images.shape
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, whole in zip(cut, padded, strict=True):
        windows = {
            (dy, dx, flip): (whole[:, dy : dy + 6, dx : dx + 7].flip(2) if flip else whole[:, dy : dy + 6, dx : dx + 7])
            for dy in range(5) for dx in range(5) for flip in (False, True)
        }  # fmt: skip
        (found,) = [key for key, window in windows.items() if torch.equal(window, image)]
        seen.add(found)
    assert len({key[0] for key in seen}) == len({key[1] for key in seen}) == 5
    assert {key[2] for key in seen} == {False, True}
