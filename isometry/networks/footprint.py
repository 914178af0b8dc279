"""The footprint of a network: parameters, FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isometry.data.nests import first_samples
from isometry.networks.modules import call, clone
from isometry.networks.preservation import random_states_of
from isometry.networks.shapes import placed

__all__ = ["Size", "size"]


@dataclass(frozen=True)
class Size:
    """Footprint of a network.

    Attributes:
        parameters: how many there are.
        flops: floating point operations of one sample's forward pass, two per multiply-add.
        bytes: memory of all parameters and buffers.
    """

    parameters: int
    flops: int
    bytes: int


def size(model: nn.Module, inputs: Any) -> Size:
    """Return the footprint of a network, which is left alone.

    Args:
        model: any network.
        inputs: [B, ...], or a tuple or dict of the network's arguments; FLOPs are counted on the first sample.
    """
    # On a copy, because the forward pass may change buffers; with gradients and plain attention, because FLOPs in fused
    # kernels are not counted.
    copy = clone(model).requires_grad_(True).eval()
    inputs = placed(inputs, model)
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), random_states_of(model), counter:
        call(copy, first_samples(inputs, 1))
    tensors = [*model.parameters(), *model.buffers()]
    return Size(
        sum(p.numel() for p in model.parameters()),
        counter.get_total_flops(),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
