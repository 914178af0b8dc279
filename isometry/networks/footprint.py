"""What a network weighs: parameters, FLOPs and bytes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isometry.networks.shapes import placed

__all__ = ["Size", "size"]


@dataclass(frozen=True)
class Size:
    """What a network weighs: parameters (count), FLOPs of one sample's forward pass (2 a multiply-add), bytes."""

    parameters: int
    flops: int
    bytes: int


def size(model: nn.Module, inputs: Tensor) -> Size:
    """Return the `Size` of a network; FLOPs are counted on the first of `inputs` [B, ...]."""
    # A copy, for the forward pass may count; with gradients and plain attention, for fused kernels hide their FLOPs.
    twin = copy.deepcopy(model).requires_grad_(True).eval()
    inputs = placed(inputs, model)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(inputs[:1])
    tensors = [*model.parameters(), *model.buffers()]
    return Size(
        sum(p.numel() for p in model.parameters()),
        counter.get_total_flops(),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
