"""scikit-learn's handwritten digits: real images that come with the package."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["load_digits_set"]

Part = tuple[Tensor, Tensor]


def load_digits_set() -> tuple[Part, Part]:
    """Return (inputs [N, 1, 8, 8], targets [N]) of the training part and of the test part, a stratified fifth.

    Inputs are float32, normalized by the training part's mean and standard deviation; targets are int64.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8), labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    mean, std = train_x.mean(), train_x.std()
    return ((train_x - mean) / std, train_y), ((test_x - mean) / std, test_y)
