"""When is a stochastic estimate of the mean JSV worth it, and does `auto` choose the estimator with the shorter interval?

- Ten outputs (pretrained ResNet-56 on CIFAR-10): exact spectra give the shorter interval at the three budgets tried, 0.139 against
  0.177 of the mean at 300 products, 0.042 against 0.067 at 3,000.
- 1,000 outputs (a random ResNet-50 on random images): brackets give the shorter one at 2,500 products, 0.042 against 0.082; below 2,000
  exact spectra give none, as an interval takes two samples. Golub-Kahan brackets each of four samples' means to within 3 % with 12
  times fewer products and 9.0 times less time than exact spectra.
- `auto` gave the shorter interval at all six budgets; four of them were a choice.

One run each of two networks: where between 10 and 1,000 outputs the better choice changes was not tested.

Run `python analyses/budgets.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights; without
it a random ResNet-56 on random images is measured, and the table says so. Minutes of two cores.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56


def many_outputs(quick: bool) -> tuple[nn.Module, Tensor, str, int]:
    """Return a network without a narrow layer, 24 random images, its description and its number of outputs."""
    generator = torch.Generator().manual_seed(0)
    if quick:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(768, 400), nn.ReLU(), nn.Linear(400, 300)).eval()
        return net, torch.randn(24, 3, 16, 16, generator=generator), "random, 300 outputs", 300
    net = isometry.networks.build("resnet-50", 1000, seed=0, input_shape=(3, 64, 64)).eval()
    return net, torch.randn(24, 3, 64, 64, generator=generator), "resnet-50, random, 1000 outputs", 1000


def large(quick: bool) -> list[Row]:
    """Return exact against stochastic on a few samples of the network with many outputs."""
    net, x, case, _ = many_outputs(quick)
    x = x[: 2 if quick else 4]
    reports = {method: isometry.measure(net, x, method=method, progress=False) for method in ("exact", "krylov")}
    rows: list[Row] = [
        {"case": case, "method": method, "products": report.cost.products, "seconds": report.cost.seconds}
        for method, report in reports.items()
    ]
    brackets, truth = reports["krylov"].brackets, reports["exact"].sample_means
    assert brackets is not None
    lower, upper = brackets.lower, brackets.upper
    half = float(((upper - lower) / (upper + lower)).max())
    rows[1] |= {"half_width": half, "low": float((lower / truth).min()), "high": float((upper / truth).max())}
    return rows


def budget(quick: bool) -> list[Row]:
    """Return the half-width of the interval that a number of products buys, by estimator."""
    wide, few = many_outputs(quick), resnet_56(quick)
    wanted = [(*wide, limit) for limit in ((600,) if quick else (400, 1000, 2500))]
    small = (few[0], few[1], f"resnet-56, {few[2]}", 10)
    wanted += [(*small, limit) for limit in ((200,) if quick else (300, 1000, 3000))]
    rows: list[Row] = []
    for net, x, case, outputs, limit in wanted:
        # Two exact samples are the least that give an interval.
        for method in ("exact", "krylov", "auto") if limit >= 2 * outputs else ("krylov", "auto"):
            report = isometry.measure(net, x, method=method, budget=limit, progress=False)
            low, high = report.interval
            rows.append({"case": case, "method": method, "budget": limit, "half_width": (high - low) / 2 / report.mean_jsv,
                         "products": report.cost.products, "samples": len(report.spectrum), "chosen": report.method})  # fmt: skip
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return exact against stochastic, and what budgets buy, as markdown."""
    columns = {"case": "network", "method": "method", "products": "products"}
    large_columns = columns | {"seconds": "seconds", "half_width": "half-width"}
    large_rows = table[table["part"] == "large"]
    budget_columns = columns | {"budget": "budget", "samples": "samples"}
    budget_columns |= {"half_width": "half-width / mean", "chosen": "estimator"}
    rest = script.format_columns(table[table["part"] == "budget"], budget_columns)
    return f"{script.format_columns(large_rows, large_columns)}\n\n{rest}"


def short(table: pd.DataFrame) -> str:
    """Return the intervals at the largest budget of each network as markdown."""
    rows = table[table["part"] == "budget"]
    rows = rows[rows["budget"] == rows.groupby("case")["budget"].transform("max")]
    columns = {"case": "network", "method": "method", "products": "products", "half_width": "half-width / mean"}
    return script.format_columns(rows, columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw interval width against budget."""
    figure, ax = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for (case, method), rows in table[table["part"] == "budget"].groupby(["case", "method"], sort=False):
        auto = method == "auto"
        ax.plot(
            rows["budget"], rows["half_width"], {"exact": "-", "krylov": "--", "auto": ":"}[str(method)], marker="o",
            markersize=9 if auto else 5, fillstyle="none" if auto else "full",
            color="#1f77b4" if "56" in str(case) else "#ff7f0e", label=f"{case}: {method}",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="budget, products", ylabel="half-width of the 95 % interval / mean")
    ax.set_title("Ten outputs: exact is shorter; a thousand: brackets are; auto takes the shorter", fontsize="medium")
    ax.legend(frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement("budgets", __doc__, {"large": large, "budget": budget}, draw, tables)
