"""Which repair without training for which pruner and ratio?

Reconstruction, at every ratio, for L1 and for Random, on both networks (given CIFAR-10 weights, units of every block's conv1 removed,
1,024 training images; accuracy at the first 2,000 test images, JSVs at 128; Random: mean ± standard deviation over 3 seeds; L1: one run).

- ResNet-56, L1, dense 92.95 % and a mean JSV of 12.6: at ratio 0.5 89.80 % and 12.56 (just pruned 40.20 % and 8.41, recalibrated 81.05 %
  and 15.21), at 0.7 81.10 % and 12.72 (recalibrated 53.25 % and 21.24), at 0.9 41.45 % and 4.94 (recalibrated 15.30 % and 16.72). Random:
  86.45 ± 0.79, 72.98 ± 1.33 and 38.72 ± 0.43 %. It takes 12 CPU seconds of one thread, 4 on ResNet-20.
- Solving for the last layer, too, is worth 0.3 and 0.8 points on ResNet-56 with L1 at 0.5 and 0.7 (6 and 16 of 2,000 images), 10.2 at 0.9
  (51.65 %), and up to 17 on ResNet-20; but it raises the mean JSV, at 0.7 from 12.72 to 16.29.
- Matching sums and solving downstream matter: without both ("no drift") 88.00, 66.75 and 17.60 %, with a mean JSV of 9.67, 6.49 and 0.38.
- That the mean JSV returns to the dense network's, within 1 %, is a result of L1 on ResNet-56 up to 0.7 only. ResNet-20
  with L1 (dense 15.9) stays at 13.15 and 12.22, Random on ResNet-56 at 11.93 ± 0.20 and 10.28 ± 0.97, and at 0.9 all stay at 16 to 39 % of it.
- Recalibrating after reconstruction costs accuracy in the mean of every case (0.5 to 26.6 points; one of 72 runs gained 1.1) and mostly takes
  the mean JSV above the dense one's. After OrthP it helps, but what results stays below 33 %; OrthP alone is near chance everywhere.

Not tested here: pruners that train, data other than training images. Fine-tuning of repaired networks: `repair_finetuning.py`; the number
of images, and networks without residual sums: `repair_images.py`. Run `OMP_NUM_THREADS=1 python analyses/repair.py --out figures`,
$ISOMETRY_DATA naming the folder with CIFAR-10 and the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from torch import nn
from tqdm.auto import tqdm

import isometry
from isometry.data import Data
from isometry.files import markdown
from isometry.trials import script
from isometry.trials.script import Row

RATIOS = (0.5, 0.7, 0.9)
TESTED = 2000  # first images of the test part, for the accuracy
IMAGES = 128  # of these, for JSVs
RECALIBRATED = " + recalibrate"


def repairs(dense: nn.Module, data: Data, seed: int) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Return every repair by its name."""
    reconstruct = partial(isometry.repair, reference=dense, data=data, seed=seed, progress=False)
    return {
        "none": lambda net: net,
        "OrthP": lambda net: isometry.orthogonalize(net, gain=math.sqrt(2)),
        "reconstruct, no drift": partial(reconstruct, downstream=False, match_sums=False),
        "reconstruct": reconstruct,
        "reconstruct, outputs too": partial(reconstruct, outputs=True),
    }


def evaluated(net: nn.Module, data: Data, images: int) -> Row:
    """Return the accuracy and the JSVs at the first test images."""
    split = (data.test.inputs[:TESTED], data.test.targets[:TESTED])
    report = isometry.measure(net, data.test.inputs[:images], progress=False)
    return {
        "accuracy": isometry.evaluate(net, split, batch_size=100).accuracy,
        "mean_jsv": report.mean_jsv,
        "sem": report.sem,
        "std_jsv": report.std_jsv,
    }


