"""The oracle: exact dynamical isometry for linear MLPs."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from isometry.errors import InvalidValueError, join_names, signed
from isometry.networks.checks import check_module
from isometry.networks.masks import refresh, set_parameter, support
from isometry.networks.modules import clone
from isometry.repairs.approximation import fit_product
from isometry.repairs.orthogonalization import check_own_weight
from isometry.spectra import orthogonal

__all__ = ["recover"]

_TOLERANCE = 1e-3  # of JSVs that count as 1 where they were brought there by optimization
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Dropout)


@signed("recover")
def recover(model: nn.Module) -> nn.Module:
    """Return a copy of a linear MLP whose every JSV is 1; `model` is left alone.

    Every weight is replaced by its orthogonal factor (the QR factor of the published OrthP). Where a layer has more
    units than inputs, its columns are rotated so that they span the directions that the later layers read; the result
    is then exact for widths that fall and rise, too. Biases stay. The Jacobian is the product of the weights at any
    input; it has orthonormal rows (or columns, where the network has more outputs than inputs).

    Sparse weights keep their zeros: the entries that a mask of torch.nn.utils.prune holds at zero or, without a mask, that
    are exactly 0 (a hundredth of a weight at least). The product of such weights is brought to an isometry by optimization, from the present weights (see
    `isometry.repairs.approximation.fit_product`). Mostly every JSV is 1 then, too; the zeros may leave too few paths from
    inputs to outputs, so that some JSVs are 0. That is reported by a warning with the JSVs that are reached.

    Args:
        model: linear layers in a chain, with only identities, flattening and dropout between them.

    Raises:
        ValueError: a layer that is not linear, a forward pass that is not a chain, or a layer narrower than both the
            input and the output, so that some singular values are 0. The message names the layer and the reason.

    Warns:
        UserWarning: the zeros of sparse weights were kept, and some JSVs are not 1.

    Source: Wang & Fu, ICLR 2023 (OrthP); the alignment of widening layers and the sparse product are this library's, the latter
    after the layer-by-layer approximation of Lee et al., ICLR 2020.
    """
    check_module(model, "recover(isometry.networks.build('mlp-7-linear'))")
    recovered = clone(model)
    refresh(recovered)
    names = _chain(recovered)
    layers = [recovered.get_submodule(name) for name in names]
    weights = [layer.weight.detach().double() for layer in layers]  # type: ignore[operator]
    _check_widths(names, weights)
    supports = [support(layer) for layer in layers]
    sparse = [name for name, free in zip(names, supports, strict=True) if not bool(free.all())]
    factors = fit_product(weights, supports) if sparse else _isometric(weights)
    for layer, factor in zip(layers, factors, strict=True):
        set_parameter(layer, "weight", factor)
    if sparse and (reached := _describe_shortfall(factors)):
        message = f"recover() keeps the zeros of {join_names(sparse)}, with which {reached}"
        warnings.warn(message, stacklevel=3)  # above the frame that signs the errors: the caller's line
    return recovered


def _describe_shortfall(weights: Sequence[Tensor]) -> str | None:
    """Return how far from 1 the singular values of the product are, in words; None where all of them are 1."""
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    values = torch.linalg.svdvals(product)
    far = values[(values - 1).abs() > _TOLERANCE]
    if not len(far):
        return None
    where = "0" if float(far.max()) < _TOLERANCE else f"between {float(far.min()):.2g} and {float(far.max()):.2g}"
    return (
        f"{len(values) - len(far)} of {len(values)} JSVs are 1 and the others {where}. Masks that keep more paths from the "
        "inputs to the outputs allow more, e.g. those of a lower ratio or of isometry.Magnitude(scope='global')"
    )


def _chain(model: nn.Module) -> list[str]:
    """Return the names of the linear layers, in the order of the forward pass, which must be a chain of them."""
    if isinstance(model, nn.Linear):
        check_own_weight("", model)
        return [""]

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            # Trace into every container, whatever package it comes from, and into no layer.
            return not any(True for _ in module.children())

    try:
        graph = Tracer().trace(model)
    except Exception as error:
        raise InvalidValueError(
            f"cannot follow the forward pass of {type(model).__name__} ({error}); it takes a plain chain of "
            "linear layers, e.g. recover(isometry.networks.build('mlp-7-linear'))."
        ) from error
    names: list[str] = []
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            if _is_linear(name, model.get_submodule(name)):
                if name in names:
                    raise _not_linear(name, "is used twice")
                names.append(name)
        elif node.op not in ("placeholder", "output") and not _reshapes(node):
            raise _not_linear(f"the operation {node.name}", "is not a linear layer")
        if sum(user.target not in ("size", getattr) for user in node.users) > 1:
            raise _not_linear(f"the branch at {node.target}", "leaves the chain")
    if not names:
        raise InvalidValueError(
            "found no linear layer; it takes a network with some, e.g. recover(isometry.networks.build('mlp-7-linear'))."
        )
    return names


def _is_linear(name: str, layer: nn.Module) -> bool:
    """Whether a layer is linear with a weight of its own; False for layers that change nothing, an error for others."""
    if isinstance(layer, nn.Linear):
        check_own_weight(name, layer)
        return True
    if not isinstance(layer, _TRANSPARENT):
        raise _not_linear(f"{name} ({type(layer).__name__})", "is not a linear layer")
    return False


def _reshapes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("flatten", "view", "reshape", "size", "contiguous")
    return node.op == "call_function" and node.target in (torch.flatten, torch.reshape, operator.getitem)


def _not_linear(what: str, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"promises JSVs of 1 for linear MLPs only: {what} {why}. For any other network "
        "orthogonalize(model) applies the published OrthP, which promises nothing."
    )


def _check_widths(names: list[str], weights: Sequence[Tensor]) -> None:
    inputs, outputs = weights[0].shape[1], weights[-1].shape[0]
    rank = min(inputs, outputs)
    for name, weight in zip(names[:-1], weights[:-1], strict=True):
        if len(weight) < rank:
            raise InvalidValueError(
                f"cannot make the JSVs 1: {name} has {len(weight)} units, fewer than the {rank} singular values "
                f"of a map from {inputs} inputs to {outputs} outputs, so {rank - len(weight)} of them are 0. Keep at least "
                f"{rank} units in every layer when pruning."
            )


def _isometric(weights: list[Tensor]) -> list[Tensor]:
    """Return weights [N_l, D_l] near `weights`, in their order, whose product has all singular values 1."""
    if weights[-1].shape[0] > weights[0].shape[1]:  # more outputs than inputs: solve the transposed chain
        return [w.T for w in reversed(_isometric([w.T for w in reversed(weights)]))]
    read = torch.eye(len(weights[-1]), dtype=torch.float64, device=weights[-1].device)
    factors = []
    for weight in reversed(weights):
        factor = orthogonal.qr(weight) if len(weight) <= weight.shape[1] else _widening(weight, read)
        factors.append(factor)
        read = read @ factor
    return factors[::-1]


def _widening(weight: Tensor, read: Tensor) -> Tensor:
    """Return orthonormal columns U [N, D] near `weight` [N, D], N > D, whose span contains the rows of `read` [r, N], r <= D.

    U = V Zᵀ + P with V = readᵀ and Z [D, r] the polar factor of weightᵀ V. P is the polar factor of the part of `weight`
    that maps the complement of Z to the complement of V. Then UᵀU = I and read U = Zᵀ, whose rows are orthonormal.
    """
    rank, inputs = len(read), weight.shape[1]
    basis = read.T
    inner = orthogonal.polar(weight.T @ basis)
    factor = basis @ inner.T
    if inputs > rank:
        complement = torch.linalg.svd(inner, full_matrices=True).U[:, rank:]
        outside = weight @ complement - basis @ (read @ weight @ complement)
        # In coordinates of the complement of V, so that the result is orthogonal to V up to rounding.
        frame = torch.linalg.svd(basis, full_matrices=True).U[:, rank:]
        factor = factor + frame @ orthogonal.polar(frame.T @ outside) @ complement.T
    return factor
