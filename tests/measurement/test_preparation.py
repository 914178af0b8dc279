"""What is done to a network before it is measured: precision, narrow cuts."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from isometry import measure
from tests.architectures import checkpointed
from tests.models import Wired
from tests.references import assert_spectrum, slow_mean_jsv, slow_singular_values


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_models_are_computed_in_float32(half: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).to(half)
    x = torch.randn(4, 6, dtype=half)
    report = measure(net, x)
    assert_spectrum(report, slow_singular_values(copy.deepcopy(net).double(), x))
    assert f"computed in float32, the model is in {str(half)[6:]}" in report.notes
    assert net[0].weight.dtype == half


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_the_precision_of_the_computation_can_be_chosen(half: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).to(half)
    x = torch.randn(4, 6, dtype=half)
    report = measure(net, x)
    kept = measure(net, x, dtype=half) if half == torch.bfloat16 else report
    assert kept.mean_jsv == pytest.approx(report.mean_jsv, rel=0.03)
    assert measure(net, x, dtype=torch.float64).mean_jsv == pytest.approx(report.mean_jsv, rel=1e-5)


def test_masked_networks_are_copied() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    torch_prune.random_unstructured(net[0], "weight", 0.5)
    x = torch.randn(4, 6)
    single = measure(net, x).mean_jsv
    assert measure(net, x, dtype=torch.float64).mean_jsv == pytest.approx(single, rel=1e-5)


def test_a_narrow_layer_before_the_output_is_used() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 30), nn.Tanh()
    )
    x = torch.randn(3, 1, 8, 8)
    report = measure(net, x)
    assert_spectrum(report, slow_singular_values(copy.deepcopy(net).double(), x))
    assert any("bottleneck at 2 (5 of 30)" in note for note in report.notes)
    assert report.cost.products < 3 * 30


def test_a_narrow_layer_with_a_way_around_is_not_used() -> None:

    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.head, self.around = nn.Linear(40, 4), nn.Linear(4, 30), nn.Linear(40, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.narrow(x).tanh()) + self.around(x)

    leaky, x = Leaks(), torch.randn(3, 40)
    report = measure(leaky, x)
    assert_spectrum(report, slow_singular_values(copy.deepcopy(leaky).double(), x))
    assert not any("bottleneck" in note for note in report.notes)


@pytest.mark.parametrize("kind", [nn.SiLU, nn.ELU, nn.LeakyReLU])
def test_operations_in_place_behind_a_captured_module_change_nothing(kind: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64, dtype=torch.float64)
    first, last = nn.Linear(64, 32).double(), nn.Linear(32, 100).double()
    plain = nn.Sequential(first, kind(), last)
    hurried = nn.Sequential(first, kind(inplace=True), last)
    expected = slow_singular_values(plain, x)
    report = measure(hurried, x, progress=False)
    assert any("bottleneck" in note for note in report.notes)
    torch.testing.assert_close(report.spectrum.values[:, :32], expected[:, :32], rtol=1e-9, atol=1e-12)
    for at in ("0",):
        a, b = (measure(net, x, at=at, progress=False).spectrum.values for net in (plain, hurried))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    one, other = (measure(net, x, layers=["0"], progress=False).layers for net in (plain, hurried))
    assert one["mean_jsv"].tolist() == pytest.approx(other["mean_jsv"].tolist(), rel=1e-9)


def skipping() -> nn.Module:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "skip": nn.Linear(40, 40)}
    return Wired(lambda m, x: m.up(m.narrow(x).tanh()) + (8 * m.skip(x) - 12).relu(), **modules)


def branching() -> nn.Module:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "wide": nn.Linear(40, 40)}
    return Wired(lambda m, x: m.wide(x) if x.sum() > 5 else m.up(m.narrow(x)), **modules)


@pytest.mark.parametrize("build", [skipping, branching, checkpointed], ids=lambda build: build.__name__)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_cut_that_is_none_at_other_samples_is_not_used(build: Callable[[], nn.Module]) -> None:
    net, x = build(), torch.randn(12, 40)
    found = measure(net, list(x.split(1 if build is branching else 4))).mean_jsv
    slow = nn.Sequential(net.inner, net.head) if build is checkpointed else net
    assert found == pytest.approx(slow_mean_jsv(slow, x), rel=1e-5)
