"""Routes to the mean JSV of every sample: `measure`, what it is compared with, and the floor that no route can undercut.

All routes take (net, inputs [N, ...]) and return mean JSVs [N].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from isometry.measurement import measure
from isometry.measurement.batch import Batch
from isometry.measurement.folding import fold_network
from isometry.measurement.function import NetworkFunction
from isometry.networks.preservation import state_preserved

__all__ = ["OURS", "ROUTES", "SINGLE_SAMPLE", "build_floor", "warm_up"]

OURS = "isometry.measure"


def measured(net: nn.Module, x: Tensor) -> Tensor:
    """Return mean JSVs by `isometry.measure`."""
    return measure(net, x, progress=False).sample_means


def backward_per_class(net: nn.Module, x: Tensor) -> Tensor:
    """Return mean JSVs as research code does it: `.backward()` per class, then a full SVD."""
    z = x.clone().requires_grad_(True)
    outputs = net(z)
    rows: list[Tensor] = []
    for k in range(outputs.shape[1]):
        z.grad = None
        one_hot = torch.zeros_like(outputs)
        one_hot[:, k] = 1
        outputs.backward(one_hot, retain_graph=True)
        assert z.grad is not None
        rows.append(z.grad.flatten(1).clone())
    _, values, _ = torch.linalg.svd(torch.stack(rows, 1), full_matrices=False)
    net.zero_grad()
    return values.mean(1)


def vmap_jacrev(net: nn.Module, x: Tensor) -> Tensor:
    """Return mean JSVs by torch.func: vmap of jacrev, then singular values."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda s: net(s[None])[0]))(x)
    return torch.linalg.svdvals(jacobians.flatten(2)).mean(1)


def functional_jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """Return mean JSVs by torch.autograd.functional.jacobian, sample by sample."""
    means = []
    for sample in x:
        j = torch.autograd.functional.jacobian(lambda s: net(s[None])[0], sample)
        means.append(torch.linalg.svdvals(j.flatten(1)).mean())
    return torch.stack(means)


class _InputAsParameter(nn.Module):
    """The network with its input as the only parameter, which is how curvlinops takes an input Jacobian."""

    def __init__(self, net: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.net, self.sample = net, nn.Parameter(sample.clone())

    def forward(self, _: Tensor) -> Tensor:
        return self.net(self.sample)


def _operators(net: nn.Module, x: Tensor) -> Iterator[Any]:
    from curvlinops import JacobianLinearOperator

    unused = [(torch.zeros(1, 1), torch.zeros(1))]
    flags = [p.requires_grad for p in net.parameters()]
    net.requires_grad_(False)
    for sample in x:
        module = _InputAsParameter(net, sample[None])
        yield JacobianLinearOperator(module, [module.sample], unused, check_deterministic=False)
    for p, flag in zip(net.parameters(), flags, strict=True):
        p.requires_grad_(flag)


def curvlinops_svd(net: nn.Module, x: Tensor) -> Tensor:
    """Return mean JSVs by curvlinops' operator, made dense by its products with the unit vectors."""
    rows = [operator.adjoint() @ torch.eye(operator.shape[0]) for operator in _operators(net, x)]
    return torch.linalg.svdvals(torch.stack(rows)).mean(1)


def curvlinops_svds(net: nn.Module, x: Tensor) -> Tensor:
    """Return the sum of all JSVs but the smallest over their number r: scipy's svds on curvlinops' operator finds r - 1."""
    sizes = [min(operator.shape) for operator in _operators(net, x[:1])]
    sums = [svds(o.to_scipy(), k=sizes[0] - 1, return_singular_vectors=False).sum() for o in _operators(net, x)]
    return torch.tensor(sums) / sizes[0]


def build_floor(net: nn.Module, x: Tensor) -> Callable[[Tensor], None]:
    """Return what cannot be saved: one forward pass and one input-gradient pass per class of the folded network."""
    with state_preserved(net):
        function = fold_network(NetworkFunction(net), Batch.of(x[:2]))
        assert function is not None
        model = function.model.eval().requires_grad_(False)

    def run(inputs: Tensor) -> None:
        z = inputs.clone(memory_format=torch.channels_last).requires_grad_(True)
        outputs = model(z)
        cotangent = torch.zeros_like(outputs)
        for k in range(outputs.shape[1]):
            cotangent[:, k] = 1
            torch.autograd.grad(outputs, z, cotangent, retain_graph=True)
            cotangent[:, k] = 0

    return run


def warm_up(net: nn.Module, x: Tensor) -> None:
    """Run the network once."""
    with torch.no_grad():
        net(x[:2])


ROUTES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    OURS: measured,
    ".backward() per class + SVD": backward_per_class,
    "vmap(jacrev) + SVD": vmap_jacrev,
    "autograd.functional.jacobian": functional_jacobian,
}
"""{route: function}; curvlinops' only where it is installed (pip install curvlinops-for-pytorch)."""
if importlib.util.find_spec("curvlinops"):
    ROUTES |= {"curvlinops + SVD": curvlinops_svd, "curvlinops + scipy svds": curvlinops_svds}
SINGLE_SAMPLE = ("autograd.functional.jacobian", "curvlinops + SVD", "curvlinops + scipy svds")
"""The routes that take one sample at a time, whose seconds per sample do not depend on the number of samples."""
