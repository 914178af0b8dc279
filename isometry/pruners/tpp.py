"""Trainability Preserving Pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isometry.limits import Number
from isometry.pruners.growing import Growing, GrowingPenalty
from isometry.pruners.pruner import PruningContext
from isometry.surgery import Selection

__all__ = ["TPP", "GramPenalty", "gram_gradient", "gram_penalty"]


@dataclass(frozen=True)
class TPP(Growing):
    """Trainability Preserving Pruning: decorrelate the selected units from the kept ones, and shrink them.

    Loss added to the cross-entropy, with the growing strength l(t) of `Growing`:
        gram x l(t) x sum over layers of `gram_penalty` + l(t)/2 x (squared weights, biases, BatchNorm scales and
        shifts of the selected units).
    With `gram=0` and the settings of `GReg` it is GReg.

    Attributes:
        gram: weight of the Gram term. 1000: the paper's experiments.

    Source: Wang & Fu, ICLR 2023, "Trainability preserving neural pruning", Eqs. 3-5; the other defaults are those of
    its ResNet-56 on CIFAR-10 (see `Growing`).
    """

    gram: float = 1000.0
    limits: ClassVar[Mapping[str, Number]] = {**Growing.limits, "gram": Number(0)}

    def penalty(self, context: PruningContext, selection: Selection) -> GrowingPenalty:
        """Return the growing L2 penalty with the Gram term."""
        return GramPenalty(self, context, selection)


class GramPenalty(GrowingPenalty):
    """The growing L2 penalty plus the Gram term; its gradient is computed in closed form, without autograd."""

    pruner: TPP

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Add the gradients of both terms."""
        super().gradients(step)
        if not self.pruner.gram:
            return
        for layer, strength in zip(self.layers, self.strengths, strict=True):
            if strength and layer.weight.grad is not None:
                weight = layer.weight.movedim(layer.dim, 0)
                # Any order of a row's entries will do: the one in memory needs no copy.
                order = sorted(range(1, weight.ndim), key=weight.stride, reverse=True)
                rows = weight.permute(0, *order)
                gradient = layer.weight.grad.movedim(layer.dim, 0).permute(0, *order)
                added = gram_gradient(rows.flatten(1), layer.selected, layer.kept)
                gradient.add_(added.view(rows.shape), alpha=self.pruner.gram * strength)


def gram_penalty(weight: Tensor, selected: Tensor) -> Tensor:
    """Return (1/N²) ||(1 - m mᵀ) o (W Wᵀ)||²_F, a differentiable scalar.

    Every entry of the Gram matrix in a selected unit's row or column is penalized, those among kept units are not.

    Args:
        weight: W [N, D], one row per unit.
        selected: 1 - m [N]: 1 for units to remove, 0 for those to keep.

    Source: Wang & Fu, ICLR 2023, Eq. 3, with the mean over N² entries of its reference code.
    """
    kept = 1 - selected
    gram = weight @ weight.T
    return ((1 - torch.outer(kept, kept)) * gram).square().sum() / len(weight) ** 2


def gram_gradient(weight: Tensor, selected: Tensor, kept: Tensor) -> Tensor:
    """Return the gradient of `gram_penalty`, (4/N²) ((1 - m mᵀ) o (W Wᵀ)) W, [N, D].

    Only entries in selected rows and columns are computed: with p of N units selected, (4 p N + 2 p (N - p)) D FLOPs
    against 4 N² D of the formula as it stands.

    Args:
        weight: W [N, D], one row per unit.
        selected: indices of the units to remove.
        kept: indices of the others.
    """
    rows = weight[selected]
    gram = rows @ weight.T  # [p, N]
    result = torch.empty_like(weight)
    result[selected] = gram @ weight
    result[kept] = gram[:, kept].T @ rows
    return result.mul_(4 / len(weight) ** 2)
