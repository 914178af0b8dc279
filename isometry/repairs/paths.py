"""Disjoint paths through masks: how many singular values of a product of sparse matrices need not be 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["disjoint_paths"]


def disjoint_paths(supports: Sequence[Tensor]) -> list[Tensor]:
    """Return the entries of weights that lie on as many paths from inputs to outputs as can run without a common unit.

    With weights of 1 on these paths and 0 elsewhere the product is a part of a permutation; its rank, the number of paths, is
    the largest that weights with these zeros can have (a maximum flow; Lindström's lemma).

    Args:
        supports: [N_l, D_l] booleans in the order of the forward pass, False where a weight is 0.

    Returns:
        [N_l, D_l] booleans, at most one per row and per column.
    """
    from scipy.sparse import csr_array  # takes long to import
    from scipy.sparse.csgraph import maximum_flow

    widths = [supports[0].shape[1], *(len(free) for free in supports)]
    first = np.concatenate(
        [[0], np.cumsum(widths)]
    )  # unit u of layer l: node 2 (first[l] + u) to enter, the next one to leave
    units = np.arange(first[-1])
    source, sink = 2 * len(units), 2 * len(units) + 1
    entries = [free.cpu().nonzero().numpy().T for free in supports]
    inner = [(2 * (first[k] + i) + 1, 2 * (first[k + 1] + o)) for k, (o, i) in enumerate(entries)]
    inputs, outputs = units[: widths[0]], units[first[-2] :]
    ends = [(np.full(widths[0], source), 2 * inputs), (2 * outputs + 1, np.full(widths[-1], sink))]
    tails, heads = (
        np.concatenate(part).astype(np.int32)  # maximum_flow takes no other indices
        for part in zip((2 * units, 2 * units + 1), *inner, *ends, strict=True)
    )
    edges = csr_array((np.ones(len(tails), dtype=np.int32), (tails, heads)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(edges, source, sink).flow
    found = []
    for free, (o, i), (tail, head) in zip(supports, entries, inner, strict=True):
        used = np.asarray(flow[tail, head]).ravel() > 0
        path = torch.zeros_like(free)
        path[torch.from_numpy(o[used]), torch.from_numpy(i[used])] = True
        found.append(path)
    return found
