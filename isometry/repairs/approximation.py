"""Approximate isometry: weights whose zeros are given, as near to isometries as these zeros allow, by optimization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from isometry.repairs.paths import disjoint_paths
from isometry.spectra import orthogonal

__all__ = ["fit_orthogonal", "fit_product"]

_STEPS = 1000  # at most; sparse weights of the published MLPs take some 100
_REACHED = 1e-6  # of the squared distance
_BESIDE = 0.5  # norm of the weights beside the paths, of norm 1, of a second start


def fit_orthogonal(weight: Tensor, support: Tensor) -> Tensor:
    """Return the weight W with the zeros of `support` that a descent of ||W Wᵀ - I||_F² (Wᵀ W where m > n) leads to.

    The descent (L-BFGS) starts at `weight`, scaled by the factor that makes the distance smallest. What it reaches is a
    local minimum; a row without a free entry stays 0.

    Args:
        weight: [m, n], of any dtype; the computation is in float64.
        support: [m, n] booleans, False where W is 0.

    Returns:
        [m, n] in the dtype of `weight`.

    Source: Lee et al., ICLR 2020, "A signal propagation perspective for pruning neural networks at initialization" (approximate
    dynamical isometry of sparse networks, layer by layer); the start and the optimizer are this library's.
    """
    (fitted,) = _descend([_scaled(weight, support)], [support], lambda weights: _distance(weights[0]))
    return fitted.to(weight.dtype)


def fit_product(weights: Sequence[Tensor], supports: Sequence[Tensor]) -> list[Tensor]:
    """Return weights with the zeros of `supports` whose product P = W_L ... W_1 is as isometric as these zeros allow.

    Minimizes ||P Pᵀ - I||_F² (Pᵀ P where P has more rows than columns) by L-BFGS, from `weights`, each of them scaled so
    that it is as near as possible to an isometry. P has far fewer entries than the weights, so that mostly as many of its
    singular values come to 1 as there are `disjoint_paths`, the others being 0. Where the descent falls short of that, as
    in deep products of small singular values, a second one starts with +-1 on the paths; the better result counts.

    Args:
        weights: [N_l, D_l] in the order of the forward pass, of any dtype; the computation is in float64.
        supports: booleans of the same shapes, False where a weight is 0.

    Returns:
        [N_l, D_l] in float64.
    """
    starts = [_scaled(weight, free) for weight, free in zip(weights, supports, strict=True)]
    fitted = _descend(starts, supports, _distance_of_product)
    if float(_distance_of_product(fitted)) < _REACHED:
        return fitted
    paths = disjoint_paths(supports)
    unreachable = min(supports[0].shape[1], len(supports[-1])) - int(paths[0].sum())
    if float(_distance_of_product(fitted)) - unreachable < _REACHED:
        return fitted
    starts = [_on_path(start, path) for start, path in zip(starts, paths, strict=True)]
    again = _descend(starts, supports, _distance_of_product)
    return min(fitted, again, key=lambda weights: float(_distance_of_product(weights)))


def _distance_of_product(weights: Sequence[Tensor]) -> Tensor:
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return _distance(product)


def _distance(weight: Tensor) -> Tensor:
    """Return ||W Wᵀ - I||_F², of the smaller one of the two Gram matrices."""
    rows = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().sum()


def _descend(
    starts: Sequence[Tensor], supports: Sequence[Tensor], loss: Callable[[Sequence[Tensor]], Tensor]
) -> list[Tensor]:
    """Return weights that are zero outside of `supports`, at a local minimum of `loss`, from float64 `starts`."""
    from scipy.optimize import minimize  # takes long to import

    sizes = [int(free.sum()) for free in supports]

    def unpack(entries: Tensor) -> list[Tensor]:
        parts = zip(starts, supports, entries.split(sizes), strict=True)
        return [torch.zeros_like(start).masked_scatter(free, part) for start, free, part in parts]

    def evaluate(entries: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            x = torch.from_numpy(entries).to(starts[0].device).requires_grad_(True)
            value = loss(unpack(x))
            (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.cpu().numpy()

    if not any(sizes):
        return list(starts)
    x = torch.cat([start[free] for start, free in zip(starts, supports, strict=True)]).cpu().numpy()
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 0.0, "gtol": 1e-10, "maxcor": 20}
    found = minimize(evaluate, x, jac=True, method="L-BFGS-B", options=options)
    return unpack(torch.from_numpy(found.x).to(starts[0].device))


def _scaled(weight: Tensor, support: Tensor) -> Tensor:
    """Return a weight in float64, zero outside of `support`, times the factor that brings it nearest to an isometry."""
    start = weight.detach().double() * support
    if not bool(start.any()):
        start = orthogonal.qr(support.double()) * support
    rows = start if start.shape[0] <= start.shape[1] else start.T
    gram = rows @ rows.T
    squares = gram.square().sum()
    return start * (gram.trace() / squares).sqrt() if bool(squares > 0) else start


def _on_path(start: Tensor, path: Tensor) -> Tensor:
    """Return +-1, by the signs of `start`, on a path, and beside it `start` times the factor that gives it a norm of 0.5."""
    beside = start * ~path
    norm = torch.linalg.matrix_norm(beside, 2).clamp_min(torch.finfo(beside.dtype).tiny)
    return torch.where(path, torch.where(start < 0, -1.0, 1.0).to(start), beside * (_BESIDE / norm))
