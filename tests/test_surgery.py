from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch_norm_net
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import isometry
from isometry import L1, Plan, networks, prune
from isometry.surgery import carry, mask, remove, trace


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
)
def test_optimiser_state_is_cut_like_the_weights(make: Any) -> None:
    torch.manual_seed(0)
    net = batch_norm_net().eval()  # fixed statistics: units do not meet in them
    x = torch.randn(6, 3, 8, 8)
    optimizer = make(list(net.parameters()))
    for _ in range(3):
        one_step(net, optimizer, x)
    result = prune(net, L1(), 0.5, inputs=x)
    carried = carry(optimizer, net, result, inputs=x)
    assert {id(p) for g in carried.param_groups for p in g["params"]} == {id(p) for p in result.model.parameters()}
    kept = list(result.plan.kept("0"))
    for key, value in optimizer.state[net[0].weight].items():
        found = carried.state[result.model[0].weight][key]
        assert torch.equal(found, value[kept] if value.ndim else value)
    assert carried.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    # A step of the pruned network with the state carried moves; the dense network and its optimiser are as they were.
    before = [p.detach().clone() for p in net.parameters()]
    one_step(result.model, carried, x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    data = (x, torch.arange(6) % 5)
    with pytest.raises(ValueError, match="before surgery"):
        isometry.train(result.model, data, lr=0.1, epochs=1, optimizer=optimizer)
    list(isometry.train(result.model, data, lr=0.1, epochs=1, optimizer=carried))
    with pytest.raises(ValueError, match="are not the model's"):
        carry(carried, net, result, inputs=x)


def test_networks_pruned_elsewhere_are_measured_and_compared(tmp_path: Path) -> None:
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
    assert torch.equal(adopted(x), other(x))
    assert adopted.conv2.out_channels == 13
    assert adopted.conv3.in_channels == 13
    table = isometry.compare({"dense": dense, "theirs": other, "masked": masks, "plain state": adopted}, x)
    assert table["mean_jsv"].gt(0).all()
    assert table["mean_jsv"][1] == pytest.approx(table["mean_jsv"][3], rel=1e-6)
    assert prune(adopted, L1(), 0.5, inputs=x).model(x).shape == (4, 10)
    with pytest.raises(ValueError, match="the state of another network: extra"):
        isometry.surgery.adopt(dense, {**state, "extra": torch.zeros(1)})
    grouped = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
    ).eval()
    small = prune(grouped, L1(), 0.5, inputs=torch.randn(2, 3, 5, 5)).model
    again = isometry.surgery.adopt(grouped, small.state_dict())
    assert torch.equal(again(torch.ones(1, 3, 5, 5)), small(torch.ones(1, 3, 5, 5)))


def test_layers_are_skipped_rounded_and_asked_for_by_pattern() -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    result = prune(net, L1(), 0.5, inputs=x, skip="conv*")
    assert {layer: len(units) for layer, units in result.plan.removed.items()} == {"fc1": 42}
    assert result.left_alone["conv1"] == "not asked for"
    rounded = prune(net, L1(), 0.5, inputs=x, round_to=8, layers=["conv2", "fc1"])
    assert (rounded.model.conv2.out_channels, rounded.model.fc1.out_features) == (8, 48)
    with pytest.raises(ValueError, match=r"round_to=8 for conv1, which has 6 units only.*skip='conv1'"):
        prune(net, L1(), 0.5, inputs=x, round_to=8)
    with pytest.raises(ValueError, match="the layer pattern 'block', which matches none"):
        prune(net, L1(), 0.5, inputs=x, skip="block")
    everywhere = prune(net, L1(scope="global"), 0.5, inputs=x)
    assert everywhere.ratio == pytest.approx(0.5, abs=0.01)
    assert len({len(u) / everywhere.plan.widths[layer] for layer, u in everywhere.plan.removed.items()}) > 1


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_a_target_in_flops_is_met_by_the_smallest_ratio(target: float) -> None:
    net, x = lenet(), torch.randn(2, 1, 32, 32)
    result = prune(net, L1(), flops=target, inputs=x)
    removed = 1 - result.after.flops / result.before.flops
    assert target <= removed < target + 0.12
    with pytest.raises(ValueError, match=r"flops=0.999, but at most 0.9\d+ of the FLOPs"):
        prune(net, L1(), flops=0.999, inputs=x)
    for wrong in ({}, {"ratio": 0.5, "flops": 0.5}, {"flops": 1.5}, {"ratio": 0.5, "round_to": 0}):
        with pytest.raises(ValueError, match="either a ratio in"):
            prune(net, L1(), inputs=x, **wrong)


def test_archives_come_back_as_they_were_saved(tmp_path: Path) -> None:
    net = batch_norm_net().double().train()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    isometry.save(result, tmp_path / "net.safetensors")
    again = isometry.load(tmp_path / "net.safetensors", batch_norm_net(), inputs=x.float()).model
    assert torch.equal(again(x), result.model(x))
    wide = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1))
    same = isometry.surgery.adopt(wide, wide.state_dict())
    assert torch.equal(same(torch.ones(1, 8, 4, 4)), wide(torch.ones(1, 8, 4, 4)))
    half = isometry.surgery.adopt(wide, {n: t.bfloat16() for n, t in wide.state_dict().items()})
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_rounding_counts_channels_and_families_that_keep_all_are_named() -> None:
    x = torch.randn(2, 3, 6, 6)
    grouped = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )
    rounded = prune(grouped, L1(), 0.6, inputs=x, round_to=8)
    assert (rounded.model[0].out_channels, rounded.model[2].out_channels) == (8, 8)
    few = prune(grouped, L1(floor=4), 0.5, inputs=x)
    assert few.ratio == 0
    assert few.left_alone["0"] == "none of its units can leave at this ratio, floor and rounding"
    padded = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ConstantPad3d(1, 0.0), nn.Conv3d(4, 2, 3))
    assert prune(padded, L1(), 0.5, inputs=torch.randn(2, 2, 6, 6, 6)).ratio == 0.5
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    left = prune(transposed, L1(), 0.5, inputs=torch.randn(2, 4, 5, 5)).left_alone
    assert "transposed convolution in groups" in left["0"]


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
        carry(optimizer, net, prune(net, L1(), 0.5, inputs=x), inputs=x)
