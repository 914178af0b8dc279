"""Maps of any size all of whose singular values are known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from isometry.spectra.convolution import circular
from isometry.spectra.laws.law import Discrete, check_positive

__all__ = ["CircularConvolution", "Isometry", "NormLaw"]


@dataclass(frozen=True)
class Isometry(Discrete):
    """All singular values equal `scale`: products of orthogonal layers of gain g have scale g^L at any width.

    Likewise convolutions whose only nonzero tap is orthogonal (delta-orthogonal), with stride 1.

    Source: Saxe et al., ICLR 2014 (arXiv 1312.6120); Xiao et al., ICML 2018 (arXiv 1806.05393).
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "Isometry(1.0)", scale=self.scale)

    @property
    def atoms(self) -> dict[float, float]:
        """All values equal `scale`."""
        return {self.scale: 1.0}


@dataclass(frozen=True)
class NormLaw(Discrete):
    """LayerNorm (scale 1, epsilon 0) of width n at an input of standard deviation `spread`: values 1/spread and 0.

    LayerNorm is constant along two directions, the mean and the length; RMSNorm along the length alone. Exact at any
    width.

    Attributes:
        width: n.
        spread: the population standard deviation of the input (LayerNorm), its root mean square (RMSNorm).
        lost: number of directions of singular value 0, 2 for LayerNorm and 1 for RMSNorm.
    """

    width: int
    spread: float
    lost: int = 2

    def __post_init__(self) -> None:
        check_positive(self, "NormLaw(256, spread=1.0)", width=self.width - self.lost, spread=self.spread)

    @property
    def atoms(self) -> dict[float, float]:
        """0 for the lost directions, 1 / spread for all others."""
        return {0.0: self.lost / self.width, 1 / self.spread: 1 - self.lost / self.width}


@dataclass(frozen=True, eq=False)
class CircularConvolution(Discrete):
    """A convolution with circular padding: the union over frequencies of the singular values of its Fourier transform.

    Attributes:
        kernel: [C_out, C_in, *k].
        size: spatial size of the input, one number per dimension.
        stride: one number per dimension, each of which divides its size; None means 1.

    Source: Sedghi, Gupta & Long, ICLR 2019 (arXiv 1805.10408).
    """

    kernel: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @cached_property
    def atoms(self) -> dict[float, float]:
        """Every singular value with its share; values that differ by rounding errors only are one."""
        values = circular(self.kernel, self.size, self.stride).flip(0).cpu().numpy()
        starts = np.flatnonzero(np.append(True, np.diff(values) > 1e-9 * values[-1]))
        counts = np.diff(np.append(starts, len(values)))
        return dict(zip(values[starts].tolist(), (counts / len(values)).tolist(), strict=True))
