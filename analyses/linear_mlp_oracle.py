"""Does recovering or preserving dynamical isometry explain what fine-tuning recovers after pruning?

Yes, on MNIST at the published recipe (3 seeds, mean ± standard deviation; dense 92.62 ± 0.03 %, mean JSV 2.503 ± 0.004,
published 2.499). With 90 % of the units removed and 30 epochs of fine-tuning at lr 0.01 / 0.001:

- L1 falls to a mean JSV of 0.0002 and ends at 85.7 ± 3.3 / 43.2 ± 10.9 %; three times the epochs give 87.8 ± 0.1 / 80.2 ± 2.7 %.
- L1 with every JSV set back to 1 ends at 92.54 ± 0.02 / 92.56 ± 0.04 %, the dense accuracy: nothing was lost but
  trainability. So does randomly pruned with the oracle, 92.49 ± 0.03 / 92.46 ± 0.08 %.
- TPP keeps a mean JSV of 3.56 ± 0.05 and 92.05 ± 0.09 % before any fine-tuning, and ends at 92.21 ± 0.03 / 92.17 ± 0.05 %.
- GReg, the growing penalty without TPP's Gram term, keeps as much (3.17 ± 0.12; 92.24 ± 0.08 / 92.30 ± 0.14 %) but is 3 points
  behind just after pruning (89.02 ± 0.88 %): on this net most of the preservation is the slow penalty's.
- The larger rate masks broken trainability: it closes most of the gap that the smaller one leaves open.

TPP trained for 110,000 steps before removal and GReg for 82,360 to 110,000; the one-shot pruners and the oracle for none.

PruningContext `python analyses/linear_mlp_oracle.py` for the bundled digits (a shortened schedule, minutes), with
`--dataset mnist --out figures` for the published recipe on MNIST (hours of one core). `--redraw` draws from the
written table without training; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import isometry
from isometry import plots
from isometry.files import check_writable, markdown, write_table
from isometry.training.recipe import Recipe
from isometry.trials import Trial, provenance, run

# Mean JSV of the just-pruned MLP-7-Linear on MNIST by L1, as plotted by Wang et al. 2021 (arXiv 2105.05916).
PUBLISHED = {0.1: 1.7132, 0.3: 0.5325, 0.5: 0.1180, 0.7: 0.0151, 0.9: 0.0004}
NAMES = {"random": "Random", "l1": "L1", "greg": "GReg", "tpp": "TPP"}


def trials(dataset: str, ratios: list[float], seeds: int, quick: bool) -> list[Trial]:
    """Return every trial of the question: four pruners, with and without the oracle, two rates, and the control."""
    grow: dict[str, Any]
    if quick:
        shape, pretrain, epochs = (1, 8, 8), Recipe(1e-2, 10, 32), 2
        grow = {"delta": 2e-2, "interval": 2, "stabilize": 60, "zero_out": 10, "batch_size": 128}
    elif dataset == "digits":
        shape, pretrain, epochs = (1, 8, 8), Recipe(1e-2, 90, 32), 15
        grow = {"delta": 2.5e-3, "interval": 5, "stabilize": 700, "zero_out": 100, "batch_size": 128}
    else:
        shape, pretrain, epochs = (1, 32, 32), Recipe(1e-2, 90), 30
        grow = {"delta": 1e-4, "interval": 10, "stabilize": 10_000, "batch_size": 256}
    grow["weight_decay"] = 1e-4
    pruners = [
        isometry.Random(),
        isometry.L1(),
        isometry.GReg(**{**grow, "zero_out": None}),
        isometry.TPP(**grow),
    ]
    found = []
    for seed in range(seeds):
        base: dict[str, Any] = {"dataset": dataset, "network": "mlp-7-linear", "pretrain": pretrain, "seed": seed}
        base["options"] = {} if dataset != "digits" else {"input_shape": shape}
        for pruner, ratio, lr in itertools.product(pruners, ratios, (1e-2, 1e-3)):
            recipe = Recipe(lr, epochs, pretrain.batch_size)
            repairs = [None, "oracle"] + (["scratch"] if isinstance(pruner, isometry.L1) else [])
            found += [Trial(**base, finetune=recipe, pruner=pruner, ratio=ratio, repair=repair) for repair in repairs]
        if dataset == "mnist":  # does one-shot pruning only need longer?
            found += [
                Trial(**base, finetune=Recipe(lr, 3 * epochs), pruner=isometry.L1(), ratio=ratio)
                for ratio, lr in itertools.product(ratios, (1e-2, 1e-3))
            ]
        # The published curve: mean JSV of the just-pruned network against the ratio.
        found += [Trial(**base, pruner=isometry.L1(), ratio=ratio) for ratio in PUBLISHED]
    return found


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of fine-tuned trials with a `method` column and one epoch-0 row each, just before fine-tuning."""
    rows = table[table["lr"].notna() & (table["phase"] != "dense")].copy()
    rows["method"] = rows["pruner"].map(NAMES).fillna(rows["pruner"])
    rows.loc[rows["repair"] == "oracle", "method"] += " + oracle"
    rows.loc[rows["repair"] == "scratch", "method"] = "scratch"
    longer = rows["epochs"] > rows["epochs"].min()
    rows.loc[longer, "method"] += ", " + rows.loc[longer, "epochs"].astype(int).astype(str) + " epochs"
    return rows[(rows["repair"] == "none") | (rows["phase"] != "pruned")]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results a method and ratio: mean and standard deviation over seeds, as text."""
    rows = named(table)
    lines: list[dict[str, Any]] = []
    dense = table[table["phase"] == "dense"].drop_duplicates("seed")
    lines.append(
        {"ratio": "", "network": "dense", "mean JSV": _spread(dense["mean_jsv"], 4), "accuracy": _percent(dense)}
    )
    for (ratio, method), group in rows.groupby(["ratio", "method"], sort=False):
        start = group[(group["epoch"] == 0)].drop_duplicates("seed")
        line = {
            "ratio": f"{ratio:g}",
            "network": method,
            "mean JSV": _spread(start["mean_jsv"], 4),
            "accuracy": _percent(start),
        }
        for lr, tuned in group[group["phase"] == "finetune"].groupby("lr", sort=False):
            first = tuned[tuned["epoch"] == 1]
            last = tuned[tuned["epoch"] == tuned["epoch"].max()]
            line[f"epoch 1, lr {lr:g}"] = _percent(first)
            line[f"final, lr {lr:g}"] = _percent(last)
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def readme(table: pd.DataFrame) -> str:
    """Return the table of the README."""
    return markdown(summary(table))


def _spread(values: pd.Series, digits: int) -> str:
    return (
        f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
        if len(values) > 1
        else f"{values.mean():.{digits}f}"
    )


def _percent(rows: pd.DataFrame) -> str:
    return _spread(100 * rows["accuracy"], 2)


def draw(table: pd.DataFrame, path: Path, dataset: str) -> None:
    """Draw trajectories a ratio and rate, final accuracy against the JSV before fine-tuning, and the published curve."""
    rows = named(table)
    rows = rows[rows["epochs"] == rows["epochs"].min()]
    ratios, rates = sorted(rows["ratio"].unique()), sorted(rows["lr"].unique(), reverse=True)
    figure = plt.figure(figsize=(4.1 * 2 * len(ratios), 3.1 * len(rates) + 3.9), layout="constrained")
    grid = figure.add_gridspec(len(rates) + 1, 2 * len(ratios), height_ratios=[*([1] * len(rates)), 1.25])
    for row, lr in enumerate(rates):
        for column, (ratio, y) in enumerate(itertools.product(ratios, ("mean_jsv", "accuracy"))):
            ax = figure.add_subplot(grid[row, column])
            plots.trajectory(rows[(rows["ratio"] == ratio) & (rows["lr"] == lr)], ax, y=y)
            ax.set_title(f"ratio {ratio:g}, lr {lr:g}", fontsize="medium")
            if y == "accuracy":
                ax.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    explains(rows, figure.add_subplot(grid[len(rates), : len(ratios)]))
    right = figure.add_subplot(grid[len(rates), len(ratios) :])
    swept = table[(table["phase"] == "pruned") & (table["pruner"] == "l1") & table["lr"].isna()].assign(
        method="L1, here"
    )
    plots.sweep(swept, right)
    right.set_title("mean JSV just after L1 pruning (error bars: std over seeds)", fontsize="medium")
    if dataset == "mnist":
        right.plot(list(PUBLISHED), list(PUBLISHED.values()), "kx", label="L1, published (one run)")
        right.legend(frameon=False)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(sentence(rows, dataset), fontsize="large")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def explains(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw the final accuracy of every trial against its mean JSV just before fine-tuning, a marker a rate."""
    keys = ["trial", "method", "lr"]
    start = rows[rows["epoch"] == 0].groupby(keys)["mean_jsv"].first()
    tuned = rows[rows["phase"] == "finetune"].sort_values("epoch").groupby(keys)["accuracy"].last()
    joined = pd.concat([start, tuned], axis=1).reset_index().dropna()
    for (found, lr), group in joined.groupby(["method", "lr"], sort=False):
        method = str(found)
        filled = plots.color(method) if "+" not in method else "none"
        marker = "o" if lr == joined["lr"].max() else "s"
        ax.scatter(
            group["mean_jsv"],
            group["accuracy"],
            marker=marker,
            s=34,
            facecolors=filled,
            edgecolors=plots.color(method),
        )
    for lr, marker in ((joined["lr"].max(), "o"), (joined["lr"].min(), "s")):
        ax.scatter([], [], marker=marker, color="k", label=f"lr {lr:g}")
    ax.scatter([], [], marker="o", facecolors="none", edgecolors="k", label="open: with the oracle")
    ax.set_xscale("log")
    ax.axvline(1, color="#d62728", linewidth=1, linestyle=":")
    ax.set_xlabel("mean JSV just before fine-tuning")
    ax.set_ylabel("test accuracy at the end of fine-tuning")
    correlation = joined["mean_jsv"].clip(lower=1e-12).rank().corr(joined["accuracy"].rank())
    ax.set_title(f"a point a trial; rank correlation {correlation:.2f}", fontsize="medium")
    ax.legend(frameon=False)


