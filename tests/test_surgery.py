from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch_norm_net
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import isometry
from isometry import L1, Plan, networks, prune
from isometry.surgery import mask, remove, trace


def lenet() -> nn.Module:
    return networks.build("lenet-5-relu", seed=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.back = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.back(self.inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def test_families_of_a_chain_a_flatten_and_a_residual_sum() -> None:
    graph = trace(lenet(), torch.randn(2, 1, 32, 32))
    assert {f.root: (f.units, f.layers) for f in graph.families} == {
        "conv1": (6, ["conv1"]), "conv2": (16, ["conv2"]), "conv3": (120, ["conv3"]), "fc1": (84, ["fc1"]),
    }  # fmt: skip
    assert graph.fixed == {"fc2": "its units are outputs of the network"}
    flat = {f.root: f for f in trace(batch_norm_net(), torch.randn(2, 3, 8, 8)).families}
    (consumer,) = flat["3"].of("inputs")
    assert consumer.layer == "8"
    assert consumer.indices[1] == tuple(range(9, 18))  # 3x3 positions of channel 1
    assert [m.layer for m in flat["3"].of("norm")] == ["4"]
    coupled = [f for f in trace(Residual(), torch.randn(2, 3, 8, 8)).families if f.units == 8]
    assert sorted(coupled[0].layers) == ["back", "stem"]


@pytest.mark.parametrize("build", [lenet, batch_norm_net, Residual])
def test_pruned_equals_masked(build: Any) -> None:
    net = build().double().eval()
    x = torch.randn(4, *getattr(net, "input_shape", (3, 8, 8)), dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    graph = trace(net, x)
    chosen = [
        (
            f,
            tuple(
                u for u in range(f.units) if set(f.of("units")[0].take([u])) <= set(result.plan.removed[f.layers[0]])
            ),
        )
        for f in graph.families
    ]
    masked = mask(net, chosen)
    assert not torch.allclose(masked(x), net(x))
    torch.testing.assert_close(result.model(x), masked(x), rtol=1e-10, atol=1e-12)
    again = remove(net, result.plan, x)
    torch.testing.assert_close(again(x), result.model(x), rtol=0, atol=0)


def test_surgery_slices_the_rows_the_plan_names() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(6,), widths=(5, 4))
    pruned = remove(net, Plan({"net.0": (1, 3), "net.2": (0,)}, {"net.0": 5, "net.2": 4}), torch.randn(2, 6))
    assert torch.equal(pruned.net[0].weight, net.net[0].weight[[0, 2, 4]])
    assert torch.equal(pruned.net[0].bias, net.net[0].bias[[0, 2, 4]])
    assert torch.equal(pruned.net[2].weight, net.net[2].weight[[1, 2, 3]][:, [0, 2, 4]])
    assert torch.equal(pruned.net[4].weight, net.net[4].weight[:, [1, 2, 3]])
    assert net.net[0].out_features == 5


def test_tracing_leaves_modes_and_flags_alone_and_sees_frozen_layers() -> None:
    net = batch_norm_net().train()
    net[0].requires_grad_(False)
    with torch.no_grad():
        graph = trace(net, torch.randn(2, 3, 8, 8))
    assert {f.root for f in graph.families} == {"0", "3"}
    assert all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()][:3] == [False, False, True]


def test_plans_compose_in_original_indices_and_survive_json() -> None:
    first = Plan({"a": (1, 3)}, {"a": 6})
    both = first.then(Plan({"a": (0, 2), "b": (0,)}, {"a": 4, "b": 2}))
    assert both == Plan({"a": (0, 1, 3, 4), "b": (0,)}, {"a": 6, "b": 2})
    assert first.kept("a") == (0, 2, 4, 5)
    assert Plan.from_json(both.to_json()) == both
    assert both.ratio == 5 / 8
    assert "a: 4 of 6 units leave" in str(both)
    with pytest.raises(ValueError, match="made for the network that this one gives"):
        first.then(Plan({"a": (0,)}, {"a": 6}))
    with pytest.raises(ValueError, match="rising indices from 0 to 5"):
        Plan({"a": (3, 1)}, {"a": 6})
    with pytest.raises(ValueError, match="both for the same layers"):
        Plan({"a": (3,)}, {})


def test_a_pruned_net_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    file = tmp_path / "new" / "net.safetensors"
    isometry.save(result, file)
    back = isometry.load(file, networks.build("lenet-5-relu", seed=9))
    assert back.plan == result.plan
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(back.model.eval()(x), result.model(x))
    with pytest.raises(ValueError, match="does not fit the network"):
        isometry.load(file, networks.build("mlp-7-relu"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        isometry.load(file, lenet())
    with pytest.raises(FileNotFoundError):
        isometry.load(tmp_path / "none", lenet())


def masked_layer() -> nn.Module:
    net = lenet()
    torch_prune.l1_unstructured(net.fc1, "weight", 0.5)
    return net


def orthogonal_layer() -> nn.Module:
    net = lenet()
    torch.nn.utils.parametrizations.orthogonal(net.fc1)
    return net


def tied_layers() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (masked_layer, r"fc1 \(Linear\) carries a mask .* torch\.nn\.utils\.prune\.remove\(model\.fc1, 'weight'\)"),
        (orthogonal_layer, r"fc1 .* carries a parametrisation.*remove_parametrizations\(model\.fc1, 'weight'\)"),
        (tied_layers, r"2\.weight is tied to 0\.weight"),
    ],
)
def test_what_surgery_would_break_is_refused_by_name(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(build(), L1(), 0.5)


def test_a_cut_that_cannot_be_exact_is_refused() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(nn.functional.pixel_shuffle(self.one(x), 2)).mean((2, 3)))

    with pytest.raises(ValueError, match="nothing that can be cut exactly: The units of one cannot leave"):
        prune(Shuffle(), L1(), {"one": 0.5}, inputs=torch.randn(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match=r"cannot be cut exactly there\. Leave the layer out"):
        remove(Shuffle(), Plan({"one": (0, 1)}, {"one": 8}), torch.randn(2, 3, 4, 4))
