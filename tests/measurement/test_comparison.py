"""Networks compared at the same samples."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from isometry import Magnitude, compare, networks, prune


def test_compare_pairs_the_samples() -> None:
    one = networks.build("mlp-7-relu", seed=0)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.net[-1].weight.mul_(1.5)
    x = torch.randn(40, 1, 32, 32)
    table = compare({"one": one, "other": other}, iter(x.split(10)))
    assert list(table["network"]) == ["one", "other"]
    assert table["mean_jsv"][1] == pytest.approx(1.5 * table["mean_jsv"][0], rel=1e-5)
    assert table["difference"][0] == 0
    paired = table["difference_high"][1] - table["difference_low"][1]
    assert paired < table["interval_high"][1] - table["interval_low"][1]
    assert table["difference_low"][1] < table["mean_jsv"][1] - table["mean_jsv"][0] < table["difference_high"][1]


def test_comparisons_of_linear_networks_add_the_oracle() -> None:
    dense = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(20, 20))
    table = compare({"dense": dense}, oracle=True)
    assert list(table["network"]) == ["dense", "dense + oracle"]
    assert table["mean_jsv"][1] == pytest.approx(1, abs=1e-5)


def test_comparisons_of_other_networks_add_orthp() -> None:
    relu = networks.build("lenet-5-relu", seed=0)
    other = copy.deepcopy(relu)
    with torch.no_grad():
        other.fc2.weight.mul_(1.1)
    x = torch.randn(60, 1, 32, 32) * torch.linspace(0.2, 2, 60).view(-1, 1, 1, 1)
    table = compare({"a": relu, "b": other}, x, oracle=True)
    assert list(table["network"]) == ["a", "b", "a + OrthP", "b + OrthP"]


def test_masked_networks_have_an_oracle_too() -> None:
    dense = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(20, 20))
    masked = prune(dense, Magnitude(), 0.5).model
    table = compare({"dense": dense, "masked": masked}, oracle=True)
    assert list(table["network"]) == ["dense", "masked", "dense + oracle", "masked + oracle"]
    assert table["mean_jsv"][3] == pytest.approx(1, abs=1e-4)


def test_a_network_that_no_repair_works_for_is_named() -> None:
    dense = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(20, 20))
    computed = copy.deepcopy(dense)
    nn.utils.parametrizations.weight_norm(computed.net[2])
    message = r"compare\(\) got oracle=True and no repair works for 'b' \(cannot set the weight of net.2"
    with pytest.raises(ValueError, match=message):
        compare({"a": dense, "b": computed}, oracle=True)


def test_pairing_shrinks_the_interval_of_the_difference() -> None:
    relu = networks.build("lenet-5-relu", seed=0)
    other = copy.deepcopy(relu)
    with torch.no_grad():
        other.fc2.weight.mul_(1.1)
    x = torch.randn(60, 1, 32, 32) * torch.linspace(0.2, 2, 60).view(-1, 1, 1, 1)
    table = compare({"a": relu, "b": other}, x, oracle=True)
    paired = table["difference_high"][1] - table["difference_low"][1]
    alone = sum(table["interval_high"][i] - table["interval_low"][i] for i in (0, 1))
    assert paired < alone / 5


def test_runs_of_different_samples_cannot_be_paired() -> None:
    relu = networks.build("lenet-5-relu", seed=0)
    x = torch.randn(60, 1, 32, 32) * torch.linspace(0.2, 2, 60).view(-1, 1, 1, 1)
    with pytest.raises(ValueError, match="cannot be paired"):
        compare({"a": relu, "b": nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))}, x, rtol=0.004)


def test_iterables_are_read_once_for_all_networks() -> None:
    class Fresh:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([torch.randn(6, 4)])

    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    assert compare({"a": net, "same": net}, Fresh())["difference"].tolist() == [0, 0]


def test_differences_of_brackets_cover_the_truth() -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(*[nn.Linear(60, 60, bias=False) for _ in range(4)]) for _ in range(2))
    x = torch.randn(400, 60)
    exact = compare({"a": a, "b": b}, x[:3], method="exact")
    found = compare({"a": a, "b": b}, x, method="krylov")
    low, high = found["difference_low"][1], found["difference_high"][1]
    assert low <= exact["difference"][1] <= high


def test_networks_that_change_their_inputs_in_place_get_the_same_ones() -> None:
    class Normalizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sub_(0.5).div_(0.25).square())

    net = Normalizing().double()
    x = torch.randn(7, 6, dtype=torch.float64)
    table = compare({"a": net, "same": net}, x)
    assert table["difference"].tolist() == [0, 0]


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compare\(\) got no networks"):
        compare({})


def test_a_comparison_of_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="a list; it takes"):
        compare([nn.Linear(6, 2)], torch.randn(4, 3, 6))  # type: ignore[arg-type]


def test_a_network_that_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"^compare\(\) cannot measure 'narrow': got inputs of shape .*, e\.g\. "):
        compare({"wide": nn.Linear(6, 2), "narrow": nn.Linear(5, 2)}, torch.randn(4, 6))


def test_intervals_of_several_networks_hold_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 6)
    two, eleven = (compare({str(i): nn.Linear(6, 4) for i in range(count)}, x * 1.0) for count in (2, 11))
    assert len(eleven) == 11
    wrong = 0
    for seed in range(60):  # ten equal networks against one, samples of different sizes: each difference is pure noise
        g = torch.Generator().manual_seed(seed)
        nets = {str(i): Noisy(i, seed) for i in range(11)}
        table = compare(nets, torch.randn(8, 4, generator=g))
        wrong += bool(((table["difference_low"] > 0) | (table["difference_high"] < 0)).iloc[1:].any())
    assert wrong <= 9
    assert two["difference"].iloc[0] == 0


class Noisy(nn.Module):
    """A map of random size, the same in expectation for all: x -> (1 + 0.3 e(x)) x, e being a hash of x and the network."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__()
        self.direction = torch.randn(4, generator=torch.Generator().manual_seed(1000 * seed + number))

    def forward(self, x: Tensor) -> Tensor:
        return (1 + 0.3 * torch.sin(50 * (x.detach() @ self.direction)))[:, None] * x


def test_networks_of_different_numbers_of_outputs_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"compare\(\) got b with 5 outputs and a with 4"):
        compare({"a": nn.Linear(6, 4), "b": nn.Linear(6, 5)}, torch.randn(3, 6))


def test_small_differences_of_large_networks_are_seen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(150, 200), nn.Tanh(), nn.Linear(200, 150))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[2].weight.mul_(1.02)
    row = compare({"net": net, "larger": other}, torch.randn(8, 150), method="krylov").iloc[1]
    assert row["difference_low"] > 0
    assert row["difference"] == pytest.approx(0.02 * (row["mean_jsv"] / 1.02), rel=0.3)
