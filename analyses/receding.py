"""Do receding importances separate units that matter from units that can be removed at no cost, in one shot?

In part. A small network (4 convolutions) on digits, 3 seeds, 360 test images, mean ± standard deviation; the penalty's strength times its
steps is the published product:

- With b = 3 importances split into a group below 1e-3 and one above 0.1 (98 and 92 of 192 units, 2 between; seed 0), and half of all units
  can be removed in one shot without a loss (99.6 ± 0.3 % before and after; 22.7 ± 10.4 % without the penalty, 20.4 ± 7.8 % by UCS). At 70 %
  the threshold falls into the upper group and accuracy is near chance (11.7 ± 2.7 %): how much can be removed is set by the training, not
  by the ratio.
- With b = 0 most importances recede (162 of 192 units are below 0.1; seed 0), also of units that matter, and half cannot be removed
  (41.2 ± 23.3 %).
- Slimming does as well as b = 3 here (99.3 ± 0.7 % at half); 3 seeds do not tell them apart.
- After 40 epochs of fine-tuning at 70 % UCS is highest (99.9 ± 0.2 %) and RNI, b = 3 lowest (97.0 ± 2.0 %): small differences on an easy
  task.

Not tested: other strengths, and the published setting (`--dataset cifar10 --network vgg-16 --device cuda`). Networks with bounded BatchNorm
are trained from scratch; Slimming and uniform pruning (UCS) have ordinary BatchNorm. `--out figures`: 20 minutes of one core on the digits.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from tqdm.auto import tqdm

import isometry
from isometry import plots
from isometry.files import markdown
from isometry.pruners.sparsifying import Sparsifying
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, script
from isometry.trials.outcomes import last_epoch, percent

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
    options: dict[str, Any] = {"norm": "bounded" if isinstance(pruner, isometry.RecedingBN) else "batch"}
    if network == "conv-4":
        options["input_shape"] = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}.get(dataset, (1, 32, 32))
    tune = Recipe(0.1, max(1, pruner.epochs // 4), pruner.batch_size, schedule=Steps((0.5, 0.75)), nesterov=True)
    common: dict[str, Any] = {"options": options, "autocast": dataset == "cifar10"}
    every = itertools.product(range(seeds), ratios)
    return [Trial(dataset, network, None, tune, pruner, ratio, seed=seed, **common) for seed, ratio in every]


def histograms(dataset: str, network: str, epochs: int, pruners: dict[str, Sparsifying], device: str) -> pd.DataFrame:
    """Return importances over one training with each receding penalty and without: one row per (method, epoch, bin)."""
    data = isometry.data.load(dataset, validation=0)
    options: dict[str, Any] = {} if network == "vgg-16" else {"input_shape": data.input_shape}
    rows = []
    edges = np.linspace(-6, 0, 31)  # decades of importance
    for name, pruner in ((n, p) for n, p in pruners.items() if isinstance(p, isometry.RecedingBN)):
        net = isometry.networks.build(network, data.classes, norm="bounded", seed=0, **options).to(device)
        for epoch in tqdm(isometry.train(net, data, **pruner.recipe().arguments()), desc=name, total=epochs):
            if epoch.number in {1, max(1, epochs // 16), max(1, epochs // 4), epochs}:
                every = torch.cat(list(isometry.networks.importances(net).values())).cpu().double()
                counts, _ = np.histogram(np.clip(np.log10(every.numpy()), -5.999, -1e-9), edges)
                rows += [
                    {"method": name, "epoch": epoch.number, "low": low, "high": high, "units": int(count)}
                    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
                ]
    return pd.DataFrame(rows).assign(phase="histogram")


def summary(table: pd.DataFrame, ratios: tuple[float, ...] = SHOWN) -> pd.DataFrame:
    """Return one row per method: accuracy in one shot and fine-tuned, mean and standard deviation over seeds, as text."""
    lines: list[dict[str, Any]] = []
    for method, rows in table[table["phase"] != "histogram"].groupby("method", sort=False):
        unpruned = rows[rows["phase"] == "sparse"].drop_duplicates("seed")
        line: dict[str, Any] = {"method": method, "unpruned, %": percent(unpruned, 1)}
        for ratio in [ratio for ratio in ratios if ratio in set(rows["ratio"])]:
            group = rows[rows["ratio"] == ratio]
            line[f"{ratio:g}: one-shot"] = percent(group[group["phase"] == "pruned"], 1)
            line[f"{ratio:g}: fine-tuned"] = percent(last_epoch(group), 1)
        lines.append(line)
    return pd.DataFrame(lines)


def tables(table: pd.DataFrame) -> str:
    """Return accuracies in %, by method and ratio."""
    return markdown(summary(table))


def short(table: pd.DataFrame) -> str:
    """Return accuracies in % at half of the units."""
    return markdown(summary(table, (0.5,)))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw importances over training, and accuracy and mean JSV against the ratio."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.6), layout="constrained")
    for ax, (_, rows) in zip(axes[0], table[table["phase"] == "histogram"].groupby("method", sort=False), strict=True):
        plots.importance_history(rows, ax)
    pruned = table[table["phase"] == "pruned"]
    plots.sweep(pruned, axes[1, 0], y="accuracy").set_title("just after pruning, in one shot", fontsize="medium")
    plots.sweep(last_epoch(table), axes[1, 1], y="accuracy").set_title(
        "after fine-tuning (bars: std over seeds)", fontsize="medium"
    )
    plots.sweep(pruned[pruned["mean_jsv"] > 0], axes[1, 2]).set_title(
        "mean JSV just after pruning (dotted red: 1)", fontsize="medium"
    )
    ratio = float(pruned["ratio"].median())
    means = 100 * pruned[pruned["ratio"] == ratio].groupby("method", sort=False)["accuracy"].mean()
    results = "; ".join(f"{name}: {value:.1f} %" for name, value in means.items())
    title = f"{pruned['network'].iloc[0]} on {pruned['dataset'].iloc[0]}, {100 * ratio:g} % of the units removed in one shot. {results}"
    figure.suptitle(title, fontsize="large")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=(0.1, 0.3, 0.5, 0.7, 0.9), device=True)
    parser.add_argument(
        "--dataset", choices=["digits", "mnist", "fashion-mnist", "cifar10"], default="digits", help="images"
    )
    parser.add_argument("--network", choices=["conv-4", "vgg-16"], default="conv-4", help="which network")
    parser.add_argument("--epochs", type=script.positive, default=160, help="of training, sparse")
    options = script.parse(parser, quick_ignores=("epochs", "ratios", "seeds"))
    if options.network == "vgg-16" and options.dataset != "cifar10":
        parser.error("argument --network: vgg-16 takes CIFAR-10 images, e.g. --network vgg-16 --dataset cifar10")
    epochs, seeds, ratios = (2, 1, [0.5]) if options.quick else (options.epochs, options.seeds, options.ratios)
    output = script.Output.of("receding", options, f"{options.network}-{options.dataset}")
    if not options.redraw:
        images = len(isometry.data.load(options.dataset, validation=0).train.targets)
        pruners = methods(epochs, epochs * -(-images // 64))
        every = [(m, t) for m, p in pruners.items() for t in trials(options.dataset, options.network, p, ratios, seeds)]
        table, origin = output.run_trials([trial for _, trial in every], [{"method": method} for method, _ in every])
        parts = [table, histograms(options.dataset, options.network, epochs, pruners, options.device)]
        output.write(pd.concat(parts, ignore_index=True), origin)
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
