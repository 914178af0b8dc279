"""What pruning returns, in words."""

from pathlib import Path

import pytest
import torch

import isometry
from isometry import L1, Random, Slimming, networks, prune, train
from isometry.networks import size
from tests.models import joined
from tests.pruners.loops import assert_equal, net
from tests.pruners.test_stepwise import X


def test_layers_that_are_left_alone_for_one_reason_are_shortened() -> None:
    result = prune(networks.build("resnet-56", seed=0), L1(), 0.5, layers="layer1.0.conv1")
    (line,) = [line for line in str(result).splitlines() if line.startswith("left alone") and "not requested" in line]
    assert line.startswith("left alone: layer1.1.conv1, layer1.2.conv1 and ")
    assert line.endswith(" more: not requested")


def test_a_result_at_the_end_of_a_notebook_cell_is_its_description() -> None:
    result = prune(networks.build("mlp-7-relu"), L1(), 0.5)
    assert repr(result) == str(result)


def test_five_rounds_compose_to_one_that_is_replayed_bit_for_bit(digits: isometry.data.Data, tmp_path: Path) -> None:
    dense = net()
    whole = None
    for number in range(5):
        model = dense if whole is None else whole.model
        step = prune(model, L1() if number % 2 else Slimming(epochs=1, lr=0.05), 0.2, data=digits, seed=number)
        list(train(step.model, digits, lr=0.01, epochs=1))
        whole = step if whole is None else whole.then(step)
    assert (whole.before, whole.after) == (prune(dense, L1(), 0.2).before, size(whole.model, X))
    assert whole.plan.widths == prune(dense, L1(), 0.2).plan.widths
    assert len(whole.history) == 3
    assert not any(whole.plan.removed.get(layer) for layer in whole.left_alone)
    isometry.save(whole, tmp_path / "net.safetensors")
    again = isometry.load(tmp_path / "net.safetensors", net(seed=9), inputs=X)
    assert again.plan == whole.plan
    assert_equal(again.model, whole.model)
    one, other = (net.to(memory_format=torch.contiguous_format) for net in (again.model, whole.model))
    assert torch.equal(one(X), other(X))


@pytest.mark.parametrize("name", ["resnet-20", "joined"])
def test_rounds_of_coupled_layers_compose(name: str, tmp_path: Path) -> None:
    make = joined if name == "joined" else lambda: networks.build("resnet-20", seed=0)
    x = torch.randn(2, 3, 8, 8)
    first = prune(make(), L1(), 0.3, inputs=x)
    second = first.then(prune(first.model, Random(), 0.4, inputs=x))
    third = second.then(prune(second.model, L1(), 0.0, inputs=x))
    isometry.save(third, tmp_path / "net.safetensors")
    again = isometry.load(tmp_path / "net.safetensors", make(), inputs=x)
    assert torch.equal(again.model(x), third.model(x))
    assert third.plan == second.plan


def test_only_prunings_of_this_network_can_follow() -> None:
    first = prune(net(), L1(), 0.5, inputs=X)
    with pytest.raises(ValueError, match=r"Plan.then\(\) got a plan for 10 units of features.0, but this plan keeps 5"):
        first.then(first)
    with pytest.raises(TypeError, match=r"Pruned.then\(\) got Plan; .*first.then\(isometry.prune\(first.model"):
        first.then(first.plan)
