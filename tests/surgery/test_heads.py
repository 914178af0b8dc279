"""Attention heads are units: whole heads leave, with their queries, keys and values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry import L1, TPP, Random, prune
from isometry.surgery import trace
from tests.architectures import WORKS
from tests.models import ViT
from tests.references import masked_by

X = torch.randn(3, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Separate or fused projections, with as many keys and values as queries or fewer, and rotary positions or a bias."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads, self.all_head_size, self.num_key_value_heads = (
            kind,
            6,
            24,
            2 if kind == "grouped" else 6,
        )
        if kind == "fused":
            self.qkv = nn.Linear(12, 72)
        else:
            self.q, self.k, self.v = nn.Linear(12, 24), *(nn.Linear(12, 4 * self.num_key_value_heads) for _ in range(2))
        self.out = nn.Linear(24, 12)
        self.bias = nn.Parameter(torch.randn(self.num_heads, 5, 5)) if kind == "bias" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fused":
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kind == "grouped":
            k, v = (y.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for y in (k, v))
        if self.kind == "rotary":
            angles = torch.arange(5)[:, None] / torch.tensor([1.0, 3.0, 1.0, 3.0])
            q, k = (y * angles.cos() + torch.cat([-y[..., 2:], y[..., :2]], -1) * angles.sin() for y in (q, k))
        if self.kind == "by hand":
            y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, self.bias)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.attention, self.head = Attention(kind), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(x)).mean(1))


KINDS = ["separate", "fused", "by hand", "rotary", "bias", "grouped"]


def block(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Block(kind).double().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_heads_leave_exactly(kind: str) -> None:
    net = block(kind)
    (group,) = trace(net, X).groups
    heads = 2 if kind == "grouped" else 6
    assert (group.heads, group.units) == (True, heads)
    result = prune(net, L1(), 0.5, inputs=X)
    attention: Any = result.model.attention
    assert attention.num_heads == 3
    assert attention.num_key_value_heads == heads // 2
    assert attention.all_head_size == attention.out.in_features == 12
    masked = masked_by(net, result.plan, X)
    assert not torch.allclose(masked(X), net(X))
    torch.testing.assert_close(result.model(X), masked(X), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_survive_rounds_and_files(kind: str, tmp_path: Path) -> None:
    net = block(kind)
    first = prune(net, Random(), 1 / 3 if kind != "grouped" else 0.5, inputs=X)
    both = first.then(prune(first.model, L1(), 0.5, inputs=X)) if kind != "grouped" else first
    isometry.save(both, tmp_path / "net.safetensors")
    loaded = isometry.load(tmp_path / "net.safetensors", block(kind), inputs=X)
    assert torch.equal(loaded.model(X), both.model(X))
    assert loaded.model.attention.num_heads == (3 if kind == "grouped" else 2)
    assert loaded.plan == both.plan


def test_the_head_of_the_smallest_weights_leaves() -> None:
    net = block("separate")
    with torch.no_grad():
        for layer in (net.attention.q, net.attention.k, net.attention.v):
            layer.weight[8:12] *= 0.01
    result = prune(net, L1(), 1 / 6, inputs=X)
    assert {layer: units for layer, units in result.plan.removed.items() if units} == {
        f"attention.{name}": (8, 9, 10, 11) for name in "qkv"
    }


def test_kept_heads_are_rounded_up_until_all_widths_are_multiples() -> None:
    removed = prune(block("separate"), L1(), 0.5, inputs=X, round_to=8).plan.removed
    assert {len(units) for layer, units in removed.items() if layer != "head"} == {
        8
    }  # four heads of four entries are kept
    grouped = prune(block("grouped"), L1(), 0.5, inputs=X, round_to=4)
    assert grouped.model.attention.k.out_features == 4


@pytest.mark.parametrize("name", ["vit block", "encoder layer"])
@pytest.mark.filterwarnings("ignore:prune.. leaves alone")
def test_heads_of_torchs_own_attention_leave(name: str, tmp_path: Path) -> None:
    build, shape = WORKS[name]
    torch.manual_seed(0)
    net, x = build().double().eval(), torch.randn(4, *shape, dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    masked = masked_by(net, result.plan, x)
    torch.testing.assert_close(result.model(x), masked(x), rtol=1e-9, atol=1e-11)
    with torch.no_grad():  # where torch would take its fused path
        torch.testing.assert_close(result.model(x), masked(x), rtol=1e-9, atol=1e-11)
    assert [m.num_heads for m in result.model.modules() if isinstance(m, nn.MultiheadAttention)] == [1]
    isometry.save(result, tmp_path / "net.safetensors")
    assert torch.equal(isometry.load(tmp_path / "net.safetensors", net, inputs=x).model(x), result.model(x))


def test_pruners_that_train_leave_torchs_attention_alone_and_say_so() -> None:
    x, y = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    with pytest.warns(
        UserWarning, match=r"TPP regularizes linear layers and convolutions only, not blocks\.0\.attention"
    ):
        result = prune(ViT(), TPP(delta=0.5, interval=1, stabilize=4, zero_out=None, batch_size=32), 0.5, data=(x, y))
    assert result.model.blocks[0].attention.num_heads == 3
    assert result.model.blocks[0].mlp[0].out_features == 10


def test_one_head_alone_stays() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 1, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3)).eval()
    result = prune(net, L1(), 0.5, inputs=torch.randn(2, 5, 8))
    assert "contracted" in result.left_alone["0.self_attn"]
