"""Brackets: what a stochastic estimate knows about every sample's mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from isometry.spectra import Estimate, bracketed_half_width, mean_with_error

__all__ = ["Brackets"]


@dataclass(frozen=True, eq=False)
class Brackets:
    """What a stochastic measurement knows about every sample's mean JSV.

    Attributes:
        lower, upper: [B] float64, quadrature bounds averaged over the sample's probes, narrowed to where the limit is
            expected (see `Bidiagonal.narrowed`). Those of calibrated short runs (see `Calibration`) are the bounds of long
            runs on other samples, scaled.
        probe_variance: [B], variance over the sample's probes divided by their number; nan for one probe, 0 where all
            values are known.
        largest_residual: how far a singular value may lie from the largest Ritz value, at most.
        shared: [B], half-width of the 95 % interval of what calibration says of the sample's mean, an error that all
            calibrated samples share; 0 for others.
        probes, steps: [B], of every sample's runs; 0 where all values are known.
    """

    lower: Tensor
    upper: Tensor
    probe_variance: Tensor
    largest_residual: float
    shared: Tensor
    probes: Tensor
    steps: Tensor

    @classmethod
    def exact(cls, means: Tensor) -> Brackets:
        """Return the brackets of samples whose `means` [B] are known."""
        none = torch.zeros_like(means)
        return cls(means, means, none, 0.0, none, none, none)

    @classmethod
    def pool(cls, parts: Sequence[Brackets]) -> Brackets:
        """Concatenate the samples of several brackets."""
        names = (field.name for field in fields(cls) if field.name != "largest_residual")
        pooled = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**pooled, largest_residual=max(part.largest_residual for part in parts))

    @property
    def middle(self) -> Tensor:
        """[B]: the middle of every sample's bracket."""
        return (self.lower + self.upper) / 2

    @property
    def noise(self) -> Tensor:
        """[B]: the variance of every sample's estimate about its mean, from what all samples say about one probe."""
        one = (self.probe_variance * self.probes)[self.probes > 1].mean().nan_to_num()
        return torch.where(self.probes > 0, one / self.probes.clamp_min(1), 0.0)

    @property
    def components(self) -> dict[str, float]:
        """The standard error of `probes`, and the half-widths of `calibration` and `quadrature`, of the mean of these samples."""
        probes = float(self.probe_variance.nanmean() / len(self.lower))  # samples with one probe say nothing of it
        half = float((self.upper - self.lower).mean() / 2)
        return {"probes": math.sqrt(probes), "calibration": float(self.shared.mean()), "quadrature": half}

    @property
    def error(self) -> float:
        """How far the mean of the middles may lie from that of all singular values of these samples, with 95 % confidence."""
        parts = self.components
        deviation = math.hypot(parts["probes"], parts["calibration"] / 1.96)
        ends = torch.tensor([deviation, parts["quadrature"]], dtype=torch.float64)
        return float(bracketed_half_width(ends[0], ends[1]))

    @property
    def estimate(self) -> Estimate:
        """The mean with its error: of samples and probes, and of calibration, which joins them in squares, around the brackets."""
        return mean_with_error(self.middle, self.lower, self.upper, shared=float(self.shared.mean()))
