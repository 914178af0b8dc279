"""How many images does a reconstruction need?

About a thousand, or fewer: on LeNet-5 and ResNet-56 more than 1,024 gain at most 0.5 points, on conv-4 more than 64 gain at most three. Units
removed by L1, all 10,000 test images (JSVs at 64), no training; one trained network each; mean ± standard deviation over three draws of the
images, one on ResNet-56.

- LeNet-5 (MNIST, dense 98.56 %, units of all layers): at 0.5 64 images give 97.10 ± 0.12 %, 1,024 give 97.97 ± 0.03, 4,096 98.00 ± 0.06
  (not repaired 95.91). At 0.7 85.92 ± 2.24, 94.34 ± 0.05 and 94.66 ± 0.09 (51.27). At 0.9 47.48 ± 5.27, 67.78 ± 0.96 and 67.52 ± 0.47 (25.82).
- conv-4 (MNIST, trained for one epoch, dense 90.23 %): at 0.5 85.22 ± 0.65, 85.64 ± 0.18 and 85.67 ± 0.05 (15.83), at 0.7 62.35 ± 3.20,
  63.28 ± 0.62 and 63.76 ± 0.11 (9.74), at 0.9 24.15 ± 2.04, 26.58 ± 0.60 and 26.77 ± 0.20 (10.28).
- ResNet-56 with its given weights (CIFAR-10, dense 93.39 %, units of every block's conv1): at 0.5 85.50, 90.22 and 90.28 % (39.35), at 0.7
  67.91, 80.96 and 81.46 (9.96), at 0.9 28.66, 41.40 and 41.00 (10.03), where 512 images are enough.
- The mean JSV mostly comes down as images are added. ResNet-56 (dense 12.55): 15.63 to 12.44 at 0.5, 19.29 to 12.35 at 0.7, 19.60 to 4.76 at
  0.9. LeNet-5 (dense 0.52): 1.11 to 0.68 at 0.7; conv-4 (dense 1.71): 2.39 to 2.25 at 0.5, above the dense network's with any number there
  and at 0.7.

Run `python analyses/repair_images.py --out figures`, or parts of it with `--only`, $ISOMETRY_DATA naming the folder with MNIST, CIFAR-10 and
the weights: a minute or two of one core for LeNet-5 and conv-4, one for each ratio and number of images of ResNet-56.
"""

from __future__ import annotations

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

IMAGES = (64, 128, 256, 512, 1024, 2048, 4096)


def evaluated(net: nn.Module, data: Data) -> Row:
    """Return the accuracy at all test images and the mean JSV at the first 64."""
    report = isometry.measure(net, data.test.inputs[:64], progress=False)
    accuracy = isometry.evaluate(net, data.test, batch_size=100).accuracy
    return {"accuracy": accuracy, "mean_jsv": report.mean_jsv, "tested": len(data.test.targets)}


def reconstructed(
    network: str, dense: nn.Module, data: Data, cases: list[tuple[float, int]], layers: str | None, draws: int
) -> list[Row]:
    """Return one row of the dense network, one per ratio just pruned, and one per (ratio, images) and draw."""
    rows = [{"network": network, "ratio": 0.0, "images": 0, **evaluated(dense, data)}]
    pruned: dict[float, nn.Module] = {}
    for ratio, images in tqdm(cases, desc=network, unit="repair"):
        if ratio not in pruned:
            pruned[ratio] = isometry.prune(
                dense, isometry.L1(), ratio, layers=layers, inputs=data.train.inputs[:2]
            ).model
            rows.append({"network": network, "ratio": ratio, "images": 0, **evaluated(pruned[ratio], data)})
        for draw_number in range(draws):
            net = isometry.repair(
                pruned[ratio], reference=dense, data=data, samples=images, seed=draw_number, progress=False
            )
            cell = {"network": network, "ratio": ratio, "images": images, "seed": draw_number}
            rows.append({**cell, **evaluated(net, data)})
    return rows


def resnet(cases: list[tuple[float, int]], quick: bool) -> list[Row]:
    """Return ResNet-56 with its given weights on CIFAR-10, one draw (a ResNet-20 on digits where quick)."""
    if quick:
        data = isometry.data.load("digits")
        dense = isometry.networks.build("resnet-20", input_shape=data.input_shape, seed=0)
        list(isometry.train(dense, data, lr=0.05, epochs=1, epoch_steps=3))
        return reconstructed("resnet-20", dense, data, [(cases[0][0], 64)], "layer*.conv1", 1)
    data = isometry.data.load("cifar10", normalization=isometry.data.IMAGENET, validation=0)
    dense = isometry.networks.build("resnet-56", weights="cifar10").eval()
    return reconstructed("resnet-56", dense, data, cases, "layer*.conv1", 1)


