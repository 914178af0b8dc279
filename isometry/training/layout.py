"""The memory layout of weights and of the state of their optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["channels_last_weights", "with_layout_of"]


@contextlib.contextmanager
def channels_last_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer, lent: dict[Tensor, Tensor]
) -> Iterator[bool]:
    """Lend the weights of a network with 2-D convolutions in the channels-last layout; afterwards each has its own again.

    The state of the optimizer takes the layout of its parameters, and so do gradients. Yields whether there are such
    convolutions.

    Args:
        model: its weights and buffers.
        optimizer: of its parameters.
        lent: where they lay when lent before, {tensor: its memory}; a tensor is lent in the same memory every time, which a CUDA
            graph relies on. Empty at first.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        yield False
        return
    layouts = {tensor: tensor.stride() for tensor in (*model.parameters(), *model.buffers()) if tensor.ndim == 4}
    for tensor in layouts:
        place = lent.get(tensor)
        if place is None or (place.shape, place.dtype, place.device) != (tensor.shape, tensor.dtype, tensor.device):
            lent[tensor] = tensor.data = tensor.data.to(memory_format=torch.channels_last)
        elif place.data_ptr() != tensor.data_ptr():
            tensor.data = place.copy_(tensor.data)
    _follow(optimizer)
    try:
        yield True
    finally:
        for tensor, strides in layouts.items():
            if tensor.stride() != strides:
                tensor.data = _strided(tensor.data, strides)
                if tensor.grad is not None:
                    tensor.grad = with_layout_of(tensor, tensor.grad)
        _follow(optimizer)


def _strided(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return a copy of a tensor with these strides where they cover it without gaps, else a contiguous one."""
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    whole = copy.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return (copy if whole else torch.empty_like(tensor, memory_format=torch.contiguous_format)).copy_(tensor)


def _follow(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the layout of its parameters."""
    for p, entries in optimizer.state.items():
        entries |= {key: with_layout_of(p, value) for key, value in entries.items()}


def with_layout_of(parameter: Tensor, value: Any) -> Any:
    """Return a state tensor of a parameter's shape in that parameter's memory layout; any other value as it is.

    Fused kernels read parameters and state in the order of memory, which must therefore be the same.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
