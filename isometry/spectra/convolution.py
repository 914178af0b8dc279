"""Convolutions as linear operators on images, and their exact spectrum under circular padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isometry.spectra.operator import Operator

__all__ = ["Convolution", "circular"]


class Convolution(Operator):
    """The map of a 1-D, 2-D or 3-D convolution without bias on inputs of one size; zero padding, one map (B = 1).

    Args:
        kernel: [C_out, C_in / groups, *k].
        size: spatial size of the input, one number per dimension.
        stride, padding, dilation: one number per dimension.
        groups: channel groups.
    """

    def __init__(
        self,
        kernel: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
    ) -> None:
        self.kernel, self.size = kernel, tuple(size)
        self.options: dict[str, Any] = {
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
        }
        dims = len(self.size)
        self._apply = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        self._transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        self.channels = kernel.shape[1] * groups
        with torch.no_grad():
            probe = self._apply(kernel.new_zeros(1, self.channels, *self.size), kernel, **self.options)
        self.out_size = tuple(probe.shape[2:])
        self.batch, self.rows, self.columns = 1, probe.numel(), self.channels * probe.new_empty(self.size).numel()
        self.dtype, self.device = kernel.dtype, kernel.device
        covered = [
            (o - 1) * s - 2 * p + d * (k - 1) + 1
            for o, s, p, d, k in zip(self.out_size, stride, padding, dilation, kernel.shape[2:], strict=True)
        ]
        self._rest = tuple(n - c for n, c in zip(self.size, covered, strict=True))

    def matvec(self, v: Tensor) -> Tensor:
        """Apply the convolution: [1, k, C_in * size] -> [1, k, C_out * out_size]."""
        self.products += v.shape[1]
        return self._apply(v[0].view(-1, self.channels, *self.size), self.kernel, **self.options).flatten(1)[None]

    def rmatvec(self, u: Tensor) -> Tensor:
        """Apply its adjoint, the transposed convolution: [1, k, C_out * out_size] -> [1, k, C_in * size]."""
        self.products += u.shape[1]
        images = u[0].view(-1, self.kernel.shape[0], *self.out_size)
        return self._transpose(images, self.kernel, output_padding=self._rest, **self.options).flatten(1)[None]


def circular(kernel: Tensor, size: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    """Return all singular values of a circularly padded convolution, descending, float64.

    At stride 1 they are the union over frequencies f of the singular values of K(f) [C_out, C_in], the kernel's Fourier
    transform. With a stride, the m frequencies that coincide after subsampling form one matrix
    [K(f_1), ..., K(f_m)] / sqrt(m).

    Args:
        kernel: [C_out, C_in, *k].
        size: spatial size of the input; each must be a multiple of its stride.
        stride: one number per dimension; None means 1.

    Raises:
        ValueError: a size that its stride does not divide.

    Source: Sedghi, Gupta & Long, ICLR 2019 (arXiv 1805.10408) for stride 1.
    """
    dims = list(range(2, kernel.ndim))
    strides = list(stride) if stride is not None else [1] * len(dims)
    if any(n % s for n, s in zip(size, strides, strict=True)):
        raise ValueError(
            f"circular() got the input size {tuple(size)} and stride {tuple(strides)}; each stride must divide its size, "
            "e.g. circular(kernel, (8, 8), (2, 2))."
        )
    transform = torch.fft.fftn(_wrapped(kernel.double(), size), dim=dims)
    # Frequencies f and f + out_size coincide: split each axis n into (s, n / s) and put the s copies side by side.
    shape = [kernel.shape[0], kernel.shape[1]]
    for n, s in zip(size, strides, strict=True):
        shape += [s, n // s]
    folded = transform.reshape(shape)
    aliases, frequencies = list(range(2, folded.ndim, 2)), list(range(3, folded.ndim, 2))
    stacked = folded.permute(*frequencies, 0, 1, *aliases).flatten(-1 - len(aliases))
    count = 1
    for s in strides:
        count *= s
    return torch.linalg.svdvals(stacked / count**0.5).flatten().sort(descending=True).values


def _wrapped(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Return the kernel, padded to the image's size; where it is larger, entries that wrap to one place are added."""
    for dim, n in enumerate(size, start=2):
        width = kernel.shape[dim]
        whole = kernel.new_zeros(*kernel.shape[:dim], -(-width // n) * n, *kernel.shape[dim + 1 :])
        whole.narrow(dim, 0, width).copy_(kernel)
        kernel = whole.unflatten(dim, (-1, n)).sum(dim)
    return kernel
