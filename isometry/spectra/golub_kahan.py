"""Golub-Kahan bidiagonalization: lower and upper bounds of the mean singular value, and Ritz values for the extremes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isometry.spectra.operator import Operator
from isometry.spectra.spectrum import Spectrum

__all__ = ["Bidiagonal", "bidiagonalize", "probes"]

_MIN_STEPS = 4
_NARROWED_FROM = 4


def probes(batch: int, count: int, size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return random sign vectors of norm 1, [batch, count, size]; their quadratic form is exact at isometry.

    Every sample has its own probes, so that probe errors are independent between samples.

    Args:
        batch: number of samples.
        count: probes per sample.
        size: length of a probe.
        generator: on the CPU, of the signs.
        like: a tensor of the wanted dtype and device.
    """
    bits = torch.randint(0, 2, (batch, count, size), generator=generator)
    return (2 * bits.double() - 1).div_(size**0.5).to(like)


@dataclass
class Bidiagonal:
    """k steps of Golub-Kahan for B x P starting vectors: A V = U B with B upper bidiagonal.

    A is J or Jᵀ, whichever has at least as many rows as columns.

    Attributes:
        alpha: [B, P, k] float64, the diagonal of B.
        beta: [B, P, k - 1] float64, above it.
        residual: [B, P] float64, the next beta; 0 where the vectors span an invariant subspace, so that the result is
            exact.
        products: the number of products with J or Jᵀ per starting vector.
        start: [B, P, r], the starting vectors; None where they were not kept.
        basis: [B, P, k, r], the columns of V; likewise.
        following: [B, P, r], the next column of V, 0 where the run has ended; likewise.
        resolution: size of rounding errors, as a share of the largest value.
    """

    alpha: Tensor
    beta: Tensor
    residual: Tensor
    products: int
    start: Tensor | None = None
    basis: Tensor | None = None
    following: Tensor | None = None
    resolution: float = 0.0

    def _matrix(self) -> Tensor:
        matrix = torch.diag_embed(self.alpha)
        if self.beta.shape[-1]:
            matrix += torch.diag_embed(self.beta, offset=1)
        return matrix

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return nodes and weights of Gauss quadrature, [B, P, k] each: sum of weight x f(node) ~ vᵀ f((AᵀA)^½) v."""
        _, values, vh = torch.linalg.svd(self._matrix())
        return values, vh[..., :, 0].square()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values and their weights, [B, P, k] each, and the Ritz vectors [B, P, k, r] of AᵀA, 0 where a run has ended."""
        assert self.basis is not None
        _, values, vh = torch.linalg.svd(self._matrix())
        return values, vh[..., :, 0].square(), vh.to(self.basis) @ self.basis

    def squared(self) -> Tensor:
        """Return AᵀA V [B, P, k, r], by the recursion: no further products."""
        assert self.basis is not None
        assert self.following is not None
        matrix = self._matrix()
        mapped = (matrix.mT @ matrix).to(self.basis) @ self.basis
        last = (self.alpha[..., -1] * self.residual).to(self.basis)
        mapped[..., -1, :] += last.unsqueeze(-1) * self.following
        return mapped

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds [B, P] of vᵀ (AᵀA)^½ v, from Gauss-Radau with a node at 0 and from Gauss quadrature.

        The derivatives of the square root alternate in sign, so that Gauss quadrature is an upper bound, and Gauss-Radau
        with a node at the left end a lower bound. The latter needs no further steps: it is that of k rows of B and k + 1
        columns, the last of which holds the residual.
        """
        matrix = self._matrix()
        values, weights = self.nodes()
        upper = (values * weights).sum(-1)
        last = torch.zeros_like(self.alpha).unsqueeze(-1)
        last[..., -1, 0] = self.residual
        _, values, vh = torch.linalg.svd(torch.cat([matrix, last], -1), full_matrices=False)
        lower = (values * vh[..., :, 0].square()).sum(-1)
        return torch.where(self.residual > 0, lower, upper), upper

    def narrowed(self) -> tuple[Tensor, Tensor]:
        """Return the part [B, P] of the bracket in which vᵀ (AᵀA)^½ v is expected, by how the ends have been closing in.

        From k/2 to k steps the ends moved by shares p and 1 - p of what the bracket lost in width. Were they to go on like
        that, the limit would lie at the share p of what is left of it. As p itself changes, by d since k/4 steps, the
        limit is expected at p + d/2 of the width, give or take 1.5 |d| + 0.1 + 0.6/k, inside the bracket. Shares are
        those of the means over a sample's probes. The bracket itself is returned for fewer than four steps.

        This is no certificate, unlike `bracket`. The constants were chosen on spectra of 1,000 values of many kinds (products
        of Gaussian and of gated layers, residual, masked, lognormal, power laws, with zeros, six networks); the tests hold it
        for others. Outside lie some samples of values like 1/i, whose probes see the first few by chance.
        """
        lower, upper = self.bracket()
        steps = self.alpha.shape[-1]
        if steps < _NARROWED_FROM:
            return lower, upper
        ends = [self.first(steps // share).bracket() for share in (4, 2)] + [(lower, upper)]
        shares = []
        for (low, high), (next_low, next_high) in itertools.pairwise(ends):
            rise, fall = (next_low - low).mean(1, keepdim=True), (high - next_high).mean(1, keepdim=True)
            shares.append(torch.where(rise + fall > 0, rise / (rise + fall), 0.5).clamp(0, 1))
        drift = shares[1] - shares[0]
        center, reach = shares[1] + drift / 2, 1.5 * drift.abs() + 0.1 + 0.6 / steps
        width = upper - lower
        return lower + (center - reach).clamp(0, 1) * width, lower + (center + reach).clamp(0, 1) * width

    def correction(self) -> Tensor:
        """Return what to add to every probe's vᵀ (AᵀA)^½ v, [B, P], to take out of it the chance of hitting large values.

        A probe's quadratic form with a matrix F of small rank, its trace known, is a control variate: r vᵀ F v has the mean
        tr F. Here F = Y (Theta - c) Yᵀ with the Ritz vectors Y and values Theta of another probe of the same sample, c being
        that probe's own estimate. It is independent of v, so that the corrected estimate has the same mean, and its
        variance is that of what Y does not see. At isometry Theta = c, and nothing changes. 0 where there is one probe.

        Source: the low-rank part of Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA 2021), taken from the runs themselves.
        """
        assert self.start is not None
        if self.alpha.shape[1] < 2:
            return torch.zeros_like(self.residual)
        values, shares, vectors = self.ritz()
        center = (values * shares).sum(-1, keepdim=True)
        weights = torch.where(vectors.norm(dim=-1) > 0.5, values - center, 0.0)  # runs that ended early have no more
        weights, vectors = weights.roll(-1, 1), vectors.roll(-1, 1)
        overlaps = (vectors @ self.start.unsqueeze(-1)).squeeze(-1).double().square()
        return (weights * (1 / self.start.shape[-1] - overlaps)).sum(-1)

    def first(self, steps: int) -> Bidiagonal:
        """Return the result after the first `steps` steps, at least one."""
        steps = max(steps, 1)
        if steps >= self.alpha.shape[-1]:
            return self
        return replace(
            self,
            alpha=self.alpha[..., :steps],
            beta=self.beta[..., : steps - 1],
            residual=self.beta[..., steps - 1],
            products=2 * steps,
            basis=None if self.basis is None else self.basis[:, :, :steps],
            following=None if self.basis is None else self.basis[:, :, steps],
        )

    def joined(self, other: Bidiagonal) -> Bidiagonal:
        """Return these runs and others of at most as many steps, which have ended where they have fewer: [B, P + Q, ...]."""
        missing = self.alpha.shape[-1] - other.alpha.shape[-1]

        def both(one: Tensor | None, two: Tensor | None, pad: tuple[int, ...] = ()) -> Tensor | None:
            if one is None or two is None:
                return None
            return torch.cat([one, torch.nn.functional.pad(two, pad) if pad else two], 1)

        joined = replace(self, start=both(self.start, other.start), following=both(self.following, other.following))
        joined.alpha = torch.cat([self.alpha, torch.nn.functional.pad(other.alpha, (0, missing))], 1)
        joined.beta = torch.cat([self.beta, torch.nn.functional.pad(other.beta, (0, missing))], 1)
        joined.residual = torch.cat([self.residual, other.residual], 1)
        joined.basis = both(self.basis, other.basis, (0, 0, 0, missing))
        return joined

    def largest(self) -> tuple[Tensor, Tensor]:
        """Return the largest Ritz value [B, P], a lower bound of the largest singular value, and its residual.

        A singular value of A lies within the residual, beta_k |last entry of the left Ritz vector|, of the Ritz value.
        """
        u, values, _ = torch.linalg.svd(self._matrix())
        return values[..., 0], self.residual * u[..., -1, 0].abs()

    def spectrum(self) -> Spectrum:
        """Return the Gauss nodes of every sample's probes as an incomplete `Spectrum` [B, P k]."""
        values, weights = self.nodes()
        count = values.shape[1]
        shares = weights / weights.sum(-1, keepdim=True) / count
        return Spectrum(values.flatten(1), shares.flatten(1), complete=False, resolution=self.resolution)


