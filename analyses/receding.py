"""Do receding importances split into units that matter and units that can leave at no cost, in one shot?

In part (4 convolutions on digits, 3 seeds, mean ± standard deviation, strength x steps as published): with b = 3 importances
split into a heap below 1e-3 and one above 0.1, and half of all units leave in one shot without a loss (99.6 ± 0.3 % before
and after; 22.7 ± 10.4 % without the penalty, 20.4 ± 7.8 % by UCS). At 70 % the cut falls into the upper heap and accuracy is
gone (11.7 ± 2.7 %): the valley, not the ratio asked for, says how much can leave. With b = 0 everything recedes, what matters
too, and half cannot leave (41.2 ± 23.3 %). Slimming does as well as b = 3 here (99.3 ± 0.7 %). After 40 epochs of
fine-tuning the order is another: at 70 % UCS ends highest (99.9 ± 0.2 %) and RNI lowest (97.0 ± 2.0 %).

A small network with bounded BatchNorm is trained from scratch with and without the penalty; slimming and uniform pruning
(UCS) have the same network with ordinary BatchNorm. The published product of strength and training steps is kept: the
shorter the training, the stronger the penalty. PruningContext `python analyses/receding.py` for the bundled digits (minutes), with
`--dataset mnist` for MNIST, and with `--dataset cifar10 --network vgg-16 --device cuda` for the published setting; `--quick`
runs a tiny version, `--redraw` draws from the written table. Some 20 minutes of one core for the digits.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from tqdm.auto import tqdm

import isometry
from isometry import plots
from isometry.files import check_writable, markdown, write_table
from isometry.pruners.sparsifying import Sparsifying
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, provenance, run

SHOWN = (0.3, 0.5, 0.7, 0.9)
PUBLISHED_STEPS = 160 * 782  # 160 epochs of 50,000 images in batches of 64


def methods(epochs: int, steps: int) -> dict[str, Sparsifying]:
    """Return the pruners by name, with strengths for `steps` steps in place of the published number."""
    longer = PUBLISHED_STEPS / steps
    receding = isometry.RecedingBN(strength=1e-3 * longer, epochs=epochs)
    return {
        "RNI, b = 3": receding,
        "RNI, b = 0": replace(receding, strength=1e-4 * longer, shift=0.0),
        "bounded, no penalty": replace(receding, strength=0.0),
        "Slimming": isometry.Slimming(strength=1e-4 * longer, epochs=epochs),
        "UCS": isometry.Slimming(strength=0.0, epochs=epochs, scope="layer"),
    }


def trials(dataset: str, network: str, pruner: Sparsifying, ratios: list[float], seeds: int) -> list[Trial]:
    """Return the trials of one method: every ratio, one-shot and fine-tuned for a quarter of the epochs."""
    norm = "bounded" if isinstance(pruner, isometry.RecedingBN) else "batch"
    options: dict[str, Any] = {"norm": norm}
    if network == "conv-4":
        options["input_shape"] = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}.get(dataset, (1, 32, 32))
    tune = Recipe(0.1, max(1, pruner.epochs // 4), pruner.batch_size, schedule=Steps((0.5, 0.75)), nesterov=True)
    return [
        Trial(dataset, network, None, tune, pruner, ratio, seed=seed, options=options, autocast=dataset == "cifar10")
        for seed in range(seeds)
        for ratio in ratios
    ]


def histograms(dataset: str, network: str, epochs: int, pruners: dict[str, Sparsifying], device: str) -> pd.DataFrame:
    """Return importances over one training with each receding penalty and without: a row a (method, epoch, bin)."""
    data = isometry.data.load(dataset, validation=0)
    options: dict[str, Any] = {} if network == "vgg-16" else {"input_shape": data.input_shape}
    rows = []
    edges = np.linspace(-6, 0, 31)  # decades of importance
    for name, pruner in pruners.items():
        if not isinstance(pruner, isometry.RecedingBN):
            continue
        net = isometry.networks.build(network, data.classes, norm="bounded", seed=0, **options).to(device)
        epoch_numbers = tqdm(isometry.train(net, data, **pruner.recipe().arguments()), desc=name, total=epochs)
        for epoch in epoch_numbers:
            if epoch.number in {1, max(1, epochs // 16), max(1, epochs // 4), epochs}:
                every = torch.cat(list(isometry.networks.importances(net).values())).cpu().double()
                counts, _ = np.histogram(np.clip(np.log10(every.numpy()), -5.999, -1e-9), edges)
                rows += [
                    {"method": name, "epoch": epoch.number, "low": low, "high": high, "units": int(count)}
                    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
                ]
    return pd.DataFrame(rows).assign(phase="histogram")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies a method and ratio, one-shot and fine-tuned, mean and standard deviation over seeds as text."""
    lines: list[dict[str, Any]] = []
    for method, rows in table[table["phase"] != "histogram"].groupby("method", sort=False):
        whole = rows[rows["phase"] == "sparse"].drop_duplicates("seed")
        line: dict[str, Any] = {"method": method, "unpruned, %": _spread(whole["accuracy"])}
        for ratio in SHOWN:
            group = rows[rows["ratio"] == ratio]
            shot = group[group["phase"] == "pruned"]
            tuned = group[group["phase"] == "finetune"]
            last = tuned[tuned["epoch"] == tuned["epoch"].max()]
            if not len(group):
                continue
            line[f"{ratio:g}: one-shot"] = _spread(shot["accuracy"])
            line[f"{ratio:g}: fine-tuned"] = _spread(last["accuracy"])
        lines.append(line)
    return pd.DataFrame(lines)


