"""Least squares for the weight of one layer: its input patches, their Gram matrix, the ridge problem on its support."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NormalEquations", "draw_positions", "output_samples", "patches"]


def draw_positions(layer: nn.Module, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` random positions (pixels, tokens) of every sample of a layer's output, each once: [B, P].

    All positions where there are no more than `count`.
    """
    places = (output.shape[1:-1] if isinstance(layer, nn.Linear) else output.shape[2:]).numel()
    if places <= count:
        return torch.arange(places).expand(len(output), places)
    return torch.rand(len(output), places, generator=generator).topk(count, 1).indices


def output_samples(layer: nn.Module, output: Tensor, positions: Tensor) -> Tensor:
    """Return a layer's output, or a tensor of its shape, at positions [B, P], as a matrix [B P, units]."""
    positions = positions.to(output.device)
    if isinstance(layer, nn.Linear):
        tokens = output.reshape(len(output), -1, output.shape[-1])
        return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2])).flatten(0, 1)
    pixels = output.flatten(2)
    return pixels.gather(2, positions[:, None].expand(-1, pixels.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def patches(layer: Any, inputs: Tensor, output_shape: torch.Size, positions: Tensor) -> Tensor:
    """Return what a layer reads at positions [B, P] of its output: [groups, B P, D], D as in a row of its weight."""
    if isinstance(layer, nn.Linear):
        return output_samples(layer, inputs, positions)[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    corners = torch.unravel_index(positions.to(inputs.device), output_shape[1:])
    kernel = zip(layer.kernel_size, layer.dilation, strict=True)
    offsets = itertools.product(*(range(0, size * step, step) for size, step in kernel))
    index = torch.stack([_flat_index(layer, corners, offset, padded.shape[2:]) for offset in offsets], 2)  # [B, P, K]
    flat = padded.flatten(2)
    read = flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
    read = read.unflatten(2, index.shape[1:]).unflatten(1, (layer.groups, -1))  # [B, G, C, P, K]
    return read.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)


def _flat_index(layer: Any, corners: tuple[Tensor, ...], offset: tuple[int, ...], shape: torch.Size) -> Tensor:
    """Return the index [B, P], in the flattened padded input, of one element of the kernel."""
    index = torch.zeros_like(corners[0])
    for corner, shift, stride, size in zip(corners, offset, layer.stride, shape, strict=True):
        index = index * size + corner * stride + shift
    return index


class NormalEquations:
    """Sums over samples of inputs u [D] and targets t [rows] of the least-squares problem W u = t, for every group.

    Everything is float64, so that sums of moments may be centered afterwards.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add samples: inputs [G, n, D], targets [n, G rows]."""
        u = inputs.double()
        t = targets.double().unflatten(1, (len(u), -1)).transpose(0, 1)
        terms = (u.sum(1), t.sum(1), u.mT @ u, t.mT @ u)
        self.sums = tuple(a + b for a, b in zip(self.sums, terms, strict=True)) if self.sums else terms
        self.count += inputs.shape[1]

    @property
    def nonfinite(self) -> str | None:
        """What holds NaN or infinite values: "inputs", "targets" or None."""
        sums = zip(("inputs", "targets"), self.sums[:2], strict=True)
        return next((name for name, total in sums if not bool(torch.isfinite(total).all())), None)

    def solve(self, start: Tensor, ridge: float, *, centered: bool) -> tuple[Tensor, Tensor]:
        """Return weights [G, rows, D] and constants [G rows] that minimize |W u + c - t|² + lambda |W - start|².

        lambda is `ridge` times the mean diagonal of the Gram matrix. Weights that are exactly 0 in `start` stay 0.

        Args:
            start: [G, rows, D].
            ridge: not negative; with 0 a singular problem has the solution nearest to `start`.
            centered: whether there is a constant c; 0 where there is none.
        """
        u, t, gram, cross = (total / self.count for total in self.sums)
        weight = start.double()
        if centered:
            gram = gram - u[:, :, None] * u[:, None]
            cross = cross - t[:, :, None] * u[:, None]
        else:
            t = u = torch.zeros_like(u[:, :1])
        residual = cross - weight @ gram
        strength = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        weight = weight + torch.stack(
            [_step(g, r, w != 0, float(s)) for g, r, w, s in zip(gram, residual, start, strength, strict=True)]
        )
        if not centered:
            return weight, torch.zeros(weight.shape[0] * weight.shape[1], dtype=weight.dtype, device=weight.device)
        return weight, (t - (weight @ u[:, :, None])[:, :, 0]).flatten()


def _step(gram: Tensor, residual: Tensor, support: Tensor, strength: float) -> Tensor:
    """Return the step [rows, D] that solves (gram + strength I) step = residual on the support of every row."""
    if bool(support.all()):
        return _solve(gram, residual, strength)
    step = torch.zeros_like(residual)
    kinds, kind_of_row = torch.unique(support, dim=0, return_inverse=True)
    for kind, chosen in enumerate(kinds):
        rows, columns = (kind_of_row == kind).nonzero()[:, 0], chosen.nonzero()[:, 0]
        if len(columns):
            part = _solve(gram[columns][:, columns], residual[rows][:, columns], strength)
            step[rows[:, None], columns] = part
    return step


def _solve(gram: Tensor, residual: Tensor, strength: float) -> Tensor:
    matrix = gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(matrix)
    # Inputs that are constant, or linear combinations of others, may leave it singular where the ridge is small.
    smallest = factor.diagonal().min() if int(info) == 0 else torch.zeros(())
    if float(smallest) <= 1e-7 * float(matrix.diagonal().max().clamp_min(0).sqrt()):
        return residual @ torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)
    return torch.cholesky_solve(residual.mT, factor).mT