@torch.no_grad()
def bidiagonalize(
    operator: Operator,
    start: Tensor,
    *,
    steps: int,
    rtol: float = 0.0,
    keep_basis: bool = False,
    agree: Callable[[bool], bool] = bool,
) -> Bidiagonal:
    """Run Golub-Kahan from `start`, in the space of the smaller side, with two-pass reorthogonalization.

    Args:
        operator: B maps m x n.
        start: [B, P, min(m, n)], vectors of norm 1.
        steps: the largest number of steps, of two products each.
        rtol: stop when the half-width of every sample's bracket, narrowed and averaged over its probes, is at most `rtol`
            times its middle; 0 runs all steps.
        keep_basis: whether the result holds the starting vectors and the basis, for `Bidiagonal.correction`.
        agree: from whether these runs may stop, to whether they do: where others that run elsewhere stop with them.

    Returns:
        `Bidiagonal`; for starting vectors with an invariant subspace, entries after it are 0.
    """
    wide = operator.rows <= operator.columns
    forward, backward = (operator.rmatvec, operator.matvec) if wide else (operator.matvec, operator.rmatvec)
    steps = min(steps, operator.rank)
    floor = 50 * torch.finfo(start.dtype).eps
    v = start
    u, alpha = _normalized(forward(v), None, floor)
    scale = alpha.clone()
    vs, us, alphas = [v], [u], [alpha]
    betas: list[Tensor] = []
    products, look = 1, _MIN_STEPS
    for step in range(1, steps + 1):
        v = _orthogonalized(backward(u) - alpha.to(v).unsqueeze(-1) * v, vs)
        v, beta = _normalized(v, scale, floor)
        products += 1
        result = Bidiagonal(torch.stack(alphas, -1), _stacked(betas, alpha), beta, products, resolution=floor)
        if step == steps or agree(not bool((beta > 0).any())):
            break
        if rtol and step >= look:
            look = step + max(1, step // 8)  # looking costs a decomposition of every run's matrix
            lower, upper = (end.mean(1) for end in result.narrowed())
            if agree(bool((upper - lower <= rtol * (upper + lower)).all())):
                break
        u = _orthogonalized(forward(v) - beta.to(u).unsqueeze(-1) * u, us)
        u, alpha = _normalized(u, scale, floor)
        products += 1
        scale = torch.maximum(scale, alpha)
        vs.append(v)
        us.append(u)
        alphas.append(alpha)
        betas.append(beta)
    if keep_basis:
        result.start, result.basis, result.following = start, torch.stack(vs, -2), v
    return result


def _stacked(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(parts, -1) if parts else like.new_zeros(*like.shape, 0)


def _normalized(x: Tensor, scale: Tensor | None, floor: float) -> tuple[Tensor, Tensor]:
    """Return x / ||x|| and the norm in float64; both zero where the norm is a rounding error, which ends the recursion."""
    norm = torch.linalg.vector_norm(x.double(), dim=-1)
    norm = torch.where(norm > floor * (scale if scale is not None else 0.0), norm, 0.0)
    return torch.where(norm > 0, 1 / norm, 0.0).to(x).unsqueeze(-1) * x, norm


def _orthogonalized(x: Tensor, basis: list[Tensor]) -> Tensor:
    stacked = torch.stack(basis, -2)
    for _ in range(2):
        x = x - (stacked.mT @ (stacked @ x.unsqueeze(-1))).squeeze(-1)
    return x
