"""Units are followed through what the network decides by them, through buffers, and through what only training reaches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import L1, prune
from isometry.surgery import trace
from tests.models import Wired

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FAR = 30 * torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def through(operation: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = {"one": nn.Linear(6, 8), "two": nn.Linear(8, 6), "head": nn.Linear(6, 2), **modules}
    return Wired(lambda m, x: m.head(m.two(operation(m, m.one(x))).relu()), **layers).double()


@torch.no_grad()
def zeroed(net: nn.Module, name: str, removed: tuple[int, ...], x: Tensor) -> Tensor:
    """The outputs with some units of a layer forced to zero."""

    def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result.index_fill(-1, torch.tensor(removed), 0)

    with net.get_submodule(name).register_forward_hook(hook):
        return net(x)


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        (lambda m, y: torch.where(y.mean(1, keepdim=True) > -9, y, -y), "mean"),
        (lambda m, y: y * (y.amax(1, keepdim=True) < 9).double(), "amax"),
        (lambda m, y: y * ((y > 9).sum(1, keepdim=True) + 1), "sum"),
        (lambda m, y: y * torch.bucketize(y, torch.tensor([-9.0, 9.0]).double()), "bucketize"),
        (lambda m, y: y + m.table(y.argmax(1)), "argmax"),
    ],
    ids=["where", "cast", "count", "unknown", "index"],
)
def test_units_that_a_mask_or_index_is_taken_over_stay_together(
    operation: Callable[[Any, Tensor], Tensor], what: str
) -> None:
    net = through(operation, table=nn.Embedding(8, 8))
    graph = trace(net, X)
    assert "one" not in {layer for group in graph.groups for layer in group.layers}
    assert f"the network takes the {what} over its units" in graph.fixed["one"]


def test_a_mask_unit_by_unit_leaves_them_free() -> None:
    net = through(lambda m, y: torch.where(y > 0, y, torch.zeros_like(y)) + y * (y < -1))
    result = prune(net, L1(), {"one": 0.5}, inputs=X)
    expected = zeroed(net, "one", result.plan.removed["one"], FAR)
    assert len(result.plan.removed["one"]) == 4
    torch.testing.assert_close(result.model(FAR), expected, rtol=1e-9, atol=1e-9)


def test_a_tensor_of_the_same_kind_ties_nothing() -> None:
    net = through(lambda m, y: y + y.new_zeros(len(y), 1) + y.new_full((1,), 0.0) * y.new_ones(len(y), 1))
    assert {group.root: group.units for group in trace(net, X).groups} == {"one": 8, "two": 6}


def test_units_behind_whole_numbers_that_the_network_returns_are_outputs() -> None:
    net = Wired(lambda m, x: (m.head(m.one(x)), m.one(x) > 0), one=nn.Linear(6, 8), head=nn.Linear(8, 2))
    assert trace(net, X.float()).fixed["one"] == "its units are outputs of the network"


def test_a_buffer_that_reads_units_is_cut() -> None:
    basis = nn.Module()
    basis.register_buffer("rows", torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    net = through(lambda m, y: F.linear(y, m.basis.rows), basis=basis)
    result = prune(net, L1(), {"one": 0.5}, inputs=X)
    assert result.model.basis.rows.shape == (8, 4)
    expected = zeroed(net, "one", result.plan.removed["one"], FAR)
    torch.testing.assert_close(result.model(FAR), expected, rtol=1e-9, atol=1e-9)


def test_a_head_that_only_training_reaches_fits_what_it_reads() -> None:
    net = through(lambda m, y: m.state.update(y=m.aux(y)) or y if m.training else y, aux=nn.Linear(8, 2)).train()
    net.state = {}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = prune(net, L1(), {"one": 0.5}, inputs=X)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert result.model.train()(X).shape == (3, 2)
    assert result.model.aux.in_features == 4
    assert result.left_alone["aux"] == "the forward pass does not reach it as a module"


def test_training_that_asks_for_more_than_inputs_is_not_followed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.training:
            raise KeyError("targets")
        return m.head(m.one(x))

    net = Wired(forward, one=nn.Linear(6, 8), head=nn.Linear(8, 2), loss=nn.Linear(8, 2))
    assert [group.root for group in trace(net.train(), X.float()).groups] == ["one"]


def test_complex_layers_are_named() -> None:
    net = Wired(
        lambda m, x: m.head(m.mixed(torch.complex(m.one(x), x)).abs()),
        one=nn.Linear(6, 6),
        mixed=nn.Linear(6, 8, dtype=torch.cfloat),
        head=nn.Linear(8, 2),
    )
    fixed = trace(net, X.float()).fixed
    assert fixed["mixed"] == "its weights are complex"
    assert "complex" in fixed["one"]


def test_an_instance_norm_without_weights_has_as_many_channels_as_are_kept() -> None:
    net = Wired(
        lambda m, x: m.head(m.two(m.norm(m.one(x))).mean(2)),
        one=nn.Conv1d(1, 8, 3),
        norm=nn.InstanceNorm1d(8),
        two=nn.Conv1d(8, 4, 1),
        head=nn.Linear(4, 2),
    ).double()
    result = prune(net, L1(), {"one": 0.5}, inputs=X[:, None])  # torch warns of channels that do not match
    assert result.model.norm.num_features == 4
    assert net.norm.num_features == 8
    removed = list(result.plan.removed["one"])
    with net.one.register_forward_hook(lambda module, args, y: y.index_fill(1, torch.tensor(removed), 0)):
        torch.testing.assert_close(result.model(FAR[:, None]), net(FAR[:, None]), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_activations_are_followed() -> None:
    net = through(lambda m, y: m.act(y), act=torch.jit.script(nn.ReLU()))
    assert [group.root for group in trace(net, X).groups] == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_layers_are_refused_by_name() -> None:
    net = through(lambda m, y: m.inner(y), inner=torch.jit.script(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match=r"prune\(\) got inner compiled by torch.jit"):
        prune(net, L1(), 0.5, inputs=X)


@pytest.mark.parametrize(
    "operation",
    [
        lambda m, y: m.norm(y) / y.shape[1],
        lambda m, y: m.norm(y).view(len(y), 4, -1).transpose(1, 2).flatten(1),
    ],
    ids=["width", "order"],
)
@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(1, 8)], ids=["layer", "group"])
def test_a_cut_behind_a_normalization_is_compared_too(operation: Any, norm: nn.Module) -> None:
    net = through(operation, norm=norm)
    with pytest.warns(UserWarning, match="leaves alone what cannot be cut exactly"):
        result = prune(net, L1(), 0.5, inputs=X)
    assert "differs from the masked one" in result.left_alone["one"]


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)], ids=["layer", "group"])
def test_what_is_kept_of_normalized_units_is_normalized_alone(norm: nn.Module) -> None:
    net = through(lambda m, y: m.norm(y), norm=norm)
    result = prune(net, L1(), {"one": 0.5}, inputs=X)
    kept = list(result.plan.kept("one"))
    y = net.one(FAR)[:, kept]
    y = F.layer_norm(y, (4,)) if isinstance(norm, nn.LayerNorm) else F.group_norm(y, 2)
    expected = net.head(F.linear(y, net.two.weight[:, kept], net.two.bias).relu())
    torch.testing.assert_close(result.model(FAR), expected, rtol=1e-9, atol=1e-9)
    assert result.inexact == ("norm",)
