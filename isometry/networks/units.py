"""Which parameter of a layer makes its units."""

from __future__ import annotations

from torch import nn

from isometry.networks.attention import can_lose_heads
from isometry.networks.modules import UNIT_LAYERS, is_transposed

__all__ = ["is_transposed_linear", "unit_weight"]


def unit_weight(layer: nn.Module) -> tuple[str, int] | None:
    """Return the name of the parameter that makes a layer's units and its dimension of units; None for other modules.

    Beside linear layers and convolutions these are a MultiheadAttention, whose units are its rows for queries, keys and
    values, and the transposed linear layer (`Conv1D`) of Hugging Face's GPT-2.
    """
    if isinstance(layer, UNIT_LAYERS):
        return "weight", int(is_transposed(layer))
    if can_lose_heads(layer):
        return "in_proj_weight", 0
    return ("weight", 1) if is_transposed_linear(layer) else None


def is_transposed_linear(layer: nn.Module) -> bool:
    """Whether a module is the linear layer of Hugging Face's GPT-2, whose weight is [inputs, units]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and hasattr(layer, "weight")
