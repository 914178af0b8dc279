"""measure as a whole: the right numbers, at the promised cost, whatever surrounds the call."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isometry import Report, measure, networks
from tests.models import NETS, batch_norm_net
from tests.references import slow_jacobians


@pytest.mark.parametrize("name", NETS)
def test_the_spectrum_is_that_of_the_slow_jacobian(name: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    x = torch.randn(5, *shape)
    truth = torch.linalg.svdvals(slow_jacobians(copy.deepcopy(net).double().eval(), x))
    report = measure(net, x)
    torch.testing.assert_close(report.spectrum.values, truth, rtol=1e-5, atol=1e-6 * float(truth.max()))
    assert report.mean_jsv == pytest.approx(float(truth.mean()), rel=1e-5)
    means = truth.mean(1)
    assert report.sem == pytest.approx(float(means.std()) / math.sqrt(5), rel=1e-3, abs=1e-9)
    assert report.interval[0] <= report.mean_jsv <= report.interval[1]


def test_no_grad_and_inference_around_the_call_do_not_matter() -> None:
    net, x = networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        inside = measure(net, x).mean_jsv
    assert inside == measure(net, x).mean_jsv > 0


def test_measuring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = batch_norm_net(), torch.randn(7, 3, 8, 8)
    whole = measure(net, x).spectrum.values
    monkeypatch.setattr("isometry.measurement.estimators.Exact.at_once", 2)
    torch.testing.assert_close(measure(net, x).spectrum.values, whole, rtol=1e-6, atol=1e-9)


def test_the_cost_is_one_forward_and_r_products_a_sample() -> None:
    report = measure(networks.build("lenet-5-relu", seed=0), torch.randn(8, 1, 32, 32))
    assert report.cost.products == 8 * 10 + 4  # and four for the test that samples are independent
    assert report.cost.forwards == 8 + 6  # and the checks at two samples


def test_a_constant_network_has_jsvs_of_zero() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3)

    for net in (Constant(), nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(5, 6))):
        report = measure(net, torch.randn(2, 4))
        assert (report.mean_jsv, report.condition_number) == (0, math.inf)


REFUSED = {
    "unknown method": (lambda x: measure(nn.Linear(6, 2), x, method="svd"), ValueError, r"method='svd'; it knows"),
    "rtol of zero": (lambda x: measure(nn.Linear(6, 4), x, rtol=0.0), ValueError, r"rtol=0\.0; it is the half-width"),
    "rtol above one": (lambda x: measure(nn.Linear(6, 4), x, rtol=1.5), ValueError, r"rtol=1\.5"),
    "seed no number": (lambda x: measure(nn.Linear(6, 2), x, seed="a"), ValueError, "seed='a'; it takes a whole number, e.g. seed=0"),  # type: ignore[arg-type]
    "rtol no number": (lambda x: measure(nn.Linear(6, 2), x, rtol="a"), ValueError, "rtol=a"),  # type: ignore[arg-type]
    "budget of zero": (lambda x: measure(nn.Linear(6, 4), x, budget=0), ValueError, "budget=0; it is a number of products"),
    "budget no number": (lambda x: measure(nn.Linear(6, 2), x, budget=True), ValueError, "budget=True"),
    "budget no whole number": (lambda x: measure(nn.Linear(6, 4), x, budget=100.5), ValueError, r"budget=100\.5; it is a number of products"),
    "dtype of integers": (lambda x: measure(nn.Linear(6, 2), x, dtype=torch.int32), ValueError, "int32.*float64"),
    "no model": (lambda x: measure(None, x), TypeError, "NoneType.*e.g."),  # type: ignore[arg-type]
    "TorchScript": (lambda x: measure(torch.jit.trace(nn.Linear(6, 2), x), x), TypeError, "TorchScript"),
    "lazy layer": (lambda x: measure(nn.LazyLinear(3), x), ValueError, "not initialized"),
    "empty outputs": (lambda x: measure(nn.Linear(6, 0), x), ValueError, r"\(2, 3, 0\), which hold nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Lazy modules", "ignore:Initializing zero")
def test_bad_arguments_are_refused_with_what_they_should_be(
    call: Callable[[Tensor], Report], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(torch.randn(4, 3, 6))


def test_a_budget_that_is_no_whole_number_is_refused_without_inputs_too() -> None:
    with pytest.raises(ValueError, match=r"budget=100\.5; it is a number of products"):
        measure(nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 64)), budget=100.5)
