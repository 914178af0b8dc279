"""Measuring leaves the model, its inputs and the settings of torch as they were."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import measure, networks
from tests.models import batch_norm_net
from tests.references import slow_singular_values


def nets_in_every_state() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    mixed = batch_norm_net().train()
    mixed[1].eval()
    frozen_part = networks.build("lenet-5-relu", seed=0)
    frozen_part.conv1.requires_grad_(False)
    dropout = nn.Sequential(nn.Linear(8, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, 4)).train()
    return {
        "mlp": (networks.build("mlp-7-relu", seed=0).train(), (1, 32, 32)),
        "frozen": (frozen_part, (1, 32, 32)),
        "batchnorm": (mixed, (3, 8, 8)),
        "dropout": (dropout, (8,)),
    }


@pytest.mark.parametrize("name", ["mlp", "frozen", "batchnorm", "dropout"])
def test_measure_leaves_everything_as_it_was(name: str) -> None:
    net, shape = nets_in_every_state()[name]
    x = torch.randn(4, *shape)
    first = next(p for p in net.parameters() if p.requires_grad)
    first.grad = torch.ones_like(first)
    before = (
        {n: t.clone() for n, t in net.state_dict().items()},
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        torch.get_rng_state(),
        x.clone(),
    )
    report = measure(net, x)
    assert all(torch.equal(t, before[0][n]) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == before[1]
    assert [p.requires_grad for p in net.parameters()] == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert torch.equal(x, before[4])
    assert not x.requires_grad
    assert [p for p in net.parameters() if p.grad is not None] == [first]
    assert torch.equal(first.grad, torch.ones_like(first))
    assert measure(net, x).mean_jsv == report.mean_jsv
    assert measure(net.eval(), x).mean_jsv == report.mean_jsv


def test_a_failing_forward_pass_leaves_the_model_as_it_was() -> None:
    net = batch_norm_net().train()
    with pytest.raises(ValueError, match="does not accept"):
        measure(net, torch.randn(2, 5, 8, 8))
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    class Interrupts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.calls = nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return self.a(x)

    net = Interrupts().train()
    with pytest.raises(KeyboardInterrupt):
        measure(net, torch.randn(3, 6))
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert not net.a._forward_hooks


def test_a_network_that_changes_its_inputs_in_place_leaves_the_users_alone() -> None:
    class Normalizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sub_(0.5).div_(0.25).square())

    net = Normalizing().double()
    x = torch.randn(7, 6, dtype=torch.float64)
    before = x.clone()
    expected = slow_singular_values(lambda s: net(s.clone()), x)
    for method in ("exact", "krylov"):
        report = measure(net, x, method=method, progress=False)
        assert torch.equal(x, before)
        assert report.mean_jsv == pytest.approx(float(expected.mean()), rel=0.2 if method == "krylov" else 1e-9)


def test_buffers_written_behind_torchs_back_are_given_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)
            self.register_buffer("m", torch.zeros(4))
            self.register_buffer("v", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            F.batch_norm(h.detach(), self.m, self.v, training=True)
            return h

    net = Counting()
    measure(net, torch.randn(4, 6))
    assert not net.m.any()
    assert (net.v == 1).all()


def test_buffers_bound_anew_in_the_forward_pass_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.head(x)

    net = Counting()
    measure(net, torch.randn(3, 4))
    assert float(net.calls) == 0


class Draws(nn.Module):
    """Draws from NumPy's and Python's global generators, which changes nothing that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        np.random.rand()  # noqa: NPY002
        random.random()
        return self.layer(x)


def test_the_generators_of_numpy_and_python_come_out_as_they_went_in() -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    measure(Draws(), torch.randn(5, 4))
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_threads_take_turns_with_a_model_and_with_settings() -> None:
    net, x = batch_norm_net().train(), torch.randn(6, 3, 8, 8)
    expected = measure(net, x).mean_jsv
    precision = torch.get_float32_matmul_precision()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: measure(net, x, progress=False).mean_jsv, range(16)))
    assert found == [expected] * 16
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.get_float32_matmul_precision() == precision
