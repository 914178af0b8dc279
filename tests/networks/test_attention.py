"""An attention that lost heads is torch's own with those heads masked."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from isometry.networks.attention import can_lose_heads, narrow

KEPT = [0, 1, 2, 6, 7, 8]  # of three heads of three entries


def pair(**options: Any) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    full = nn.MultiheadAttention(9, 3, dropout=0.0, **options).double().eval()
    small = copy.deepcopy(full)
    rows = [part * 9 + entry for part in range(3) for entry in KEPT]
    small.in_proj_weight = nn.Parameter(full.in_proj_weight.detach()[rows])
    if full.in_proj_bias is not None:
        nn.init.normal_(full.in_proj_bias)
        small.in_proj_bias = nn.Parameter(full.in_proj_bias.detach()[rows])
    small.out_proj.weight = nn.Parameter(full.out_proj.weight.detach()[:, KEPT])
    narrow(small)
    full.out_proj.weight.data[:, 3:6] = 0
    return full, small


PADDING = torch.tensor([[False, False, True, False], [False, True, True, False]])
CAUSAL = torch.ones(4, 4).triu(1).bool()
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "causal": {"attn_mask": CAUSAL, "need_weights": False},
    "both": {"attn_mask": torch.randn(4, 4).double(), "key_padding_mask": PADDING},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_fewer_heads_are_the_others_masked(options: dict[str, Any], batch_first: bool, bias: bool) -> None:
    full, small = pair(batch_first=batch_first, bias=bias)
    x, y = (torch.randn(2, 4, 9, dtype=torch.float64) for _ in range(2))
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    torch.testing.assert_close(small(x, y, y, **options)[0], full(x, y, y, **options)[0], rtol=1e-10, atol=1e-12)


def test_the_weights_of_the_kept_heads_are_returned() -> None:
    full, small = pair(batch_first=True)
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    weights = small(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, full(x, x, x, average_attn_weights=False)[1][:, [0, 2]])
    torch.testing.assert_close(small(x[0], x[0], x[0])[0], full(x[0], x[0], x[0])[0])


def test_only_an_attention_of_one_width_can_lose_heads() -> None:
    assert can_lose_heads(nn.MultiheadAttention(8, 2))
    assert not can_lose_heads(nn.MultiheadAttention(8, 2, kdim=4))
    assert not can_lose_heads(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert not can_lose_heads(nn.Linear(8, 2))
