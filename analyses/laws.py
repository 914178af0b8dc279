"""Do spectra of simulated networks tend to their closed-form laws as the matrices grow?

The Kolmogorov-Smirnov distance between the singular values of one simulated n x n map and its law, for n = 50, 100, 200, 400, falls for
three laws: products of Gaussian layers (Fuss-Catalan), orthogonal layers with ReLU gates, and a randomly masked orthogonal matrix.
One draw per size and law: the picture shows the direction, not a rate or its error, and trained networks are not tested.

Run `python analyses/laws.py --out figures`: seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from isometry.spectra import Spectrum, laws
from isometry.trials import script
from isometry.trials.script import Row


def gaussian(n: int, g: torch.Generator) -> Tensor:
    """Return a matrix [n, n] of independent normal entries of variance 1 / n."""
    return torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5


def haar(n: int, g: torch.Generator) -> Tensor:
    """Return an orthogonal matrix [n, n], uniformly distributed."""
    q, r = torch.linalg.qr(gaussian(n, g))
    return q * r.diagonal().sign()


def gaussian_layers(n: int, g: torch.Generator) -> Tensor:
    """Return the product of four Gaussian layers [n, n]."""
    return gaussian(n, g) @ gaussian(n, g) @ gaussian(n, g) @ gaussian(n, g)


def gated_layers(n: int, g: torch.Generator) -> Tensor:
    """Return the product of four orthogonal layers [n, n], each behind a gate that passes half of the units."""
    product = torch.eye(n, dtype=torch.float64)
    for _ in range(4):
        gates = torch.zeros(n, dtype=torch.float64)
        gates[torch.randperm(n, generator=g)[: n // 2]] = 1
        product = gates[:, None] * (haar(n, g) @ product) * math.sqrt(2)
    return product


def masked(n: int, g: torch.Generator) -> Tensor:
    """Return an orthogonal matrix [n, n] with a tenth of its entries set to zero."""
    return haar(n, g) * (torch.rand(n, n, generator=g) < 0.9)


CASES: dict[str, tuple[laws.Law, Callable[[int, torch.Generator], Tensor]]] = {
    "4 Gaussian layers": (laws.FussCatalan(4), gaussian_layers),
    "4 ReLU layers, orthogonal": (laws.BernoulliOrthogonal(4, 0.5, math.sqrt(2)), gated_layers),
    "orthogonal, 10 % pruned at random": (laws.RandomMask(0.9), masked),
}


def distances(quick: bool) -> list[Row]:
    """Return the distance of every simulated map from its law, against its size."""
    rows: list[Row] = []
    for name, (law, simulate) in CASES.items():
        for n in (30, 60) if quick else (50, 100, 200, 400):
            spectrum = Spectrum.of(torch.linalg.svdvals(simulate(n, torch.Generator().manual_seed(n))))
            rows.append({"case": name, "method": type(law).__name__, "size": n, "distance": law.distance(spectrum)})
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return the distances as markdown."""
    columns = {"case": "map", "method": "law", "size": "size", "distance": "Kolmogorov-Smirnov distance"}
    return script.format_columns(table, columns)


def short(table: pd.DataFrame) -> str:
    """Return the distances at the largest size as markdown."""
    return tables(table[table["size"] == table["size"].max()])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the distances against the size."""
    figure, ax = plt.subplots(figsize=(6.5, 4.6), layout="constrained")
    for name, rows in table.groupby("case", sort=False):
        ax.plot(rows["size"], rows["distance"], marker="o", label=str(name))
    ax.set(xscale="log", yscale="log", xlabel="size of the matrices", ylabel="Kolmogorov-Smirnov distance")
    ax.set_title("Simulated spectra tend to their laws (one draw per point)", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement("laws", __doc__, {"laws": distances}, draw, tables)
