"""Independent reference implementations, slow and plain, in float64: what the fast ones are checked against."""

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import Plan, Report
from isometry.surgery import mask, trace


def slow_jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Jacobians [B, m, n] of a function of batches at the samples of x [B, ...], row by row, one sample at a time.

    The function gets one sample [1, ...] in float64, which is no leaf, so it may change it in place.
    """
    jacobians = []
    for sample in x.double():
        j = torch.autograd.functional.jacobian(lambda s: function((s * 1)[None])[0].flatten(), sample)
        jacobians.append(j.reshape(-1, sample.numel()))
    return torch.stack(jacobians)


def slow_singular_values(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Singular values [B, min(m, n)], descending, of the Jacobians at the samples of x [B, ...]."""
    return torch.linalg.svdvals(slow_jacobians(function, x))


def slow_mean_jsv(net: nn.Module, x: Tensor) -> float:
    """The mean of all Jacobian singular values of a network at x [B, ...]; the network becomes float64."""
    return float(slow_singular_values(net.double(), x).mean())


def assert_spectrum(report: Report, expected: Tensor, rtol: float = 1e-5) -> None:
    """A report holds the expected singular values [B, k], to rtol of the largest."""
    torch.testing.assert_close(report.spectrum.values, expected, rtol=rtol, atol=rtol * float(expected.max()))


def slow_quadratic_forms(matrices: Tensor, start: Tensor) -> Tensor:
    """vᵀ (A Aᵀ)^½ v [B, p] in the smaller space, by a dense SVD: matrices A [B, m, n], start vectors v [B, p, min(m, n)]."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    vectors, values, _ = torch.linalg.svd(wide.double(), full_matrices=False)
    root = (vectors * values.unsqueeze(1)) @ vectors.mT
    return torch.einsum("bpi,bij,bpj->bp", start.double(), root, start.double())


def with_values(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix [rows, columns] of prescribed singular values [min(rows, columns)] in random directions."""
    g = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, rank, generator=g, dtype=torch.float64)).Q
    return (u * values.double()) @ v.T


SPECTRA = {
    "log": torch.logspace(0, -5, 8),
    "clustered": torch.tensor([1.0] * 4 + [1e-3] * 4),
    "zeros": torch.tensor([2.0, 1.0, 0.5, 0, 0, 0, 0, 0]),
    "rank one": torch.tensor([3.0] + [0] * 7),
    "isometry": torch.ones(8),
}


def slow_gram(w: Tensor, leaving: set[int]) -> float:
    """Eq. 3 of TPP for a weight matrix w [units, inputs], entry by entry, in Python floats."""
    total, n = 0.0, len(w)
    for i in range(n):
        for j in range(n):
            if i in leaving or j in leaving:
                total += sum(float(a) * float(b) for a, b in zip(w[i], w[j], strict=True)) ** 2
    return total / n**2


def slow_tpp_penalty(
    layers: Sequence[nn.Module], units: Sequence[Tensor], strength: float, gram: float, norms: Sequence[int] = ()
) -> Tensor:
    """TPP's whole penalty, a scalar: Gram terms, weights and biases of the units of each layer that are to be removed.

    Layers hold weights [units, ...] and biases [units]; of the layers at the places `norms` only the scale and the shift
    of the BatchNorm are shrunk.
    """
    total = torch.zeros((), dtype=torch.float64)
    for index, (layer, removed) in enumerate(zip(layers, units, strict=True)):
        if index not in norms:
            rows = layer.weight.flatten(1)
            entries = torch.zeros(len(rows), len(rows), dtype=torch.float64)
            entries[removed] = 1
            entries[:, removed] = 1
            total = total + gram * strength * (rows @ rows.T * entries).square().mean()
        total = total + strength / 2 * (layer.weight[removed].square().sum() + layer.bias[removed].square().sum())
    return total


def slow_weight_decay(layers: Sequence[nn.Module], units: Sequence[Tensor], removed: float, kept: float) -> Tensor:
    """GReg's penalty, a scalar: squares of the weights [units, ...], of one strength for the units given, of one for the rest."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, chosen in zip(layers, units, strict=True):
        flags = torch.zeros(len(layer.weight), dtype=torch.float64)
        flags[chosen] = 1
        sizes = layer.weight.flatten(1).square().sum(1)
        total = total + removed / 2 * (flags * sizes).sum() + kept / 2 * ((1 - flags) * sizes).sum()
    return total


def sgd_by_hand(
    net: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    rates: Iterable[float],
    penalty: Callable[[int], Tensor | float] = lambda step: 0.0,
    *,
    seed: int,
    batch_size: int,
    decay: float,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Plain SGD with momentum 0.9 in train mode on inputs [N, ...] and targets [N], one step for each of the rates.

    `penalty(step)` is added to the cross-entropy; `after(step)` is called when a step is done.
    """
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    order, batches = torch.Generator().manual_seed(seed), []
    net.train()
    for step, rate in enumerate(rates):
        batches = batches or list(torch.randperm(len(inputs), generator=order).split(batch_size))
        batch = batches.pop(0)
        loss = F.cross_entropy(net(inputs[batch]), targets[batch]) + penalty(step)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g, v in zip(net.parameters(), grads, velocity, strict=True):
                v.mul_(0.9).add_(g + decay * p)
                p.sub_(rate * v)
            after(step)


def slow_convolution_orthogonality(kernel: Tensor, stride: int) -> float:
    """Distance from orthonormal rows of a 3x3 convolution [out, in, 3, 3] with equal strides.

    By hand: inner products of every two rows of the operator's Toeplitz matrix, without padding's edges.
    """
    total = 0.0
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    if dy % stride or dx % stride:
                        continue
                    shifted = F.pad(kernel[j], (2, 2, 2, 2))[:, 2 + dy : 5 + dy, 2 + dx : 5 + dx]
                    product = float((kernel[i] * shifted).sum()) - float(i == j and dy == dx == 0)
                    total += product**2
    return total**0.5


def masked_by(net: nn.Module, plan: Plan, x: Tensor) -> nn.Module:
    """The network of full width with the units that a plan removes set to zero: what the pruned one must equal."""
    chosen = []
    for family in trace(net, x).groups:
        member = family.of("units")[0]
        removed = set(plan.removed.get(member.layer, ()))
        chosen.append((family, tuple(u for u in range(family.units) if removed.issuperset(member.take([u])))))
    return mask(net, chosen)


def generic_rank(supports: Sequence[Tensor]) -> int:
    """The rank of a product of matrices [N_l, D_l] whose free entries are random, in exact arithmetic modulo a prime."""
    prime, draw = 2**61 - 1, random.Random(0)
    product = np.eye(supports[0].shape[1], dtype=object)
    for free in supports:
        entries = [[draw.randrange(1, prime) if one else 0 for one in row] for row in free.tolist()]
        product = np.array(entries, dtype=object) @ product % prime
    rank = 0
    for column in range(product.shape[1]):
        pivot = next((row for row in range(rank, len(product)) if product[row, column]), None)
        if pivot is None:
            continue
        product[[rank, pivot]] = product[[pivot, rank]]
        product[rank] = product[rank] * pow(product[rank, column], -1, prime) % prime
        for row in range(rank + 1, len(product)):
            product[row] = (product[row] - product[row, column] * product[rank]) % prime
        rank += 1
    return rank