def measure_repairs(network: str, pruner: isometry.Pruner, seeds: int, quick: bool) -> list[Row]:
    """Return one row per ratio, seed and repair, and one of the dense network."""
    if quick:
        data = isometry.data.load("digits")
        dense = isometry.networks.build(network, input_shape=data.input_shape, seed=0)
        list(isometry.train(dense, data, lr=0.05, epochs=1, epoch_steps=3))
    else:
        data = isometry.data.load("cifar10", normalization=isometry.data.IMAGENET, validation=0)
        dense = isometry.networks.build(network, weights="cifar10").eval()
    images = 2 if quick else IMAGES
    rows = [{"network": network, "pruner": "dense", "ratio": 0.0, **evaluated(dense, data, images)}]
    cases = [(ratio, seed) for ratio in RATIOS for seed in range(seeds)]
    for ratio, seed in tqdm(cases[: 1 if quick else None], desc=network, unit="network"):
        pruned = isometry.prune(
            dense, pruner, ratio, layers="layer*.conv1", inputs=data.train.inputs[:2], seed=seed
        ).model
        cell = {"network": network, "pruner": type(pruner).__name__, "ratio": ratio, "seed": seed}
        for name, repair in repairs(dense, data, seed).items():
            start = time.process_time()
            repaired = repair(pruned)
            seconds = time.process_time() - start
            recalibrated = isometry.recalibrate(repaired, data, samples=1024, seed=seed)
            for net, suffix in ((repaired, ""), (recalibrated, RECALIBRATED)):
                method = (name + suffix).removeprefix("none + ")
                rows.append({**cell, "method": method, "repair_seconds": seconds, **evaluated(net, data, images)})
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return accuracy in % and mean JSV by method, one column per ratio, mean ± standard deviation over seeds."""
    lines: list[dict[str, Any]] = []
    for (network, pruner), part in table[table["pruner"] != "dense"].groupby(["network", "pruner"], sort=False):
        dense = table[(table["pruner"] == "dense") & (table["network"] == network)].iloc[0]
        jsv = f"{100 * dense['accuracy']:.2f} / {dense['mean_jsv']:.1f}"
        for method, group in part.groupby("method", sort=False):
            line = {"network": network, "pruner": pruner, "repair": method, "dense": jsv}
            for ratio, rows in group.groupby("ratio"):
                accuracy = script.format_spread(100 * rows["accuracy"], 2)
                line[f"{ratio:g}: % / mean JSV"] = f"{accuracy} / {script.format_spread(rows['mean_jsv'], 2)}"
            lines.append(line | {"CPU seconds": f"{group['repair_seconds'].median():.1f}"})
    return markdown(pd.DataFrame(lines).fillna(""))


def short(table: pd.DataFrame) -> str:
    """Return L1 on ResNet-56 with four repairs."""
    shown = ["none", "recalibrate", "OrthP", "reconstruct", "reconstruct, outputs too"]
    rows = table[(table["pruner"] == "L1") & table["method"].isin(shown)]
    return tables(pd.concat([table[table["pruner"] == "dense"], rows[rows["network"] == rows["network"].iloc[-1]]]))


def _seeds(rows: pd.DataFrame) -> str:
    count = rows["seed"].nunique()
    return f"{count} seeds" if count > 1 else "one run"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy above and the mean JSV below against the ratio, one column per network and pruner."""
    groups = list(table[table["pruner"] != "dense"].groupby(["network", "pruner"], sort=False))
    figure, axes = plt.subplots(2, len(groups), figsize=(4.6 * len(groups), 7.6), layout="constrained", squeeze=False)
    for column, ((network, pruner), part) in enumerate(groups):
        dense = table[(table["pruner"] == "dense") & (table["network"] == network)].iloc[0]
        for ax, y, scale in zip(axes[:, column], ("accuracy", "mean_jsv"), (100, 1), strict=True):
            for index, (method, rows) in enumerate(part.groupby("method", sort=False)):
                over = (scale * rows.set_index("ratio")[y]).groupby(level=0).agg(["mean", "std"]).fillna(0)
                style = "--" if str(method).endswith("recalibrate") else "-"
                ax.errorbar(
                    over.index, over["mean"], over["std"], color=f"C{index // 2}", linestyle=style, marker="o",
                    markersize=4, capsize=3, label=method,
                )  # fmt: skip
            ax.axhline(scale * dense[y], color="black", linewidth=1, linestyle=":", label="dense")
            ax.set_xticks(sorted(part["ratio"].unique()))
            ax.set_xlabel("ratio of the units of every block's conv1")
        axes[0, column].set_ylabel(f"accuracy at {TESTED} test images, %")
        axes[0, column].set_title(f"{network}, {pruner}, {_seeds(part)}", fontsize="medium")
        axes[1, column].set_ylabel(f"mean JSV at {IMAGES} test images")
        axes[1, column].set_yscale("log")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    best = table[(table["network"] == table["network"].iloc[-1]) & (table["pruner"] == "L1")]
    means = best[best["ratio"] == best["ratio"].max()].set_index("method")["accuracy"]
    if {"recalibrate", "reconstruct"} <= set(means.index):
        figure.suptitle(
            f"Without training, {best['network'].iloc[0]} at ratio {best['ratio'].max():g} (L1): pruned {100 * means['none']:.1f} %, "
            f"recalibrated {100 * means['recalibrate']:.1f} %, reconstructed {100 * means['reconstruct']:.1f} %, with the last "
            f"layer {100 * means['reconstruct, outputs too']:.1f} %\nbars: one standard deviation over seeds; dashed: then recalibrated"
        )
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {
    f"{network}-{name}": partial(measure_repairs, network, pruner, seeds)
    for name, pruner, seeds in (("l1", isometry.L1(), 1), ("random", isometry.Random(), 3))
    for network in ("resnet-20", "resnet-56")
}

if __name__ == "__main__":
    script.run_measurement("repair", __doc__, PARTS, draw, tables)
