"""Correspondence: which units of the original layer the units of a pruned one are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["match_outputs", "match_weights"]


def match_weights(layer: Any, original: Any) -> Tensor | None:
    """Return the indices [k], ascending, of the units of `original` whose weights `layer` kept; None where it kept none.

    Weights are compared in magnitude, as conversion to bounded BatchNorm negates units. No knowledge of which inputs were
    removed is needed: a unit's weights are some of those of the unit that it was.

    Args:
        layer: a convolution or linear layer of k units.
        original: the layer before pruning, of K >= k units.
    """
    kept, full = layer.weight.detach(), original.weight.detach()
    units, width = len(full), full[0].numel()
    if len(kept) == units:
        return torch.arange(units, device=kept.device)
    values, order = full.abs().flatten().sort()
    weights = kept.to(full).abs().flatten(1)
    first, last = torch.searchsorted(values, weights), torch.searchsorted(values, weights, right=True) - 1
    found = ((first <= last) & (weights != 0)).to(torch.float64)
    votes = torch.zeros(len(kept), units, dtype=torch.float64, device=full.device)
    for index in (first, last):  # of a value that occurs twice, both places
        votes.scatter_add_(1, order[index.clamp(0, len(order) - 1)] // width, found / (2 * weights.shape[1]))
    share = (weights != 0).double().mean(1)
    if bool((votes.max(1).values < 0.5 * share).any()):
        return None
    if layer.bias is not None and original.bias is not None:
        votes += layer.bias.to(full).abs()[:, None] == original.bias.abs()[None]
    return _align(votes).to(kept.device)


def match_outputs(outputs: Tensor, originals: Tensor) -> Tensor:
    """Return the indices [k], ascending, of the columns of `originals` [n, K] that correlate most with `outputs` [n, k]."""
    a, b = (x.double() - x.double().mean(0) for x in (outputs, originals))
    norms = a.norm(dim=0)[:, None] * b.norm(dim=0)[None]
    return _align((a.mT @ b) / norms.clamp_min(1e-12)).to(outputs.device)


def _align(scores: Tensor) -> Tensor:
    """Return ascending columns [k], one per row of `scores` [k, K], with the largest sum of scores."""
    rows, columns = scores.shape
    slack = columns - rows  # row i takes one of the columns i to i + slack
    best, choices = torch.zeros(slack + 1, dtype=scores.dtype, device=scores.device), []
    for row in range(rows):
        total = best + scores[row, row : row + slack + 1]
        best, choice = total.cummax(0)
        choices.append(choice)
    shift, picked = slack, []
    for row in reversed(range(rows)):
        shift = int(choices[row][shift])
        picked.append(row + shift)
    return torch.tensor(picked[::-1])
