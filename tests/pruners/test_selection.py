"""How many units of which layers are removed."""

from typing import Any

import pytest
import torch
from torch import nn

import isometry
from isometry import L1, Magnitude, networks, prune
from tests.models import lenet


def test_published_widths() -> None:
    net = networks.build("mlp-7-linear", seed=0)
    for ratio, width in ((0.1, 90), (0.3, 70), (0.5, 50), (0.7, 30), (0.8, 20), (0.9, 10)):
        result = prune(net, L1(), ratio)
        assert [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)] == [width] * 6 + [10]


def test_patterns_choose_ratios_and_later_ones_win() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    result = prune(net, L1(), {"*": 0.25, "conv*": 0.5, "conv1": 0.0})
    assert {layer: len(units) for layer, units in result.plan.removed.items()} == {
        "conv1": 0, "conv2": 8, "conv3": 60, "fc1": 21,
    }  # fmt: skip


def test_only_the_layers_asked_for_are_pruned() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    only = prune(net, L1(), 0.5, layers="conv2")
    assert list(only.plan.removed) == ["conv2"]
    assert only.left_alone["fc1"] == "not requested"


def test_layers_are_skipped_by_pattern() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    result = prune(net, L1(), 0.5, inputs=x, skip="conv*")
    assert {layer: len(units) for layer, units in result.plan.removed.items()} == {"fc1": 42}
    assert result.left_alone["conv1"] == "not requested"


def test_the_units_kept_are_rounded_to_multiples() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    rounded = prune(net, L1(), 0.5, inputs=x, round_to=8, layers=["conv2", "fc1"])
    assert (rounded.model.conv2.out_channels, rounded.model.fc1.out_features) == (8, 48)
    with pytest.raises(ValueError, match=r"round_to=8 for conv1, which has 6 units only.*skip='conv1'"):
        prune(net, L1(), 0.5, inputs=x, round_to=8)


def test_a_pattern_that_matches_no_layer_is_refused() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    with pytest.raises(ValueError, match="the layer pattern 'block', which matches none"):
        prune(net, L1(), 0.5, inputs=x, skip="block")


def test_a_global_ratio_is_met_by_layers_of_different_ratios() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    everywhere = prune(net, L1(scope="global"), 0.5, inputs=x)
    assert everywhere.ratio == pytest.approx(0.5, abs=0.01)
    assert len({len(u) / everywhere.plan.widths[layer] for layer, u in everywhere.plan.removed.items()}) > 1


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_a_target_in_flops_is_met_by_the_smallest_ratio(target: float) -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    result = prune(net, L1(), flops=target, inputs=x)
    removed = 1 - result.after.flops / result.before.flops
    assert target <= removed < target + 0.12


def test_a_target_in_flops_out_of_reach_is_refused() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    with pytest.raises(ValueError, match=r"flops=0.999, but at most 0.9\d+ of the FLOPs"):
        prune(net, L1(), flops=0.999, inputs=x)


def test_a_ratio_and_a_target_in_flops_exclude_each_other() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    for wrong in ({}, {"ratio": 0.5, "flops": 0.5}):
        with pytest.raises(ValueError, match="either a ratio in"):
            prune(net, L1(), inputs=x, **wrong)


@pytest.mark.parametrize("pruner", [L1(), Magnitude()], ids=["units", "weights"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"ratio": "0.5"}, r"the ratio '0\.5'", id="text"),
        pytest.param({"ratio": [0.5]}, r"the ratio \[0\.5\]", id="list"),
        pytest.param({"ratio": {"*": "a"}}, "the ratio 'a'", id="text for a pattern"),
        pytest.param({"ratio": True}, "the ratio True", id="bool"),
        pytest.param({"ratio": {3: 0.5}}, r"ratio=\{3: 0\.5\}", id="number for a pattern"),
        pytest.param({"flops": "a"}, "flops='a'", id="FLOPs in words"),
        pytest.param({"flops": 1.5}, r"flops=1\.5", id="too many FLOPs"),
        pytest.param({"ratio": 0.5, "round_to": 0}, "round_to=0", id="round to 0"),
        pytest.param({"ratio": 0.5, "round_to": "4"}, "round_to='4'", id="round to text"),
        pytest.param({"ratio": 0.5, "skip": 3}, "skip=3", id="number to skip"),
        pytest.param({"ratio": 0.5, "layers": ["a", 3]}, r"layers=\['a', 3\]", id="number among layers"),
        pytest.param({"ratio": 0.5, "seed": "a"}, "seed='a'", id="seed"),
    ],
)
def test_requests_that_are_no_numbers_or_names_are_refused(
    pruner: isometry.Pruner, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^prune\(\) got {message}; it .*, e\.g\. "):
        prune(lenet(), pruner, inputs=torch.randn(2, 1, 32, 32), **wrong)


def test_rounding_counts_channels() -> None:
    x = torch.randn(2, 3, 6, 6)
    grouped = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )
    rounded = prune(grouped, L1(), 0.6, inputs=x, round_to=8)
    assert (rounded.model[0].out_channels, rounded.model[2].out_channels) == (8, 8)


def test_groups_that_keep_all_units_are_named() -> None:
    x = torch.randn(2, 3, 6, 6)
    grouped = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )
    few = prune(grouped, L1(floor=4), 0.5, inputs=x)
    assert few.ratio == 0
    assert few.left_alone["0"] == "none of its units can be removed at this ratio, floor and rounding"
