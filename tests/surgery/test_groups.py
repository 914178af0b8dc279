"""Units that can only be removed together."""

import torch

from isometry.surgery import trace
from tests.models import SmallResidual, batch_norm_net, lenet


def test_every_layer_of_a_chain_is_a_group_of_its_own() -> None:
    graph = trace(lenet(), torch.randn(2, 1, 32, 32))
    assert {f.root: (f.units, f.layers) for f in graph.groups} == {
        "conv1": (6, ["conv1"]), "conv2": (16, ["conv2"]), "conv3": (120, ["conv3"]), "fc1": (84, ["fc1"]),
    }  # fmt: skip
    assert graph.fixed == {"fc2": "its units are outputs of the network"}


def test_a_flatten_repeats_every_channel_for_its_positions() -> None:
    flat = {f.root: f for f in trace(batch_norm_net(), torch.randn(2, 3, 8, 8)).groups}
    (consumer,) = flat["3"].of("inputs")
    assert consumer.layer == "8"
    assert consumer.indices[1] == tuple(range(9, 18))  # 3x3 positions of channel 1
    assert [m.layer for m in flat["3"].of("norm")] == ["4"]


def test_a_residual_sum_joins_its_layers_in_one_group() -> None:
    coupled = [f for f in trace(SmallResidual(), torch.randn(2, 3, 8, 8)).groups if f.units == 8]
    assert sorted(coupled[0].layers) == ["back", "stem"]
