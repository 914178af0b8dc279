"""BatchNorm folded into the layers before it, where nothing else reads them."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from isometry import measure
from tests.models import batch_norm_net
from tests.references import assert_spectrum, slow_singular_values


def test_folding_a_conv_that_is_read_twice_is_noticed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
            nn.init.uniform_(self.norm.weight, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head((self.norm(y).relu() + y).mean((2, 3)))

    net, x = Twice().eval(), torch.randn(3, 1, 6, 6)
    report = measure(net, x)
    assert_spectrum(report, slow_singular_values(copy.deepcopy(net).double(), x))
    assert not any("folded" in note for note in report.notes)


def test_masked_layers_in_front_of_a_batchnorm_are_not_folded() -> None:
    torch.manual_seed(0)
    net = batch_norm_net().double().eval()
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = measure(net, x, progress=False).spectrum.values
    torch.testing.assert_close(found, slow_singular_values(net, x), rtol=1e-8, atol=1e-12)


def test_folding_keeps_the_outputs_of_tapped_containers() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 3, 5)
    body = nn.Sequential(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(OrderedDict(body=body, norm=norm, act=nn.ReLU(), flat=nn.Flatten(), head=nn.Linear(144, 5)))
    x = torch.randn(4, 3, 8, 8)
    net.eval()
    found = [measure(net, x, layers=name).layers for name in ("body", "body.0", "norm")]
    assert all(table is not None for table in found)
    inside, itself, behind = (float(table["mean_jsv"].iloc[0]) for table in found if table is not None)
    assert inside == pytest.approx(itself)
    assert inside > 2 * behind  # the norm multiplies by 3 to 5
    assert measure(net, x, at="body").mean_jsv == pytest.approx(inside, rel=1e-5)
