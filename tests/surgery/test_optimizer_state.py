"""An optimizer carried over to the pruned network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, prune, surgery
from isometry.surgery import transfer_optimizer_state
from tests.models import batch_norm_net, lenet


def one_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_optimizer_state_is_cut_like_the_weights(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    carried = transfer_optimizer_state(optimizer, net, result, inputs=x)
    assert {id(p) for g in carried.param_groups for p in g["params"]} == {id(p) for p in result.model.parameters()}
    kept = list(result.plan.kept("0"))
    for key, value in optimizer.state[net[0].weight].items():
        found = carried.state[result.model[0].weight][key]
        assert torch.equal(found, value[kept] if value.ndim else value)
    assert carried.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_a_step_of_the_pruned_network_leaves_the_dense_one_as_it_was(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    carried = transfer_optimizer_state(optimizer, net, result, inputs=x)
    # A step of the pruned network with the state carried moves; the dense network and its optimizer are as they were.
    before = [p.detach().clone() for p in net.parameters()]
    one_step(result.model, carried, x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_the_optimizer_of_the_dense_network_is_refused_in_training(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    data = (x, torch.arange(6) % 5)
    with pytest.raises(ValueError, match="before surgery"):
        isometry.train(result.model, data, lr=0.1, epochs=1, optimizer=optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_a_carried_optimizer_trains(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    carried = transfer_optimizer_state(optimizer, net, result, inputs=x)
    data = (x, torch.arange(6) % 5)
    before = [parameter.detach().clone() for parameter in result.model.parameters()]
    (epoch,) = isometry.train(result.model, data, lr=0.1, epochs=1, optimizer=carried)
    assert epoch.steps == 1
    assert not epoch.diverged
    assert not any(map(torch.equal, before, result.model.parameters()))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_an_optimizer_of_another_network_is_not_carried(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    carried = transfer_optimizer_state(optimizer, net, result, inputs=x)
    with pytest.raises(ValueError, match="are not the model's"):
        transfer_optimizer_state(carried, net, result, inputs=x)


def test_state_that_cannot_be_cut_like_the_weights_is_refused() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"LBFGS, whose state .* cannot be cut like them"):
        transfer_optimizer_state(optimizer, net, prune(net, L1(), 0.5, inputs=x), inputs=x)


def test_carrying_takes_any_class_and_does_not_touch_the_optimizer() -> None:
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    pruned = isometry.prune(net, isometry.L1(), 0.5)

    class Demanding(torch.optim.SGD):
        def __init__(self, params: Any, lr: float, **options: Any) -> None:
            super().__init__(params, lr=lr, **options)

    optimizer = Demanding(net.parameters(), 0.1)
    assert surgery.transfer_optimizer_state(optimizer, net, pruned).param_groups[0]["lr"] == 0.1
    assert not optimizer.state


@pytest.mark.parametrize(("make", "traces"), [(torch.optim.SGD, 0), (torch.optim.Adam, 1)], ids=["SGD", "Adam"])
def test_one_trace_serves_all_keys_of_the_state(make: Any, traces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    optimizer = make(net.parameters(), lr=0.1)
    one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    calls = []
    original = surgery.graph._propagate
    monkeypatch.setattr(surgery.graph, "_propagate", lambda *a: calls.append(a) or original(*a))
    transfer_optimizer_state(optimizer, net, result, inputs=x)
    assert len(calls) == traces


def test_state_keeps_its_numbers_in_half_precision() -> None:
    net, x = lenet().bfloat16(), torch.randn(2, 1, 32, 32, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    one_step(net, optimizer, x)
    result = prune(net, L1(), {"conv2": 0.5}, inputs=x)
    state = transfer_optimizer_state(optimizer, net, result, inputs=x).state[result.model.conv2.weight]
    expected = optimizer.state[net.conv2.weight]["momentum_buffer"][list(result.plan.kept("conv2"))]
    assert torch.equal(state["momentum_buffer"], expected)


def test_a_network_without_its_plan_is_refused() -> None:
    net = lenet()
    with pytest.raises(
        TypeError, match=r"transfer_optimizer_state\(\) got LeNet.* as result; it takes .* e\.g\. transfer"
    ):
        transfer_optimizer_state(torch.optim.SGD(net.parameters(), lr=0.1), net, prune(net, L1(), 0.5).model)  # type: ignore[arg-type]


def test_defaults_are_carried_too_for_groups_that_are_added_later() -> None:
    net = batch_norm_net().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    x = torch.randn(2, 3, 8, 8)
    carried = transfer_optimizer_state(optimizer, net, prune(net, L1(), 0.5, inputs=x), inputs=x)
    carried.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert (carried.param_groups[1]["lr"], carried.param_groups[1]["nesterov"]) == (0.1, True)


def test_the_state_of_masked_weights_is_carried_whole() -> None:
    net, x = batch_norm_net().eval(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    one_step(net, optimizer, x)
    result = prune(net, isometry.Magnitude(), 0.5, inputs=x)
    carried = transfer_optimizer_state(optimizer, net, result, inputs=x)
    found = carried.state[result.model[0].weight_orig]["momentum_buffer"]
    assert torch.equal(found, optimizer.state[net[0].weight]["momentum_buffer"])


def test_a_class_with_arguments_of_its_own_is_refused_by_name() -> None:
    class Special(torch.optim.SGD):
        def __init__(self, params: Any, extra: int) -> None:
            super().__init__(params, lr=0.1)

    net, x = batch_norm_net().eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="cannot make another Special"):
        transfer_optimizer_state(Special(net.parameters(), 3), net, prune(net, L1(), 0.5, inputs=x), inputs=x)
