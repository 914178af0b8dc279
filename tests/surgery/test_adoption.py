"""Networks pruned elsewhere, by their plain states."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import isometry
from isometry import L1, networks, prune, surgery
from tests.models import Wired, lenet


def test_a_state_pruned_elsewhere_is_adopted_and_pruned_further() -> None:
    import torch_pruning as tp

    torch.manual_seed(0)
    x = torch.randn(4, 1, 32, 32)
    other = networks.build("lenet-5-relu", seed=0)
    graph = tp.DependencyGraph().build_dependency(other, x)
    graph.get_pruning_group(other.conv2, tp.prune_conv_out_channels, [0, 3, 5]).prune()
    other.eval()
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    adopted = isometry.surgery.adopt(networks.build("lenet-5-relu", seed=9), state)
    assert torch.equal(adopted(x), other(x))
    assert adopted.conv2.out_channels == 13
    assert adopted.conv3.in_channels == 13
    assert prune(adopted, L1(), 0.5, inputs=x).model(x).shape == (4, 10)


def test_networks_pruned_elsewhere_are_measured_and_compared() -> None:
    import torch_pruning as tp

    torch.manual_seed(0)
    dense, x = lenet(), torch.randn(4, 1, 32, 32)
    other = networks.build("lenet-5-relu", seed=0)
    graph = tp.DependencyGraph().build_dependency(other, x)
    graph.get_pruning_group(other.conv2, tp.prune_conv_out_channels, [0, 3, 5]).prune()
    other.eval()
    masks = networks.build("lenet-5-relu", seed=0)
    torch_prune.ln_structured(masks.conv2, "weight", amount=3, n=1, dim=0)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    adopted = isometry.surgery.adopt(networks.build("lenet-5-relu", seed=9), state)
    table = isometry.compare({"dense": dense, "theirs": other, "masked": masks, "plain state": adopted}, x)
    assert table["mean_jsv"].gt(0).all()
    assert table["mean_jsv"][1] == pytest.approx(table["mean_jsv"][3], rel=1e-6)


def test_the_state_of_another_network_is_refused() -> None:
    import torch_pruning as tp

    torch.manual_seed(0)
    dense, x = lenet(), torch.randn(4, 1, 32, 32)
    other = networks.build("lenet-5-relu", seed=0)
    graph = tp.DependencyGraph().build_dependency(other, x)
    graph.get_pruning_group(other.conv2, tp.prune_conv_out_channels, [0, 3, 5]).prune()
    other.eval()
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="the state of another network: extra"):
        isometry.surgery.adopt(dense, {**state, "extra": torch.zeros(1)})


def test_pruned_depthwise_convolutions_are_adopted() -> None:
    grouped = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
    ).eval()
    small = prune(grouped, L1(), 0.5, inputs=torch.randn(2, 3, 5, 5)).model
    again = isometry.surgery.adopt(grouped, small.state_dict())
    assert torch.equal(again(torch.ones(1, 3, 5, 5)), small(torch.ones(1, 3, 5, 5)))


def test_a_network_that_was_not_pruned_is_adopted() -> None:
    wide = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1))
    same = isometry.surgery.adopt(wide, wide.state_dict())
    assert torch.equal(same(torch.ones(1, 8, 4, 4)), wide(torch.ones(1, 8, 4, 4)))


def test_states_of_half_precision_are_adopted_as_they_are() -> None:
    wide = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1))
    half = isometry.surgery.adopt(wide, {n: t.bfloat16() for n, t in wide.state_dict().items()})
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_adopted_networks_keep_their_ties() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    adopted = surgery.adopt(net, net.state_dict())
    assert adopted[0].weight is adopted[1].weight


def test_adopted_networks_convert_what_no_file_holds() -> None:
    shifted = Wired(lambda m, x: m.a(x + m.shift), a=nn.Linear(6, 3))
    shifted.register_buffer("shift", torch.ones(6), persistent=False)
    half = {name: tensor.bfloat16() for name, tensor in shifted.state_dict().items()}
    assert surgery.adopt(shifted, half)(torch.ones(2, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("state", [{"0.weight": 1}, nn.Linear(6, 3)], ids=["numbers", "network"])
def test_a_state_without_tensors_is_refused(state: Any) -> None:
    with pytest.raises(
        TypeError, match=r"adopt\(\) got a state of type (dict|Linear); it takes \{name: tensor\}.*e\.g\. adopt"
    ):
        surgery.adopt(nn.Sequential(nn.Linear(6, 3)), state)
