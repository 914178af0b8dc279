"""Control variates: what runs of Golub-Kahan say about further probes, which then take one product each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.spectra.golub_kahan import Bidiagonal

__all__ = ["Controlled"]

_INDEPENDENT = 1e-3  # eigenvalue of a Gram matrix of unit vectors below which a direction adds nothing

_ENLARGED = 1.25
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Controlled:
    """The mean singular value from P runs of k steps, and from further probes v of one product Jᵀv (or J v) each.

    With F = (J Jᵀ)^½ in the space of the smaller side, of size r, the mean is tr F / r. A probe's form vᵀFv takes 2k products;
    vᵀ(J Jᵀ)v = ||Jᵀv||² takes one, and the two vary together. So

        mean = average over the runs of vᵀ(F - G)v + tr G / r,  G = F' + c (J Jᵀ - F'²),

    where tr G / r is in turn estimated from all probes, runs and further ones. The slope c makes F - G vary least over the
    spectrum that the runs found, and F' = Y Theta Yᵀ, with the Ritz vectors Y and values Theta of *other* runs of the sample,
    takes out of both what they have seen of the largest values: its trace is known. Probes being independent, the estimate
    has the mean of the runs' forms for any c and Y that do not depend on them; c is found from all runs, so that the bias is of
    the size of its error times that of vᵀ(J Jᵀ)v, second order in 1/r.

    Variances follow from the spectrum, not from the spread of a few probes: sign vectors have Var(vᵀMv) <= 2/(r + 2) times the variance
    of M's eigenvalues. The spectrum is the runs' Gauss nodes, without the share of every Ritz vector that lies in the
    others' Y, where nothing varies any more. They are enlarged by a quarter: c and the expected place in the bracket depend
    on the runs, and Ritz vectors that have not converged hide a part of the spectrum. ||Jᵀv||² is known up to rounding errors of
    the largest value only; they count as a part of its variance, so that c is 0 where what is left is smaller than they are.

    Source: the two levels are those of multilevel Monte Carlo (Giles, Acta Numerica 24, 2015), the low-rank part is that of
    Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA 2021).

    Attributes:
        lower, upper: [B, P] float64, the part of every run's bracket in which its form is expected, less G, plus what of tr G is known.
        level: [B, P], the estimates of the rest of tr G / r from the runs' own vectors.
        variances: ([B], [B]), of one run's `lower` and `upper`, and of one probe's level.
        slope: [B], c.
        values, vectors: [B, d] and [B, d, r], Theta² and Y of all runs together; 0 where there are fewer.
        center: [B], the mean of c J Jᵀ over the rest of the spectrum.
    """

    lower: Tensor
    upper: Tensor
    level: Tensor
    variances: tuple[Tensor, Tensor]
    slope: Tensor
    values: Tensor
    vectors: Tensor
    center: Tensor

    @classmethod
    def of(cls, run: Bidiagonal) -> Controlled:
        """Return what runs [B, P] with their bases say: at least two per sample, else nothing is taken out."""
        assert run.start is not None
        count, size = run.start.shape[1], run.start.shape[-1]
        nodes, weights, own = run.ritz()
        seen = torch.zeros_like(nodes)
        spaces = []
        for p in range(count):
            others = [q for q in range(count) if q != p]
            values, vectors = _joint(run, others) if others else (nodes[:, 0, :1] * 0, own[:, 0, :1] * 0)
            seen[:, p] = (own[:, p] @ vectors.mT).double().square().sum(-1)
            spaces.append((values, vectors))
        free = weights * (1 - seen).clamp(0, 1)
        rounding = run.resolution * nodes.flatten(1).amax(1).square() / size
        slope, centers, variances = _fit(nodes.flatten(1), free.flatten(1) / count, size, rounding)
        lower, upper = run.narrowed()
        squares, less, level = run.alpha[..., 0].square(), torch.zeros_like(lower), torch.zeros_like(lower)
        for p, (values, vectors) in enumerate(spaces):
            start = run.start[:, p : p + 1]
            roots = _traced(values.sqrt(), vectors, start)[:, 0]
            found = _traced(values, vectors, start)[:, 0]
            inside = _traced(torch.ones_like(values), vectors, start)[:, 0]
            less[:, p] = slope * (squares[:, p] + found) - roots + centers[0] * inside
            level[:, p] = slope * (squares[:, p] + found) - centers[1] * inside
        enlarged = tuple(_ENLARGED * variance for variance in variances)
        everything = _joint(run, list(range(count)))
        return cls(lower - less, upper - less, level, (enlarged[0], enlarged[1]), slope, *everything, centers[1])

    def levels(self, probes: Tensor, squares: Tensor) -> Tensor:
        """Return the estimates [B, S] of the rest of tr G / r from further probes [B, S, r], independent of the runs.

        Args:
            probes: vectors of norm 1.
            squares: [B, S], ||Jᵀv||² (or ||J v||²) of each.
        """
        found = _traced(self.values, self.vectors, probes)
        inside = _traced(torch.ones_like(self.values), self.vectors, probes)
        return self.slope[:, None] * (squares.double() + found) - self.center[:, None] * inside

    def ends(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper ends [B] of the mean singular value, given the levels [B, S] of further probes."""
        common = torch.cat([self.level, levels], 1).mean(1)
        return self.lower.mean(1) + common, self.upper.mean(1) + common

    def variance(self, further: int) -> Tensor:
        """Return the variance [B] of `ends` with so many further probes."""
        count = self.lower.shape[1]
        return self.variances[0] / count + self.variances[1] / (count + further)


