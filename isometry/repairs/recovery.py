"""recover: exact dynamical isometry for linear MLPs, the oracle."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from isometry.networks.modules import clone
from isometry.repairs.orthogonalization import check_own_weight
from isometry.spectra import orthogonal

__all__ = ["recover"]

_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Dropout)


def recover(model: nn.Module) -> nn.Module:
    """Return a copy of a linear MLP whose every JSV is 1; `model` is left alone.

    Every weight is replaced by its orthogonal factor (the QR factor of the published OrthP). Where a layer is wider
    than its input, its columns are turned so that the directions the later layers read are among them, which makes
    widths that fall and rise exact too. Biases stay. The Jacobian is the product of the weights at any input; it has
    orthonormal rows (or columns, where the net has more outputs than inputs).

    Args:
        model: linear layers in a chain, with nothing but identities, flattening and dropout between them.

    Raises:
        ValueError: a layer that is not linear, a graph that is no chain, or a layer narrower than both the input and
            the output, so that singular values must be 0. The message names the layer and the reason.

    Source: Wang & Fu, ICLR 2023 (OrthP); the alignment of widening layers is this library's.
    """
    recovered = clone(model)
    names = _chain(recovered)
    weights = [recovered.get_submodule(name).get_parameter("weight") for name in names]
    _check_widths(names, weights)
    targets = _isometric([weight.detach().double() for weight in weights])
    with torch.no_grad():
        for weight, target in zip(weights, targets, strict=True):
            weight.copy_(target)
    return recovered


def _chain(model: nn.Module) -> list[str]:
    """Return the names of the linear layers in the order of the forward pass; refuse anything but a chain of them."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            # Containers are looked into, whatever package they come from; layers are not.
            return not any(True for _ in module.children())

    try:
        graph = Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"recover() cannot follow the forward pass of {type(model).__name__} ({error}); it takes a plain chain of "
            "linear layers, e.g. recover(isometry.networks.build('mlp-7-linear'))."
        ) from error
    names = []
    for node in graph.nodes:
        if node.op == "call_module":
            layer = model.get_submodule(str(node.target))
            if isinstance(layer, nn.Linear):
                check_own_weight(str(node.target), layer, "recover")
                if node.target in names:
                    raise ValueError(_not_linear(str(node.target), "is used twice"))
                names.append(str(node.target))
            elif not isinstance(layer, _TRANSPARENT):
                raise ValueError(_not_linear(f"{node.target} ({type(layer).__name__})", "is not a linear layer"))
        elif node.op not in ("placeholder", "output") and not _reshapes(node):
            raise ValueError(_not_linear(f"the operation {node.name}", "is not a linear layer"))
        if sum(user.target not in ("size", getattr) for user in node.users) > 1:
            raise ValueError(_not_linear(f"the branch at {node.target}", "leaves the chain"))
    if not names:
        raise ValueError("recover() found no linear layer; e.g. recover(isometry.networks.build('mlp-7-linear')).")
    return names


def _reshapes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("flatten", "view", "reshape", "size", "contiguous")
    return node.op == "call_function" and node.target in (torch.flatten, torch.reshape, operator.getitem)


def _not_linear(what: str, why: str) -> str:
    return (
        f"recover() promises JSVs of 1 for linear MLPs only: {what} {why}. For any other network "
        "orthogonalize(model) applies the published OrthP, without a promise."
    )


def _check_widths(names: list[str], weights: Sequence[Tensor]) -> None:
    inputs, outputs = weights[0].shape[1], weights[-1].shape[0]
    rank = min(inputs, outputs)
    for name, weight in zip(names[:-1], weights[:-1], strict=True):
        if len(weight) < rank:
            raise ValueError(
                f"recover() cannot make the JSVs 1: {name} has {len(weight)} units, fewer than the {rank} singular values "
                f"of a map from {inputs} inputs to {outputs} outputs, so {rank - len(weight)} of them are 0. Keep at least "
                f"{rank} units in every layer when pruning."
            )


def _isometric(weights: list[Tensor]) -> list[Tensor]:
    """Return weights [N_l, D_l] near the given ones whose product has all singular values 1."""
    if weights[-1].shape[0] > weights[0].shape[1]:  # more outputs than inputs: the transposed chain, from the other end
        return [w.T for w in reversed(_isometric([w.T for w in reversed(weights)]))]
    read = torch.eye(len(weights[-1]), dtype=torch.float64, device=weights[-1].device)
    found = []
    for weight in reversed(weights):
        factor = orthogonal.qr(weight) if len(weight) <= weight.shape[1] else _widening(weight, read)
        found.append(factor)
        read = read @ factor
    return found[::-1]


def _widening(weight: Tensor, read: Tensor) -> Tensor:
    """Return orthonormal columns near `weight` [N, D], N > D, whose span holds the rows of `read` [r, N], r <= D.

    With V = readᵀ: U = V Zᵀ + (the polar factor of what `weight` does outside V, on the complement of Z), where Z [D, r]
    is the polar factor of weightᵀ V. Then UᵀU = 1 and read U = Zᵀ, whose rows are orthonormal.
    """
    rank, inputs = len(read), weight.shape[1]
    basis = read.T
    inner = orthogonal.polar(weight.T @ basis)
    factor = basis @ inner.T
    if inputs > rank:
        complement = torch.linalg.svd(inner, full_matrices=True).U[:, rank:]
        outside = weight @ complement - basis @ (read @ weight @ complement)
        # Orthonormal in the complement of V exactly: taken in coordinates of that complement.
        frame = torch.linalg.svd(basis, full_matrices=True).U[:, rank:]
        factor = factor + frame @ orthogonal.polar(frame.T @ outside) @ complement.T
    return factor
