"""How well is a mean JSV known: how small is the error of a stochastic estimate, and do 95 % intervals hold the truth?

- Golub-Kahan on four prescribed spectra (one random 200 x 300 matrix each, 64 probes): the median error of one probe and the
  half-width of its bracket against the products spent are in the table and the picture. More products narrow the bracket, not the
  error of a probe (2 to 15 % but for equal values, where it is 0), which is that of its random direction; more probes do that. scipy's
  svds, which finds all values but one, errs by up to 0.5 % of the mean.
- Coverage over 400 seeds: intervals from brackets of 12 probes hold the truth for 94.8 to 100 % of the seeds on the four spectra,
  intervals from 24 of 2,000 CIFAR-10 images for 94.3 % on the pretrained ResNet-56. Such a share has a standard error of about one
  point, so 94.3 and 95 % are not told apart. Fewer than 12 probes and other networks are not tested here; see `coverage.py`.

Run `python analyses/intervals.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights; without
it a random ResNet-56 on random images is measured, and the table says so. Two minutes of one core.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy.sparse.linalg import svds
from torch import Tensor

import isometry
from isometry.spectra import Matrices, bidiagonalize, mean_with_error, probes
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56

COLORS = ("#9467bd", "#1f77b4", "#ff7f0e", "#2ca02c")


def matrices(quick: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {name: (matrix [n, 3 n / 2] in float64, its prescribed singular values [n])} with random directions."""
    size = 60 if quick else 200
    spectra = {
        "isometry": torch.ones(size),
        "uniform": torch.linspace(0.5, 1.5, size),
        "log, condition 1e5": torch.logspace(0, -5, size),
        "half zeros": torch.cat([torch.linspace(0.5, 1.5, size - size // 2), torch.zeros(size // 2)]),
    }
    found = {}
    for name, values in spectra.items():
        g = torch.Generator().manual_seed(0)
        u = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64)).Q
        v = torch.linalg.qr(torch.randn(size + size // 2, size, generator=g, dtype=torch.float64)).Q
        found[name] = ((u * values.double()) @ v.T, values.double())
    return found


def brackets(matrix: Tensor, count: int, steps: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Return lower and upper ends [count] of the mean singular value by `count` probes, and the products spent."""
    start = probes(1, count, len(matrix), torch.Generator().manual_seed(seed), matrix)
    run = bidiagonalize(Matrices(matrix), start, steps=steps)
    lower, upper = (end[0] for end in run.bracket())
    return lower, upper, run.products


def prescribed(quick: bool) -> list[Row]:
    """Return error and bracket of one probe against the products spent."""
    rows: list[Row] = []
    for name, (matrix, values) in matrices(quick).items():
        truth = float(values.mean())
        for steps in (4, 8, 16, 32):
            lower, upper, products = brackets(matrix, 64, steps, 1)
            error = float(((lower + upper) / 2 - truth).abs().median()) / truth
            half = float((upper - lower).mean() / 2) / truth
            row: Row = {"case": name, "method": "krylov", "products": products, "probes": 1}
            rows.append(row | {"error": error, "half_width": half})
    return rows


def peer(quick: bool) -> list[Row]:
    """Return the error of scipy's svds, which finds all values but one."""
    rows: list[Row] = []
    for name, (matrix, values) in matrices(quick).items():
        truth, k, start = float(values.mean()), len(values) - 1, time.perf_counter()
        total = svds(matrix.numpy(), k=k, return_singular_vectors=False).sum()
        seconds = time.perf_counter() - start
        row: Row = {"case": name, "method": f"scipy svds, k={k}", "seconds": seconds}
        rows.append(row | {"error": abs(total / len(values) - truth) / truth})
    return rows


def coverage(quick: bool) -> list[Row]:
    """Return how often 95 % intervals hold the truth, over seeds of the probes or of the samples."""
    rows: list[Row] = []
    for name, (matrix, values) in matrices(quick).items():
        truth, seeds, hits = float(values.mean()), 40 if quick else 400, 0
        for seed in range(seeds):
            lower, upper, _ = brackets(matrix, 12, 32, seed)
            low, high = mean_with_error((lower + upper) / 2, lower, upper).interval
            hits += low - 1e-9 <= truth <= high + 1e-9
        rows.append({"case": name, "method": "krylov, 12 probes", "coverage": hits / seeds, "seeds": seeds})
    net, images, description = resnet_56(quick)
    means = isometry.measure(net, images, progress=False).sample_means
    truth, seeds, hits, count = float(means.mean()), 400, 0, 6 if quick else 24
    for seed in range(seeds):
        sample = means[torch.randperm(len(means), generator=torch.Generator().manual_seed(seed))[:count]]
        low, high = mean_with_error(sample).interval
        hits += low <= truth <= high
    case = f"resnet-56, {description}"
    return [*rows, {"case": case, "method": f"exact, {count} samples", "coverage": hits / seeds, "seeds": seeds}]


def tables(table: pd.DataFrame) -> str:
    """Return the coverage of 95 % intervals, and error and bracket of one probe, as markdown."""
    columns = {"case": "spectrum", "method": "method", "products": "products"}
    columns |= {"error": "error / mean", "half_width": "half-width / mean"}
    rows = table[table["part"].isin(["prescribed", "peer"])].drop_duplicates(list(columns))  # a run that ends early
    rows = rows.assign(half_width=rows["half_width"].clip(lower=0))  # but for rounding
    return f"{short(table)}\n\n{script.format_columns(rows, columns)}"


def short(table: pd.DataFrame) -> str:
    """Return the coverage of 95 % intervals as markdown."""
    columns = {"case": "case", "method": "method", "coverage": "coverage", "seeds": "seeds"}
    return script.format_columns(table[table["part"] == "coverage"], columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw error against products, and coverage."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    curves = table[table["part"] == "prescribed"].groupby("case", sort=False)
    for color, (name, rows) in zip(COLORS, curves, strict=True):
        left.plot(rows["products"], rows["error"].clip(lower=1e-9), marker="o", color=color, label=f"{name}: error")
        left.plot(rows["products"], rows["half_width"].clip(lower=1e-9), linestyle=":", color=color)
    left.set(xscale="log", yscale="log", xlabel="products per probe", ylabel="fraction of the mean")
    left.set_xticks([2, 8, 16, 32, 64], ["2", "8", "16", "32", "64"])
    left.minorticks_off()
    left.set_title(
        "One probe's error (solid, median of 64) and half-width of its bracket (dotted);\nbelow 1e-9 drawn at 1e-9",
        fontsize="small",
    )
    left.legend(frameon=False, fontsize="small")
    held = table[table["part"] == "coverage"]
    shares = held["coverage"].clip(upper=1 - 1e-12)
    error = 1.96 * (shares * (1 - shares) / held["seeds"]) ** 0.5
    right.errorbar(100 * shares, range(len(held)), xerr=100 * error, fmt="o", color="#1f77b4", capsize=3)
    labels = held["case"] + "\n" + held["method"]
    right.set_yticks(range(len(held)), labels, fontsize="small")
    right.axvline(95, color="black", linewidth=0.8, linestyle=":")
    right.set_xlabel("seeds whose 95 % interval holds the truth, %\n(bars: 95 % interval of that share)")
    right.set_title("Intervals hold about as often as they say", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement(
        "intervals", __doc__, {"prescribed": prescribed, "peer": peer, "coverage": coverage}, draw, tables
    )
