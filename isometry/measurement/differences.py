"""Finite differences: derivatives of functions that autograd cannot differentiate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["central_difference", "jacobian_by_differences"]


@torch.no_grad()
def central_difference(function: Callable[[Tensor], Tensor], inputs: Tensor, direction: Tensor) -> Tensor:
    """Return the derivative of `function` at `inputs` along `direction`, sample by sample: [B, *outputs].

    The relative error is about eps^(2/3), 2e-5 in float32.

    Args:
        function: [B, ...] -> [B, *outputs].
        inputs: [B, ...].
        direction: [B, ...].
    """
    samples = len(inputs)
    # One step length per sample, relative to the size of inputs and direction.
    input_size, size = (x.reshape(samples, -1).abs().amax(1) for x in (inputs, direction))
    step = torch.finfo(inputs.dtype).eps ** (1 / 3) * (input_size + 1) / size.clamp_min(1e-30)
    offset = step.reshape(-1, *[1] * (inputs.ndim - 1)) * direction
    above, below = function(inputs + offset), function(inputs - offset)
    return (above - below) / (2 * step.reshape(-1, *[1] * (above.ndim - 1)).to(above))


def jacobian_by_differences(function: Callable[[Tensor], Tensor], inputs: Tensor, rows: int) -> Tensor:
    """Return J [B, m, n], column by column; `rows` is m."""
    samples, width = len(inputs), inputs[0].numel()
    jacobian = torch.empty(samples, rows, width, dtype=inputs.dtype, device=inputs.device)
    unit = torch.zeros_like(inputs, memory_format=torch.contiguous_format)
    for column in range(width):
        unit.view(samples, -1)[:, column] = 1
        jacobian[..., column] = central_difference(function, inputs, unit).reshape(samples, -1)
        unit.view(samples, -1)[:, column] = 0
    return jacobian
