"""A trained network, shared by the tests of pruners."""

import pytest
from torch import nn

import isometry
from isometry import networks, train


@pytest.fixture(scope="session")
def dense(digits: isometry.data.Data) -> nn.Module:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(30,) * 3)
    list(train(net, digits, lr=0.01, epochs=30, batch_size=32))
    return net
