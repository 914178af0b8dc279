"""Trainability Preserving Pruning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isometry.pruners.growing import Growing, GrowingPenalty
from isometry.pruners.pruner import Run
from isometry.surgery import Family

__all__ = ["TPP", "add_gram_gradient", "gram_penalty"]


@dataclass(frozen=True)
class TPP(Growing):
    """Trainability Preserving Pruning: decorrelate the units that leave from those that stay, and shrink them.

    Loss added to the cross-entropy, with the growing strength l(t) of `Growing`:
        gram x l(t) x sum over layers of `gram_penalty` + l(t)/2 x (squared weights, biases, BatchNorm scales and
        shifts of the leaving units).
    With `gram=0` and the settings of `GReg` it is GReg.

    Attributes:
        gram: weight of the Gram term. 1000: the paper's experiments.

    Source: Wang & Fu, ICLR 2023, "Trainability preserving neural pruning", Eqs. 3-5; the other defaults are those of
    its ResNet-56 on CIFAR-10 (see `Growing`).
    """

    gram: float = 1000.0

    def penalty(self, run: Run, chosen: list[tuple[Family, tuple[int, ...]]]) -> GrowingPenalty:
        """Return the growing L2 penalty with the Gram term."""
        return _GramPenalty(self, run.model, chosen)


class _GramPenalty(GrowingPenalty):
    """The growing L2 penalty plus the Gram term; its gradient is computed in closed form, without autograd."""

    pruner: TPP

    def __init__(self, pruner: TPP, model: nn.Module, chosen: list[tuple[Family, tuple[int, ...]]]) -> None:
        super().__init__(pruner, model, chosen)
        self.masks = [1 - torch.outer(1 - layer.leaving, 1 - layer.leaving) for layer in self.layers]

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Add the gradients of both terms."""
        super().gradients(step)
        if not self.pruner.gram:
            return
        for layer, mask, strength in zip(self.layers, self.masks, self.strengths, strict=True):
            if strength:
                assert layer.weight.grad is not None
                rows = layer.weight.flatten(1)
                add_gram_gradient(layer.weight.grad.view_as(rows), rows, mask, self.pruner.gram * strength)


def gram_penalty(weight: Tensor, leaving: Tensor) -> Tensor:
    """Return (1/N²) ||(1 - m mᵀ) o (W Wᵀ)||²_F, a differentiable scalar.

    Every entry of the Gram matrix in a leaving unit's row or column is penalised, those among kept units are not.

    Args:
        weight: W [N, D], a row a unit.
        leaving: 1 - m [N]: 1 for units that leave, 0 for those that stay.

    Source: Wang & Fu, ICLR 2023, Eq. 3, with the mean over N² entries of its reference code.
    """
    kept = 1 - leaving
    gram = weight @ weight.T
    return ((1 - torch.outer(kept, kept)) * gram).square().sum() / len(weight) ** 2


def add_gram_gradient(gradient: Tensor, weight: Tensor, mask: Tensor, strength: float) -> None:
    """Add strength x the gradient of `gram_penalty`, (4/N²) (mask o (W Wᵀ)) W, to `gradient` in place.

    Two matrix products, 4 N² D FLOPs, and no temporary of the weight's size.

    Args:
        gradient: [N, D].
        weight: W [N, D], a row a unit.
        mask: 1 - m mᵀ [N, N], 0 where both units stay.
        strength: multiplier.
    """
    gram = (weight @ weight.T).mul_(mask)
    gradient.addmm_(gram, weight, alpha=4 * strength / len(weight) ** 2)
