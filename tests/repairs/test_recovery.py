"""Exact dynamical isometry for linear networks."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isometry
from isometry import L1, Magnitude, RandomWeights, measure, networks, orthogonalize, prune, recover


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(0, 1000))
def test_every_jsv_becomes_one_whenever_the_widths_allow_it(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)]).double()
    if min(sizes[1:-1], default=99) < min(sizes[0], sizes[-1]):
        with pytest.raises(ValueError, match="cannot make the JSVs 1"):
            recover(net)
        return
    values = measure(recover(net), torch.randn(2, sizes[0], dtype=torch.float64)).spectrum.values
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


def test_a_single_layer_is_a_chain_of_one() -> None:
    values = measure(recover(nn.Linear(3, 2)), torch.randn(2, 3)).spectrum.values
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-6)
    normalized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"the weight of the model \(.*remove_parametrizations\(model, 'weight'\)"):
        recover(normalized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_pruned_published_mlps_recover_exactly(dtype: torch.dtype, ratio: float) -> None:
    net = prune(networks.build("mlp-7-linear", seed=0).to(dtype), L1(), ratio).model
    before = copy.deepcopy(net.state_dict())
    recovered = recover(net)
    values = measure(recovered).spectrum.values
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(recovered.net[0].bias, net.net[0].bias)


def test_where_widths_only_fall_it_is_the_published_orthp() -> None:
    net = networks.build("mlp-7-linear", seed=0)
    for one, other in zip(recover(net).parameters(), orthogonalize(net).parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_forward_passes_written_by_hand_are_followed() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.drop, self.b = nn.Linear(12, 8), nn.Dropout(0.2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.drop(self.a(x.view(x.size(0), -1))))

    assert measure(recover(Written()), torch.randn(2, 3, 4)).isometry_gap < 1e-10


def bottleneck() -> nn.Module:
    return networks.build("mlp-7-linear", widths=(100, 5, 100))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + self.b(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (networks.build("mlp-7-relu"), r"net\.1 \(ReLU\) is not a linear layer"),
        (networks.build("lenet-5-linear"), r"conv1 \(Conv2d\) is not a linear layer"),
        (bottleneck(), r"net\.2 has 5 units, fewer than the 10 singular values of a map from 1024 inputs to 10 outputs, so 5 of them are 0"),
        (Branch(), "is not a linear layer|leaves the chain"),
        (nn.Sequential(nn.Flatten()), "no linear layer"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), "recover"),
        (nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))), "computed from other parameters|not a linear layer"),
    ],
    ids=["relu", "convolution", "bottleneck", "branch", "no layer", "parametrized root", "parametrized layer"],
)  # fmt: skip
def test_what_it_cannot_promise_is_refused_by_name(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recover(net)


@pytest.mark.parametrize("pruner", [Magnitude(), RandomWeights()], ids=repr)
@pytest.mark.parametrize("made", ["masks", "zeros"])
def test_sparse_linear_mlps_recover_and_keep_their_zeros(pruner: isometry.Pruner, made: str) -> None:
    masked = prune(networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8)), pruner, 0.9).model
    for layer in masked.net if made == "zeros" else ():
        if isinstance(layer, nn.Linear):
            nn.utils.prune.remove(layer, "weight")
    before = copy.deepcopy(masked.state_dict())
    recovered = recover(masked)
    values = measure(recovered).spectrum.values
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-4)
    for one, other in zip(masked.net, recovered.net, strict=True):
        if isinstance(one, nn.Linear):
            assert torch.equal(one.weight == 0, other.weight == 0)
            assert 0.89 < float((other.weight == 0).double().mean()) < 0.91
    assert all(torch.equal(before[name], tensor) for name, tensor in masked.state_dict().items())
    assert recovered.state_dict().keys() == before.keys()


def test_training_after_recovery_keeps_the_zeros(digits: isometry.data.Data) -> None:
    masked = prune(networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8)), Magnitude(), 0.9).model
    list(isometry.train(masked, digits, lr=1e-3, epochs=1))  # leaves the masked weights to be computed anew
    recovered = recover(masked)
    list(isometry.train(recovered, digits, lr=1e-3, epochs=1))
    assert torch.equal(recovered.net[0].weight == 0, masked.net[0].weight == 0)


def test_what_zeros_leave_out_of_reach_is_said_with_the_jsvs_that_are_reached() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(12,), widths=(20, 20))
    masked = prune(net, Magnitude(), 0.3).model
    with torch.no_grad():
        masked.net[2].weight_mask[4:] = 0
    with pytest.warns(
        UserWarning,
        match=r"recover\(\) keeps the zeros of net.0, net.2, net.4, with which 4 of 10 JSVs are 1 and the others 0",
    ) as record:
        recovered = recover(masked)
    assert record[0].filename == __file__
    values = measure(recovered).spectrum.values
    assert values.round(decimals=4).tolist() == [[1.0] * 4 + [0.0] * 6] * len(values)


def test_weights_of_zeros_only_are_no_mask() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(12,), widths=(20, 20))
    nn.init.zeros_(net.net[-1].weight)
    assert measure(recover(net)).isometry_gap < 1e-10


def test_a_zero_by_chance_is_no_mask() -> None:
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        net[0].weight[3, 4] = 0.0
    recovered = recover(net)
    weight = recovered[0].weight.detach()
    assert float(weight[3, 4]) != 0
    assert torch.allclose(weight @ weight.T, torch.eye(20), atol=1e-5)
