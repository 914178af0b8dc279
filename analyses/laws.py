"""Do measured spectra of networks at initialization tend to their closed-form laws as the networks grow?

Yes, for five families of n x n networks, n = 50, 100, 200, 400, five draws each, one random input, measured exactly in float64. The mean
Kolmogorov-Smirnov distance from the law falls

- from 0.048 to 0.008 for four Gaussian layers (Fuss-Catalan), from 0.042 to 0.008 for 64 linear residual blocks, and from 0.057 to 0.011
  for an orthogonal layer of which a tenth of the weights were removed at random: roughly as n^-0.9, n^-0.8 and n^-0.8;
- from 0.079 to 0.025 for four orthogonal layers with ReLU, slowly at first, as the number of units that a ReLU passes varies from draw to
  draw: not yet a power of n;
- four orthogonal layers have every JSV at 1 at any width, to 1e-14.

Networks at initialization only: no law here is one of trained weights.

Run `python analyses/laws.py --out figures`: a minute of one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.spectra import laws
from isometry.trials import script
from isometry.trials.script import Row

DRAWS = 5
BLOCKS = 64  # of the residual network; its law is of infinitely many


def layer(weight: Tensor) -> nn.Linear:
    """Return a linear layer without bias with this weight [n, n]."""
    module = nn.Linear(len(weight), len(weight), bias=False, dtype=weight.dtype)
    module.weight.data.copy_(weight)
    return module


def gaussian(n: int, g: torch.Generator) -> Tensor:
    """Return a matrix [n, n] of independent normal entries of variance 1 / n."""
    return torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5


def haar(n: int, g: torch.Generator) -> Tensor:
    """Return an orthogonal matrix [n, n], uniformly distributed."""
    q, r = torch.linalg.qr(gaussian(n, g))
    return q * r.diagonal().sign()


def gaussian_layers(n: int, g: torch.Generator) -> nn.Module:
    """Return four Gaussian layers."""
    return nn.Sequential(*(layer(gaussian(n, g)) for _ in range(4)))


def orthogonal_layers(n: int, g: torch.Generator) -> nn.Module:
    """Return four orthogonal layers."""
    return nn.Sequential(*(layer(haar(n, g)) for _ in range(4)))


def gated_layers(n: int, g: torch.Generator) -> nn.Module:
    """Return four orthogonal layers of gain sqrt(2), each behind a ReLU."""
    return nn.Sequential(*(part for _ in range(4) for part in (layer(math.sqrt(2) * haar(n, g)), nn.ReLU())))


def masked(n: int, g: torch.Generator) -> nn.Module:
    """Return an orthogonal layer of which a tenth of the weights were removed at random."""
    return layer(haar(n, g) * (torch.rand(n, n, generator=g) < 0.9))


class Block(nn.Module):
    """x + W x, x [B, n]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.fc = layer(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n] -> [B, n]."""
        return x + self.fc(x)


def residual(n: int, g: torch.Generator) -> nn.Module:
    """Return linear residual blocks, the variance of whose weights is 1 / n in all."""
    return nn.Sequential(*(Block(gaussian(n, g) / BLOCKS**0.5) for _ in range(BLOCKS)))


CASES: dict[str, tuple[laws.Law, Callable[[int, torch.Generator], nn.Module]]] = {
    "4 Gaussian layers": (laws.FussCatalan(4), gaussian_layers),
    "4 orthogonal layers": (laws.Isometry(), orthogonal_layers),
    "4 orthogonal layers, ReLU": (laws.BernoulliOrthogonal(4, 0.5, math.sqrt(2)), gated_layers),
    "orthogonal layer, 10 % removed": (laws.RandomMask(0.9), masked),
    f"{BLOCKS} residual blocks": (laws.Residual(1.0), residual),
}


def distances(quick: bool) -> list[Row]:
    """Return the distance of every measured spectrum (one random input) from its law, against the width."""
    rows: list[Row] = []
    for name, (law, build) in CASES.items():
        for n in (30, 60) if quick else (50, 100, 200, 400):
            for seed in range(2 if quick else DRAWS):
                g = torch.Generator().manual_seed(1000 * n + seed)
                x = torch.randn(1, n, generator=g, dtype=torch.float64)
                report = isometry.measure(build(n, g), x, method="exact", progress=False)
                cell = {"case": name, "method": type(law).__name__, "size": n, "seed": seed}
                rows.append(cell | {"mean_jsv": report.mean_jsv, "distance": law.distance(report.spectrum)})
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return the mean and the largest distance over draws as markdown."""
    found = table.groupby(["case", "method", "size"], sort=False)["distance"].agg(["mean", "max"]).reset_index()
    columns = {"case": "network", "method": "law", "size": "width", "mean": "Kolmogorov-Smirnov distance, mean"}
    return script.format_columns(found, {**columns, "max": f"largest of {table['seed'].nunique()} draws"})


def short(table: pd.DataFrame) -> str:
    """Return the distances at the largest width as markdown."""
    return tables(table[table["size"] == table["size"].max()])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the distances against the width."""
    figure, ax = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    for name, rows in table[table["distance"] > 1e-6].groupby("case", sort=False):
        over = rows.groupby("size")["distance"].agg(["mean", "std"])
        ax.errorbar(over.index, over["mean"], over["std"], marker="o", capsize=3, label=str(name))
    sizes = sorted(table["size"].unique())
    ax.set(xscale="log", yscale="log", xlabel="width", ylabel="Kolmogorov-Smirnov distance from the law")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    exact = ", ".join(str(name) for name, rows in table.groupby("case", sort=False) if (rows["distance"] <= 1e-6).all())
    ax.set_title(
        f"Measured spectra tend to their laws with the width (bars: std over {table['seed'].nunique()} draws)"
        + (f"\nnot drawn, at any width within 1e-6: {exact}" if exact else ""),
        fontsize="medium",
    )
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement("laws", __doc__, {"laws": distances}, draw, tables)
