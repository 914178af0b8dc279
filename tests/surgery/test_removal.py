"""A pruned network is the one whose removed units are set to zero."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import L1, Plan, networks, prune
from isometry.surgery import InexactError, find_inexact, remove, trace
from tests.models import (
    DenselyConnected,
    Grouped,
    HardCoded,
    InvertedResidual,
    SharedTwice,
    ShortcutResidual,
    SmallResidual,
    SqueezeExcite,
    ViT,
    Wired,
    batch_norm_net,
    cbr,
    lenet,
    lively,
)
from tests.references import masked_by


@pytest.mark.parametrize("build", [lenet, batch_norm_net, SmallResidual], ids=["lenet", "batchnorm", "residual"])
def test_pruned_equals_masked(build: Callable[[], nn.Module]) -> None:
    net = build().double().eval()
    x = torch.randn(4, *getattr(net, "input_shape", (3, 8, 8)), dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    masked = masked_by(net, result.plan, x)
    assert not torch.allclose(masked(x), net(x))
    torch.testing.assert_close(result.model(x), masked(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", [lenet, batch_norm_net, SmallResidual], ids=["lenet", "batchnorm", "residual"])
def test_the_same_plan_gives_the_same_network_again(build: Callable[[], nn.Module]) -> None:
    net = build().double().eval()
    x = torch.randn(4, *getattr(net, "input_shape", (3, 8, 8)), dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
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


@pytest.mark.parametrize(
    ("build", "least"),
    [
        (ShortcutResidual, 3), (InvertedResidual, 2), (DenselyConnected, 3), (SqueezeExcite, 3), (Grouped, 3), (SharedTwice, 1),
        (lambda: networks.build("resnet-20", seed=0), 9),
        (lambda: networks.build("resnet-20", seed=0, norm="bounded"), 9),
        (lambda: networks.build("conv-4", seed=0, input_shape=(3, 8, 8), widths=(6, 6, 8, 8)), 4),
        (lambda: networks.build("resnet-50", 7, seed=0, input_shape=(3, 32, 32)), 32),
    ],
    ids=[
        "shortcut", "inverted residual", "densely connected", "squeeze-excite", "grouped", "shared twice", "resnet-20",
        "resnet-20 bounded", "conv-4", "resnet-50",
    ],
)  # fmt: skip
def test_pruned_equals_masked_on_every_architecture(build: Callable[[], nn.Module], least: int) -> None:
    torch.manual_seed(0)
    net = lively(build())
    x = torch.randn(3, *getattr(net, "input_shape", (3, 8, 8)), dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    assert sum(bool(units) for units in result.plan.removed.values()) >= least
    masked = masked_by(net, result.plan, x)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), masked(x), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(masked(x), net(x))
    assert result.after.parameters < result.before.parameters
    assert result.after.flops < result.before.flops


def test_a_vit_loses_mlp_units_exactly() -> None:
    torch.manual_seed(0)
    net = ViT().double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x, layers="*mlp.0")
    assert [block.mlp[0].out_features for block in result.model.blocks] == [10, 10]
    torch.testing.assert_close(result.model(x), masked_by(net, result.plan, x)(x), rtol=1e-9, atol=1e-11)
    assert result.inexact == ()


def test_a_vit_loses_heads_and_keeps_its_patches() -> None:
    torch.manual_seed(0)
    net = ViT().double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    default = prune(net, L1(), 0.5, inputs=x)
    assert [block.attention.num_heads for block in default.model.blocks] == [1, 1]
    assert default.model(x).shape == (3, 4)
    assert [block.mlp[0].out_features for block in default.model.blocks] == [10, 10]
    assert "patches" in default.left_alone


@st.composite
def graphs(draw: st.DrawFn) -> tuple[nn.Module, int]:
    """Return a random small network of residual sums, concatenations, groups and norms, with a seed."""
    steps = draw(
        st.lists(st.sampled_from(["conv", "residual", "concat", "depthwise", "gate", "pool"]), min_size=1, max_size=5)
    )
    width = draw(st.integers(2, 6))
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.parts = cbr(2, width), nn.ModuleList()
            channels = width
            for step in steps:
                inner = draw(st.integers(2, 6))
                if step == "conv":
                    self.parts.append(cbr(channels, inner))
                    channels = inner
                elif step == "residual":
                    self.parts.append(nn.Sequential(cbr(channels, inner), nn.Conv2d(inner, channels, 1)))
                elif step == "concat":
                    self.parts.append(cbr(channels, inner, 1))
                    channels += inner
                elif step == "depthwise":
                    self.parts.append(cbr(channels, channels, groups=channels))
                elif step == "gate":
                    self.parts.append(nn.Conv2d(channels, channels, 1))
                else:
                    self.parts.append(nn.MaxPool2d(3, 1, 1))
            self.head = nn.Linear(channels, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for step, part in zip(steps, self.parts, strict=True):
                y = part(x)
                x = {"residual": lambda y=y, x=x: F.relu(x + y), "concat": lambda y=y, x=x: torch.cat([x, y], 1),
                     "gate": lambda y=y, x=x: x * torch.sigmoid(y)}.get(step, lambda y=y: y)()  # fmt: skip
            return self.head(x.mean((2, 3)))

    return lively(Net(), seed), seed


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([0.3, 0.5, 0.8]))
def test_pruned_equals_masked_on_random_graphs(drawn: tuple[nn.Module, int], ratio: float) -> None:
    net, seed = drawn
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(ratio * family.units > family.units - 0.5 for family in trace(net, x).groups):
            with pytest.raises(ValueError, match="would leave none of its"):
                prune(net, L1(), ratio, inputs=x)
            return
        result = prune(net, L1(), ratio, inputs=x)
    torch.testing.assert_close(result.model(x), masked_by(net, result.plan, x)(x), rtol=1e-8, atol=1e-9)


def test_an_inexact_cut_names_its_reason() -> None:
    with pytest.raises(InexactError) as error:
        remove(HardCoded(), Plan({"one": (0, 1)}, {"one": 8}), torch.randn(2, 3, 4, 4))
    assert error.value.reason.startswith("The units of one cannot be removed (")
    assert str(error.value).startswith(error.value.reason)


def test_what_is_left_alone_can_be_cut_together_and_what_fails_is_named_alone() -> None:
    parts = nn.Sequential(*[HardCoded() for _ in range(3)])
    net = Wired(lambda m, x: sum(part(x) for part in m.parts), parts=parts)
    x = torch.randn(2, 3, 4, 4)
    graph = trace(net, x)
    found = find_inexact(graph, [(group, (0, 1)) for group in graph.groups], x)
    assert found.keys() == {f"parts.{i}.one" for i in range(3)}
    assert all(reason.startswith(f"The units of {root} cannot be removed") for root, reason in found.items())


def test_a_plan_that_removes_part_of_a_unit_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="can only be removed in sets such as 0, 1, 2, 3"):
        remove(net, Plan({"0": (0, 1)}, {"0": 8}), torch.randn(2, 3, 4, 4))
