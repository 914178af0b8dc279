"""Pruning by magnitude."""

from torch import nn

from isometry import L1, networks, prune


def small_mlp() -> nn.Module:
    return networks.build("mlp-7-relu", seed=0, input_shape=(12,), widths=(10, 8))


def test_l1_removes_the_units_of_smallest_weights() -> None:
    net = small_mlp()
    result = prune(net, L1(), 0.35)
    sizes = net.net[0].weight.detach().abs().mean(1)
    assert set(result.plan.removed["net.0"]) == set(sizes.argsort()[:4].tolist())  # ceil(3.5)
    assert len(result.plan.removed["net.2"]) == 3
    assert "net.4" not in result.plan.removed
    assert (result.model.net[0].out_features, result.model.net[2].out_features) == (6, 5)


def test_the_result_says_what_was_removed() -> None:
    result = prune(small_mlp(), L1(), 0.35)
    assert result.before.parameters == 12 * 10 + 10 + 10 * 8 + 8 + 8 * 10 + 10
    assert result.after.parameters == 12 * 6 + 6 + 6 * 5 + 5 + 5 * 10 + 10
    assert result.after.flops == 2 * (12 * 6 + 6 * 5 + 5 * 10)
    assert result.after.bytes == 4 * result.after.parameters
    assert result.left_alone == {"net.4": "its units are outputs of the network"}
    assert len(result.history) == 0
    assert "parameters 308 -> 173" in str(result)
