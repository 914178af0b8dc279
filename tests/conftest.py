"""Fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch

import isometry
from tests.fake_cuda import fake_cuda

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    root = os.environ.get("ISOMETRY_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("real data: set ISOMETRY_DATA to the folder that holds mnist/, cifar10/ and weights/")
    return Path(root)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A CUDA device; where there is none, a fake one, which refuses what the real one refuses."""
    device = torch.device("cuda", 0)
    if torch.cuda.is_available():
        yield device
    else:
        with fake_cuda():
            yield device


@pytest.fixture(scope="session")
def digits() -> isometry.data.Data:
    return isometry.data.load("digits")