def _traced(values: Tensor, vectors: Tensor, probes: Tensor) -> Tensor:
    """Return tr M / r - vᵀMv [B, S] for M = Yᵀ diag(values) Y, and probes [B, S, r]."""
    overlaps = (probes @ vectors.mT).double().square()
    lengths = vectors.double().square().sum(-1)  # 1, or 0 where there is no vector
    return (values * lengths).sum(-1, keepdim=True) / probes.shape[-1] - (overlaps * values.unsqueeze(1)).sum(-1)


def _joint(run: Bidiagonal, which: list[int]) -> tuple[Tensor, Tensor]:
    """Return Ritz values [B, d] of AᵀA and orthonormal Ritz vectors [B, d, r] (or 0) in the space of some runs together."""
    assert run.basis is not None
    basis = run.basis[:, which].flatten(1, 2)  # [B, d, r]
    mapped = run.squared()[:, which].flatten(1, 2)
    lengths, turn = torch.linalg.eigh((basis @ basis.mT).double())
    scale = torch.where(lengths > _INDEPENDENT, lengths.clamp_min(_INDEPENDENT).rsqrt(), 0.0)
    turn = (turn * scale.unsqueeze(-2)).mT  # [B, d, d]: rows combine the basis into orthonormal vectors
    inner = turn @ (basis @ mapped.mT).double() @ turn.mT
    values, rotation = torch.linalg.eigh((inner + inner.mT) / 2)
    vectors = (rotation.mT @ turn).to(basis) @ basis
    real = vectors.double().square().sum(-1) > 0.5
    real &= values >= run.resolution * values.amax(-1, keepdim=True)  # the roots of rounding errors are much larger
    return torch.where(real, values.clamp_min(0), 0.0), vectors * real.unsqueeze(-1).to(vectors)


def _fit(
    nodes: Tensor, weights: Tensor, size: int, rounding: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the slope c [B] of s on s² over weighted nodes [B, k], means of s - c s² and of c s², and variances of their forms.

    `rounding` [B] is the standard deviation of rounding errors of a form with s².
    """
    total = weights.sum(1, keepdim=True)
    shares = weights / total.clamp_min(1e-300)
    scale = 2 / (size + 2) * total[:, 0]

    def mean(x: Tensor) -> Tensor:
        return (shares * x).sum(1, keepdim=True)

    squares = nodes.square()
    spread = squares - mean(squares)
    spreads, level = mean(spread.square())[:, 0], mean(squares)[:, 0].square()
    # Equal values, or none left, have no slope but that of rounding errors.
    sloped = (spreads > _ROUNDING * level) & (total[:, 0] > _ROUNDING)
    errors = rounding.square() / scale.clamp_min(1e-300)
    slope = torch.where(sloped, mean(spread * nodes)[:, 0] / (spreads + errors).clamp_min(1e-300), 0.0)
    line = slope[:, None] * squares
    rest = nodes - line
    of_rest, of_line = (scale * mean((x - mean(x)).square())[:, 0] + (slope * rounding).square() for x in (rest, line))
    return slope, (mean(rest)[:, 0], mean(line)[:, 0]), (of_rest, of_line)