def _spread(values: pd.Series) -> str:
    shown = 100 * values
    return f"{shown.mean():.1f}" + (f" ± {shown.std(ddof=1):.1f}" if len(values) > 1 else "")


def readme(table: pd.DataFrame) -> str:
    """Return the table of the README."""
    return markdown(summary(table))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw importances over training, and accuracy and mean JSV against the ratio."""
    heaps = table[table["phase"] == "histogram"]
    names = list(heaps["method"].unique())
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.6), layout="constrained")
    for ax, name in zip(axes[0], names, strict=False):
        rows = heaps[heaps["method"] == name]
        epochs = sorted(rows["epoch"].unique())
        shades = mpl.colormaps["viridis"](np.linspace(0.9, 0.0, len(epochs)))
        for shade, epoch in zip(shades, epochs, strict=True):
            part = rows[rows["epoch"] == epoch]
            ax.stairs(
                part["units"],
                [*part["low"], part["high"].iloc[-1]],
                color=shade,
                label=f"epoch {epoch:.0f}",
                linewidth=1.6,
            )
        ax.set(xlabel="log10 importance", ylabel="units (seed 0)", yscale="symlog")
        ax.set_title(name, fontsize="medium")
        ax.legend(frameon=False, fontsize="small", loc="upper center")
    pruned = table[table["phase"] == "pruned"]
    tuned = table[table["phase"] == "finetune"]
    last = tuned[tuned["epoch"] == tuned["epoch"].max()]
    for ax, rows, y, title in (
        (axes[1, 0], pruned, "accuracy", "just after pruning, in one shot"),
        (axes[1, 1], last, "accuracy", "after fine-tuning"),
        (axes[1, 2], pruned[pruned["mean_jsv"] > 0], "mean_jsv", "mean JSV just after pruning"),
    ):
        plots.sweep(rows, ax, y=y)
        ax.set_title(f"{title} (error bars: std over seeds)", fontsize="medium")
    figure.suptitle(sentence(table), fontsize="large")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def sentence(table: pd.DataFrame) -> str:
    """Return what the figure shows, from its numbers."""
    pruned = table[(table["phase"] == "pruned")]
    ratio = sorted(pruned["ratio"].unique())[len(pruned["ratio"].unique()) // 2]
    means = 100 * pruned[pruned["ratio"] == ratio].groupby("method", sort=False)["accuracy"].mean()
    told = ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
    return (
        f"{pruned['network'].iloc[0]} on {pruned['dataset'].iloc[0]}, {ratio:.0%} of the units cut in one shot: {told}"
    )


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist", "cifar10"], default="digits")
    parser.add_argument("--network", choices=["conv-4", "vgg-16"], default="conv-4")
    parser.add_argument("--quick", action="store_true", help="a tiny version")
    parser.add_argument("--redraw", action="store_true", help="draw from the written table, without training")
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--jobs", type=int, help="processes; default: the number of cores, 1 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trials keep their state")
    parser.add_argument("--out", type=Path, help="where table and figure go; default: a folder under --runs")
    options = parser.parse_args()
    mpl.use("Agg")
    if options.seeds < 1 or options.epochs < 1:
        parser.error(f"--seeds and --epochs got {options.seeds} and {options.epochs}; they take at least 1")
    if options.network == "vgg-16" and options.dataset != "cifar10":
        parser.error("--network vgg-16 takes --dataset cifar10")
    epochs, seeds, ratios = (2, 1, [0.5]) if options.quick else (options.epochs, options.seeds, options.ratios)
    name = f"{options.network}-{options.dataset}" + ("-quick" if options.quick else "")
    stem = (options.out or options.runs / f"receding-{name}") / "receding"
    if not options.redraw:
        check_writable(stem.parent)
        images = len(isometry.data.load(options.dataset, validation=0).train.targets)
        pruners = methods(epochs, epochs * -(-images // 64))
        wanted = {m: trials(options.dataset, options.network, p, ratios, seeds) for m, p in pruners.items()}
        every = [trial for each in wanted.values() for trial in each]
        run(every, options.runs, jobs=options.jobs, device=options.device, progress=True)
        parts = [run(each, options.runs, progress=False).assign(method=m) for m, each in wanted.items()]
        heaps = histograms(options.dataset, options.network, epochs, pruners, options.device)
        write_table(pd.concat([*parts, heaps], ignore_index=True), provenance(every, options.runs), stem)
    elif not stem.with_suffix(".csv").exists():
        parser.error(f"--redraw found no {stem.with_suffix('.csv')}; run without it first")
    table = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False, na_values=[""])
    draw(table, stem.with_suffix(".png"))
    print(readme(table))
    print(f"\nwrote {stem}.csv, .json, .png")


if __name__ == "__main__":
    main()
