"""Settings of torch's arithmetic: full precision while measuring, then the user's again."""

import pytest
import torch
from torch import nn

from isometry import measure
from isometry.measurement.function import NetworkFunction
from isometry.networks.preservation import state_preserved
from tests.models import Wired


def test_settings_of_the_backends_are_the_users_again() -> None:
    seen = []
    torch.backends.cudnn.deterministic = True
    try:
        net = Wired(lambda m, x: seen.append(torch.backends.cudnn.deterministic) or m.a(x), a=nn.Linear(3, 2))
        before = torch.backends.cudnn.allow_tf32
        assert before
        with state_preserved(net), NetworkFunction(net).differentiable():
            assert not torch.backends.cudnn.allow_tf32
        measure(net, torch.randn(2, 3))
        assert torch.backends.cudnn.allow_tf32 == before
        assert all(seen)
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_is_the_users_again(precision: str) -> None:
    seen = []
    net = Wired(lambda m, x: seen.append(torch.get_float32_matmul_precision()) or m.a(x), a=nn.Linear(3, 2))
    torch.set_float32_matmul_precision(precision)
    try:
        measure(net, torch.randn(2, 3))
        assert torch.get_float32_matmul_precision() == precision
        assert "highest" in seen
    finally:
        torch.set_float32_matmul_precision("highest")
