"""Attention with fewer heads than its width has room for: what is left of a MultiheadAttention that lost heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NarrowAttention", "can_lose_heads", "narrow"]


class NarrowAttention(nn.MultiheadAttention):
    """A `torch.nn.MultiheadAttention` whose heads together are narrower than its inputs.

    `in_proj_weight` is [3 H d, E] and `out_proj.weight` [E, H d] with H heads of d entries each and H d < E, which torch's
    own class does not admit. Arguments, results and the names of the parameters are those of torch's class.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `torch.nn.MultiheadAttention.forward`."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        attention: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            attention = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            heads = attention @ v
            attention = attention.mean(1) if average_attn_weights else attention
            attention = attention if batched else attention.squeeze(0)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        outputs = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return outputs.squeeze(0), attention
        return (outputs if self.batch_first else outputs.transpose(0, 1)), attention

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, broadcastable to [B, heads, L, S]; None where nothing is."""
        added = None
        if attn_mask is not None:
            added = _to_added(attn_mask, q.dtype)
            added = added.view(len(q), self.num_heads, *added.shape[1:]) if added.ndim == 3 else added
        if padding is not None:
            ignored = _to_added(padding, q.dtype).view(len(k), 1, 1, -1)
            added = ignored if added is None else added + ignored
        return added


def _to_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask that is added to scores, from one that is or from flags of what is to be ignored."""
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def can_lose_heads(module: nn.Module) -> bool:
    """Whether heads can be removed from a module: a MultiheadAttention with one width for queries, keys and values."""
    return (
        type(module) in (nn.MultiheadAttention, NarrowAttention)
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def narrow(module: nn.MultiheadAttention) -> None:
    """Make an attention whose weights have been cut work with the heads that they hold, in place."""
    module.num_heads = len(module.in_proj_weight) // (3 * module.head_dim)
    module._qkv_same_embed_dim = False  # keeps torch's encoder layers from their fused path, which reads the weights
    module.__class__ = NarrowAttention
