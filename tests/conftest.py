import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from pretended import pretended_cuda
from torch import nn

import isometry

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    root = os.environ.get("ISOMETRY_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("real data: set ISOMETRY_DATA to the folder that holds mnist/, cifar10/ and weights/")
    return Path(root)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A CUDA device; where there is none, a pretended one, which refuses what the real one refuses."""
    device = torch.device("cuda", 0)
    if torch.cuda.is_available():
        yield device
    else:
        with pretended_cuda():
            yield device


@pytest.fixture(scope="session")
def digits() -> isometry.data.Data:
    return isometry.data.load("digits")


def batch_norm_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(54, 5),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net


@pytest.fixture
def bn_net() -> nn.Module:
    return batch_norm_net()