def sentence(rows: pd.DataFrame, dataset: str) -> str:
    """Return what the figure shows, from its numbers."""
    ratio, lr = rows["ratio"].max(), rows["lr"].min()
    part = rows[(rows["ratio"] == ratio) & (rows["lr"] == lr)]
    last = part[part["epoch"] == part["epoch"].max()].groupby("method")["accuracy"].mean() * 100
    start = part[part["epoch"] == 0].groupby("method")["mean_jsv"].mean()
    told = [f"{name} {last[name]:.1f} % (JSV {start[name]:.2g})" for name in ("L1", "L1 + oracle", "TPP")]
    return (
        f"MLP-7-Linear on {dataset}, {ratio:.0%} of the units removed, fine-tuned at lr {lr:g}: {', '.join(told)}\n"
        "lines: mean over seeds, bands: one standard deviation; JSV in brackets: just before fine-tuning"
    )


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist"], default="digits")
    parser.add_argument("--quick", action="store_true", help="a tiny schedule, to see that everything runs")
    parser.add_argument("--redraw", action="store_true", help="draw from the written table, without training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--jobs", type=int, help="processes; default: the number of cores")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trials keep their state")
    parser.add_argument("--out", type=Path, help="where table and figure go; default: a folder under --runs")
    options = parser.parse_args()
    mpl.use("Agg")
    if options.seeds < 1:
        parser.error(f"--seeds got {options.seeds}; it takes at least 1, e.g. --seeds 3")
    if options.quick and options.dataset != "digits":
        parser.error("--quick runs on the bundled digits only")
    name = f"{options.dataset}-quick" if options.quick else options.dataset
    stem = (options.out or options.runs / f"linear_mlp_oracle-{name}") / "linear_mlp_oracle"
    if not options.redraw:
        check_writable(stem.parent)
        wanted = trials(options.dataset, options.ratios, 1 if options.quick else options.seeds, options.quick)
        table = run(wanted, options.runs, jobs=options.jobs, progress=True)
        write_table(table, provenance(wanted, options.runs), stem)
    elif not stem.with_suffix(".csv").exists():
        parser.error(f"--redraw found no {stem.with_suffix('.csv')}; run without it first")
    table = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False, na_values=[""])
    draw(table, stem.with_suffix(".png"), options.dataset)
    print(readme(table))
    print(f"\nwrote {stem}.csv, .json, .png")


if __name__ == "__main__":
    main()
