"""Whatever model a user has: it is measured right."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from isometry import measure
from tests.architectures import WORKS
from tests.references import assert_spectrum, slow_singular_values


@pytest.mark.parametrize("method", ["exact", "krylov"])
@pytest.mark.parametrize("name", WORKS)
def test_models_that_people_have(name: str, method: str) -> None:
    build, shape = WORKS[name]
    torch.manual_seed(0)
    net = build().eval()
    x = torch.randn(4, *shape)
    expected = slow_singular_values(copy.deepcopy(net).double(), x)
    report = measure(net, x, method=method)
    if method == "exact":
        assert_spectrum(report, expected)
        return
    # The bracket is certified for the probes; with as many independent probes as it takes, the truth is inside.
    wide = measure(net, x, method="krylov", budget=40_000)
    low, high = wide.interval
    assert low <= float(expected.mean()) * 1.02
    assert high >= float(expected.mean()) * 0.98
    assert float(wide.min_jsv) >= float(expected.min()) - 1e-4
    assert float(wide.max_jsv) <= float(expected.max()) * (1 + 1e-4)


def test_checkpointed_models_are_measured() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.one, self.two, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 3), reentrant

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.utils.checkpoint.checkpoint(self.one, x, use_reentrant=self.reentrant).tanh())

    x = torch.randn(4, 6)
    for reentrant in (False, True):
        net = Checkpointed(reentrant)
        plain = nn.Sequential(copy.deepcopy(net.one), nn.Tanh(), copy.deepcopy(net.two)).double()
        assert_spectrum(measure(net, x), slow_singular_values(plain, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_are_seen_through() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
    x = torch.randn(4, 6)
    expected = slow_singular_values(copy.deepcopy(net).double(), x)
    assert_spectrum(measure(nn.DataParallel(net), x), expected)
    assert_spectrum(measure(torch.compile(net), x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_masks_are_seen_through() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
    x = torch.randn(4, 6)
    torch_prune.l1_unstructured(net[0], "weight", 0.5)
    masked = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), copy.deepcopy(net[2]))
    masked[0].load_state_dict({"weight": net[0].weight.detach(), "bias": net[0].bias})
    assert_spectrum(measure(net, x), slow_singular_values(masked.double(), x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parametrizations_are_seen_through() -> None:
    x = torch.randn(4, 6)
    turned = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))
    assert measure(turned, x).isometry_gap < 1e-9
