"""Products with a Jacobian and its transpose, on every route."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isometry import measure, networks
from isometry.measurement.jacobian import BACKWARD, FORWARD, AdjointError, Jacobian
from isometry.networks.preservation import state_preserved
from tests.models import NETS
from tests.references import assert_spectrum, slow_jacobians, slow_singular_values


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backward", BACKWARD)
def test_every_route_to_the_transposed_product_gives_the_same_numbers(name: str, backward: str) -> None:
    build, shape = NETS[name]
    if backward == "differences" and name == "lenet":
        pytest.skip("a thousand columns, two forward passes each")
    torch.manual_seed(0)
    net = build().double().eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    truth = slow_jacobians(net, x)
    u = torch.randn(3, 2, truth.shape[1]).double()
    with state_preserved(net):
        jacobian = Jacobian(net, x, backward=backward)
        pulled = jacobian.rmatvec(u)
    assert jacobian.shape == tuple(truth.shape)
    assert jacobian.routes == {backward}
    loose = {"rtol": 1e-6, "atol": 1e-7} if backward == "differences" else {}
    torch.testing.assert_close(pulled, u @ truth, **loose)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("forward", FORWARD)
def test_every_route_to_the_product_gives_the_same_numbers(name: str, forward: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build().double().eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    truth = slow_jacobians(net, x)
    v, u = torch.randn(3, 2, truth.shape[2]).double(), torch.randn(3, 2, truth.shape[1]).double()
    with state_preserved(net):
        jacobian = Jacobian(net, x, forward=forward)
        pushed = jacobian.matvec(v)
        adjoint = (jacobian.rmatvec(u) * v).sum()
    loose = {"rtol": 1e-6, "atol": 1e-7} if forward == "differences" else {}
    torch.testing.assert_close(pushed, v @ truth.mT, **loose)
    torch.testing.assert_close((pushed * u).sum(), adjoint, **loose)
    # Two more for the test that the two routes are transposes, and one that linearize gives the same twice.
    assert jacobian.products == 6 + (forward == "linearize")
    assert forward in jacobian.routes or forward == "linearize"  # in-place operations do not linearize


class OldFunction(torch.autograd.Function):
    """Without setup_context, vmap or jvp; its backward cannot be differentiated either."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Old(nn.Module):
    def forward(self, x):
        return OldFunction.apply(x)


def test_the_ladder_goes_down_until_a_route_works_and_says_which() -> None:
    net = nn.Sequential(nn.Linear(6, 5), Old(), nn.Linear(5, 4)).double()
    x = torch.randn(3, 6).double()
    truth = (net[2].weight * net[0](x).cos()[:, None, :]) @ net[0].weight
    with state_preserved(net):
        jacobian = Jacobian(net, x, backward="batched")
        dense = jacobian.dense()
        pushed = jacobian.matvec(torch.eye(6).double().expand(3, -1, -1)).mT
    assert jacobian.routes == {"batched", "differences"}  # neither two backward passes nor forward mode exist here
    torch.testing.assert_close(dense, truth.detach())
    torch.testing.assert_close(pushed, truth.detach(), rtol=1e-6, atol=1e-7)


def test_a_reentrant_checkpoint_is_pulled_back_afresh() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.two(torch.utils.checkpoint.checkpoint(lambda z: self.one(z).tanh(), x, use_reentrant=True))

    net = Checkpointed().double()
    x = torch.randn(4, 6).double()
    with state_preserved(net):
        jacobian = Jacobian(net, x)
        found = jacobian.dense()
    assert jacobian.routes == {"replicated"}
    hidden = net.one(x).tanh()
    truth = (net.two.weight * (1 - hidden.square())[:, None, :]) @ net.one.weight
    torch.testing.assert_close(found, truth.detach())


def test_batches_of_classes_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(4, 16)
    original, sizes = torch.autograd.grad, []

    def grad(outputs, inputs, cotangents, **options):
        sizes.append(len(cotangents))
        if len(cotangents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(outputs, inputs, cotangents, **options)

    with state_preserved(net):
        monkeypatch.setattr(torch.autograd, "grad", grad)
        jacobian = Jacobian(net, torch.randn(5, 4), backward="batched")
        torch.testing.assert_close(
            jacobian.rmatvec(torch.eye(16).expand(5, -1, -1)), net.weight.detach().expand(5, -1, -1)
        )
    assert sizes[:3] == [8, 4, 2]


def test_a_linear_nets_jacobian_is_the_weight_product_at_any_input() -> None:
    net = networks.build("mlp-7-linear", seed=1).double()
    product = torch.eye(1024, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            product = module.weight.detach() @ product
    with state_preserved(net):
        for scale in (0, 1, 100):
            found = Jacobian(net, scale * torch.randn(2, 1, 32, 32).double()).dense()
            torch.testing.assert_close(found, product.expand(2, -1, -1))


def test_a_derivative_that_is_no_transpose_is_found() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return g.flip(1) * 3

        @staticmethod
        def jvp(ctx, v):
            return v * 2

    with pytest.raises(AdjointError):
        Jacobian(Wrong.apply, torch.randn(3, 6), forward="jvp").matvec(torch.randn(3, 1, 6))


def test_a_backward_that_does_not_exist_is_replaced_by_differences() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise NotImplementedError("no backward")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return OneWay.apply(self.a(x))

    net, x = Net(), torch.randn(3, 6)
    report = measure(net, x, dtype=torch.float64)
    assert any("differences" in note for note in report.notes)
    a = copy.deepcopy(net.a).double()
    assert_spectrum(report, slow_singular_values(lambda s: a(s).sin(), x), rtol=1e-6)


def test_rounding_errors_in_place_of_a_derivative_are_not_taken_for_a_wrong_one() -> None:
    torch.manual_seed(0)
    pairs = nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(4, 8), nn.Linear(8, 10))  # as after pruning: groups of two
    x = torch.randn(40, 6)
    report = measure(pairs, x)
    values = slow_singular_values(pairs.double(), x)
    torch.testing.assert_close(report.spectrum.values, values, rtol=1e-4, atol=1e-5 * float(values.max()))
    assert any("Jᵀ alone" in note for note in report.notes)
    assert "by rounding errors" in str(report)