def small(network: str, quick: bool) -> list[Row]:
    """Return a network trained on MNIST (conv-4 on digits where quick), every ratio and number of images, three draws."""
    network = "conv-4" if quick else network
    data = isometry.data.load("digits" if quick else "mnist", validation=0)
    options: dict[str, Any] = (
        {"input_shape": data.input_shape, "widths": (16, 16, 32, 32)} if network == "conv-4" else {}
    )
    dense = isometry.networks.build(network, seed=0, **options)
    list(isometry.train(dense, data, lr=1e-2, epochs=1 if network == "conv-4" else 2, batch_size=64, seed=0))
    images = IMAGES[:2] if quick else IMAGES
    return reconstructed(
        network, dense, data, [(r, n) for r in (0.5, 0.7, 0.9) for n in images], None, 1 if quick else 3
    )


def tables(table: pd.DataFrame) -> str:
    """Return accuracy in % and mean JSV by network, ratio and number of images; 0 images: just pruned."""
    lines = []
    table = table.drop_duplicates(["network", "ratio", "images", "seed"])  # parts share the dense network
    for (network, ratio), part in table.groupby(["network", "ratio"], sort=False):
        line: dict[str, Any] = {"network": network, "ratio": f"{ratio:g}" if ratio else "dense"}
        for images, rows in part.groupby("images"):
            jsv = script.format_spread(rows["mean_jsv"], 2)
            heading = f"{images!s} images" if images else "not repaired"
            line[heading] = f"{script.format_spread(100 * rows['accuracy'], 2)} / {jsv}"
        lines.append(line)
    headings = ["network", "ratio", "not repaired", *(f"{images} images" for images in IMAGES)]
    return markdown(pd.DataFrame(lines).reindex(columns=headings).dropna(axis=1, how="all").fillna(""))


def short(table: pd.DataFrame) -> str:
    """Return the first network."""
    return tables(table[table["network"] == table["network"].iloc[0]])


def message(table: pd.DataFrame) -> str:
    """Return what a fourfold number of images gains at most, over networks and ratios, up to the largest number."""
    means = 100 * table[table["images"] > 0].groupby(["network", "ratio", "images"])["accuracy"].mean().unstack()
    counts = sorted(table.loc[table["images"] > 0, "images"].unique())
    most = counts[-1]
    first = next(count for count in counts if count >= most / 4)
    gains = (means[most] - means[first]).dropna()
    return (
        f"Reconstructed without training, networks pruned by L1 gain at most {gains.max():.1f} points from {first:,} to {most:,} images\n"
        "(bars: std over draws of the images; ResNets: one draw)"
    )


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy and mean JSV against the number of images, one column per network."""
    names, ratios = list(table["network"].unique()), sorted(table.loc[table["ratio"] > 0, "ratio"].unique())
    figure, axes = plt.subplots(
        2, len(names), figsize=(max(4.6 * len(names), 8), 7), layout="constrained", squeeze=False
    )
    for column, name in enumerate(names):
        part = table[table["network"] == name]
        for ax, y, scale in ((axes[0, column], "accuracy", 100), (axes[1, column], "mean_jsv", 1)):
            for ratio, rows in part[part["ratio"] > 0].groupby("ratio"):
                over = (scale * rows[rows["images"] > 0].set_index("images")[y]).groupby(level=0).agg(["mean", "std"])
                ax.errorbar(
                    over.index, over["mean"], over["std"].fillna(0), color=f"C{ratios.index(ratio)}", marker="o", markersize=4,
                    capsize=3, label=f"ratio {ratio:g}",
                )  # fmt: skip
            ax.axhline(scale * part[part["ratio"] == 0][y].iloc[0], color="black", linestyle=":", label="dense")
            ax.set(xscale="log", xlim=(IMAGES[0] / 1.3, IMAGES[-1] * 1.3), xlabel="images that reconstruction sees")
        axes[0, column].set(title=name, ylabel=f"accuracy at {part['tested'].iloc[0]} test images, %")
        axes[1, column].set_ylabel("mean JSV at 64 test images")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(message(table))
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "resnet-56-0.7": partial(resnet, [(0.7, 1024)]),
    "resnet-56-0.9": partial(resnet, [(0.9, 1024)]),
    "resnet-56-0.5": partial(resnet, [(0.5, 1024)]),
    "lenet-5-relu": partial(small, "lenet-5-relu"),
    "conv-4": partial(small, "conv-4"),
    **{
        f"resnet-56-images{label}": partial(resnet, [(ratio, images) for images in IMAGES if images != 1024])
        for label, ratio in (("", 0.7), ("-0.5", 0.5), ("-0.9", 0.9))
    },
}

if __name__ == "__main__":
    script.run_measurement("repair_images", __doc__, PARTS, draw, tables)
