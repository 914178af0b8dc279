"""How many products give the mean JSV of a network with about 1,000 outputs to 3 %, for one sample and for 32?

One sample takes on average 58 products (four random convolutions) to 270 (VGG-16), single runs 54 to 382, where runs alone with certified
brackets take 266 to 58,000 and all values 512 (VGG-16, whose last layer reads as many features) to 1,000; the aim of 60 is reached on the random
convolutions only. 60 products tell the mean to 2.9 % there, to 5.2 to 8.4 % on the four other random networks and to 18 % on the trained one.
Of 32 samples, 800 products (25 each) give 1.3 to 2.8 % on the five random networks, and 11.4 % on the trained one.

- One sample: two samples, four seeds of probes each. The root mean square error was 0.9 to 1.8 % of the mean, with 60 products 0.9 to 3.1 %,
  and 5.5 % on the trained network; 94 of 96 estimates lay within the half-width they told, of 95 %. "Runs alone" is reckoned from 32 runs on the
  explicit matrix, the spread of a probe being known.
- No other split of 60 products would do: of all numbers of runs (2 to 6), their steps and further probes, the best in hindsight leaves 2.7 %
  on the random convolutions, 5.0 to 7.4 % on the four other random networks and 14.7 % on the trained one (two samples, the mean of four
  seeds each). What is chosen without hindsight leaves at most 1.25 times as much.
- 32 samples, two seeds: the half-width of the interval for inputs like these. With certified brackets it is 1.3 to 3.7 %, and 14.9 %. On the
  trained network the images differ so much that their spread alone, with no other error, would leave 7 %.
- Finding leading directions once for several samples was not built: 12 directions (half of 25 products) from eight other samples hold 3 to 9 %
  of the sum of a sample's singular values on the random networks (its own 12: 4 to 10 %), too little to help; on the trained one 36 (its
  own: 41), but there differences between images dominate.
- Nor is splitting off the last layer, for estimates: it makes the problem smaller only where fewer features than outputs reach it (exact
  spectra are split there, see `ThroughBottleneck`). As a control variate its weight W would tell little: without their traces, the roots
  of J Jᵀ and W Wᵀ correlate by 0.00 to 0.67 on the random networks, which takes at most 45 % off a probe's variance and nothing off its
  bracket; by 0.86 on the trained one, mostly in the leading directions that the runs take out themselves.

Inputs have 32 x 32 pixels, of the ResNet-50 64 x 64, of the MLP 28 x 28. Not tested: other trained networks of this size. The trained one
tells which of 1,000 CIFAR-10 images is nearest, after 250 steps.

Run `python analyses/outputs.py --out figures`, with $ISOMETRY_DATA naming the folder with CIFAR-10 for the trained network; half an hour of one
core. The table is written after every part; `--only` goes on with those that are missing.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.spectra import Bidiagonal, Controlled, Matrices, bidiagonalize, bracketed_half_width, probes
from isometry.trials import script
from isometry.trials.script import Row

RANDOM, TRAINED, MLP, VGG, RESNET = "convolutions", "convolutions, trained", "MLP-7-ReLU", "VGG-16", "ResNet-50"
ATTENTION = "two blocks of attention"
WANTED = 0.03
SIXTY, BEST = "krylov, budget=60", "60 products, split best in hindsight"


class Attention(nn.Module):
    """Patches of 8 x 8 pixels, two blocks of attention of width 1,024, the mean over patches, 1,000 outputs."""

    def __init__(self, width: int = 1024, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        block = partial(nn.TransformerEncoderLayer, width, 8, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.Sequential(block(), block())
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> [B, classes]."""
        return self.head(self.blocks(self.patches(x).flatten(2).mT)).mean(1)


def convolutions(classes: int = 1000) -> nn.Sequential:
    """Return four convolutions and a linear layer."""
    sizes, layers = (3, 32, 64, 128, 128), list[nn.Module]()
    for i, (narrow, wide) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Conv2d(narrow, wide, 3, min(i, 1) + 1, 1), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, classes))


def trained(net: nn.Module, x: Tensor, classes: int, steps: int) -> None:
    """Train to tell which of the first images is nearest, all of them shrunk to 4 x 4 pixels."""
    small = nn.functional.avg_pool2d(x, 8).flatten(1)
    targets = torch.cdist(small, small[:classes]).argmin(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(steps):
        picked = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[picked]), targets[picked]).backward()
        optimizer.step()


def network(name: str, quick: bool) -> tuple[nn.Module, Tensor]:
    """Return a network by its name, and 64 inputs of it: normal, for the trained one images of CIFAR-10 where there are any."""
    torch.manual_seed(0)
    classes, x = 200 if quick else 1000, torch.randn(64, 3, 32, 32)
    if name == MLP:
        net = isometry.networks.build(
            "mlp-7-relu", classes, seed=0, widths=(300 if quick else 1200,) * 6, input_shape=(1, 28, 28)
        )
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
        return net.eval(), torch.randn(64, 1, 28, 28)
    if name == RESNET:
        return isometry.networks.build("resnet-50", classes, seed=0, input_shape=(3, 64, 64)).eval(), torch.randn(
            64, 3, 64, 64
        )
    if name in (VGG, ATTENTION):
        return (
            isometry.networks.build("vgg-16", classes, seed=0) if name == VGG else Attention(classes=classes)
        ).eval(), x
    net = convolutions(classes)
    if name == TRAINED:
        images = torch.randn(2000, 3, 32, 32)
        if os.environ.get("ISOMETRY_DATA") and not quick:
            data = isometry.data.load("cifar10", normalization=isometry.data.IMAGENET)
            images, x = data.train.inputs[:20_000], data.test.inputs[:64]
        trained(net, images, classes, 5 if quick else 250)
    return net.eval(), x


def dense(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the Jacobian [outputs, inputs] of one sample in float64."""
    return torch.func.jacrev(lambda one: net(one)[0], chunk_size=100)(inputs).detach().flatten(1).double()


def square(jacobian: Tensor) -> Tensor:
    """Return a square matrix of the same singular values, its rows being those of the smaller side."""
    jacobian = jacobian if len(jacobian) < jacobian.shape[1] else jacobian.mT
    return torch.linalg.qr(jacobian.mT, mode="r").R.mT


def runs_alone(matrix: Tensor) -> tuple[int, int]:
    """Return the products that runs alone, with certified brackets, take to 3 % of one sample's mean, and the steps of each."""
    start = probes(1, 32, len(matrix), torch.Generator().manual_seed(0), matrix)
    run = bidiagonalize(Matrices(matrix), start, steps=100)
    steps = 1
    lower, upper = run.first(steps).bracket()
    while steps < run.alpha.shape[-1] and float((upper - lower).mean() / (upper + lower).mean()) > 0.4 * WANTED:
        steps += 1
        lower, upper = run.first(steps).bracket()
    middle = (lower + upper) / 2
    count = max(2, math.ceil((1.96 * float(middle.std() / middle.mean()) / (0.6 * WANTED)) ** 2))
    return 2 * steps * count + 2, steps


def splits(matrix: Tensor, products: int, seeds: int) -> Iterator[Row]:
    """Yield the half-width, averaged over seeds of probes, for every way to split products into runs, their steps and further probes.

    Two products check J against its transpose, as in `measure`.
    """
    for runs, steps in itertools.product(range(2, 7), range(4, products // 4)):
        further = products - 2 - 2 * runs * steps
        if further < 0:
            continue
        widths = []
        for seed in range(seeds):
            drawn = probes(1, runs + further, len(matrix), torch.Generator().manual_seed(seed), matrix)
            start, others = drawn[:, :runs], drawn[:, runs:]
            control = Controlled.of(bidiagonalize(Matrices(matrix), start, steps=steps, keep_basis=True))
            low, high = control.ends(control.levels(others, (others @ matrix).square().sum(-1)))
            half = bracketed_half_width(control.variance(further).sqrt(), (high - low) / 2)
            widths.append(float(2 * half / (low + high)))
        yield {"runs": runs, "steps": steps, "further": further, "half_width": sum(widths) / seeds}


def one(name: str, net: nn.Module, x: Tensor, quick: bool) -> list[Row]:
    """Return what one sample takes and how far it is off, for two samples and some seeds of probes."""
    rows: list[Row] = []
    for sample in range(1 if quick else 2):
        inputs = x[sample : sample + 1]
        jacobian = dense(net, inputs)
        matrix = square(jacobian)
        truth = float(torch.linalg.svdvals(jacobian).mean())
        products, steps = runs_alone(matrix)
        row: Row = {"case": name, "samples": 1, "sample": sample}
        rows.append(row | {"method": "runs alone, certified", "products": products, "steps": steps})
        best = min(splits(matrix, 60, 2 if quick else 4), key=lambda found: float(found["half_width"]))
        rows.append(row | {"method": BEST, "products": 60} | best)
        for (method, budget), seed in itertools.product({"krylov": None, SIXTY: 60}.items(), range(2 if quick else 4)):
            report = isometry.measure(net, inputs, method="krylov", budget=budget, seed=seed, progress=False)
            error = report.mean_jsv / truth - 1
            rows.append(row | {"method": method, "seed": seed, "products": report.cost.products, "error": error,
                               "half_width": report.estimation_error, "held": abs(error) <= report.estimation_error})  # fmt: skip
    return rows


def many(name: str, net: nn.Module, x: Tensor, quick: bool) -> list[Row]:
    """Return the half-width of the interval that 25 products for each of 32 samples give, with brackets of either kind."""
    rows: list[Row] = []
    for seed in range(1 if quick else 2):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:32]
        for method, used in (("certified brackets", Bidiagonal.bracket), ("narrowed brackets", Bidiagonal.narrowed)):
            with mock.patch.object(Bidiagonal, "narrowed", used):
                report = isometry.measure(net, x[order], budget=800, seed=seed, progress=False)
            low, high = report.interval
            parts = {f"by {part}": value / report.mean_jsv for part, value in report.components.items()}
            rows.append({"case": name, "samples": 32, "method": method, "seed": seed, "products": report.cost.products,
                         "measured": len(report.spectrum), "half_width": (high - low) / 2 / report.mean_jsv, **parts})  # fmt: skip
    return rows


def shared(name: str, net: nn.Module, x: Tensor, quick: bool) -> list[Row]:
    """Return which share of the sum of a sample's singular values its own leading directions hold, and those of eight others.

    And how (J Jᵀ)^½ correlates with (W Wᵀ)^½ of the last layer's weight W, both without their traces: as far as they do, a
    probe's form with the latter, whose trace is known, could be a control variate.
    """
    count = 3 if quick else 9
    jacobians = [dense(net, x[i : i + 1]) for i in range(count)]
    last, others = jacobians[-1], jacobians[:-1]
    own, values, _ = torch.linalg.svd(last, full_matrices=False)
    theirs = torch.linalg.eigh(sum(each @ each.mT / each.square().sum() for each in others))[1].flip(1)
    weight = [module for module in net.modules() if isinstance(module, nn.Linear)][-1].weight.detach().double()
    root, of_weight = (
        vectors @ torch.diag(values) @ vectors.mT - values.sum() / len(vectors) * torch.eye(len(vectors))
        for vectors, values, _ in (torch.linalg.svd(matrix, full_matrices=False) for matrix in (last, weight))
    )
    correlation = float((root * of_weight).sum() / (root.norm() * of_weight.norm()))
    ratios = torch.stack([torch.linalg.svdvals(each).mean() / each.norm() for each in jacobians])
    row: Row = {"case": name, "samples": count, "method": "shared", "spread": float(ratios.std() / ratios.mean()),
                "correlation": correlation}  # fmt: skip
    for directions in (12, 24):
        kept = [float(torch.linalg.svdvals(q[:, :directions].mT @ last).sum() / values.sum()) for q in (own, theirs)]
        row |= {f"own {directions}": kept[0], f"others' {directions}": kept[1]}
    return [row]


def rows_of(name: str, quick: bool) -> list[Row]:
    """Return all rows of a network; none of a large one where it should be quick."""
    if quick and name in (VGG, RESNET, ATTENTION):
        return []
    net, x = network(name, quick)
    return one(name, net, x, quick) + many(name, net, x, quick) + shared(name, net, x, quick)


def tables(table: pd.DataFrame) -> str:
    """Return products for one sample, and half-widths for 32, as markdown."""
    rows, texts = list[Row](), list[str]()
    spread = partial(script.format_spread, digits=1)
    for case, found in table[table["samples"] == 1].groupby("case", sort=False):
        of = {str(method): lines for method, lines in found.groupby("method")}
        row = {"network": case, "runs alone": spread(of["runs alone, certified"]["products"]), "krylov": spread(of["krylov"]["products"])}  # fmt: skip
        for ours, label in ((of["krylov"], ""), (of[SIXTY], " of 60")):
            row[f"half-width{label}, %"] = spread(100 * ours["half_width"])
            row[f"rms error{label}, %"] = f"{100 * float((ours['error'] ** 2).mean()) ** 0.5:.1f}"
            row[f"held{label}"] = f"{int(ours['held'].astype(bool).sum())} of {len(ours)}"
        row["half-width of 60 split best, %"] = spread(100 * of[BEST]["half_width"])
        rows.append(row)
    texts.append(script.format_columns(pd.DataFrame(rows), {key: key for key in rows[0]}))
    rows = list[Row]()
    for (net, kind), found in table[table["samples"] == 32].groupby(["case", "method"], sort=False):
        parts = [str(part) for part in found if str(part).startswith("by ")]
        rows.append({"network": net, "method": kind, "measured": f"{found['measured'].mean():.0f}",
                     "half-width, %": spread(100 * found["half_width"]),
                     **{f"{part}, %": f"{100 * found[part].mean():.1f}" for part in parts}})  # fmt: skip
    texts.append(script.format_columns(pd.DataFrame(rows), {key: key for key in rows[0]}))
    found = table[table["method"] == "shared"]
    parts = [str(part) for part in found if str(part).startswith(("own ", "others' "))]
    rows = [{"network": line["case"], **{f"{part} directions, %": f"{100 * line[part]:.0f}" for part in parts},
             "mean over norm, spread, %": f"{100 * line['spread']:.2f}",
             "correlation with last layer": f"{line['correlation']:.2f}"} for _, line in found.iterrows()]  # fmt: skip
    if rows:
        texts.append(script.format_columns(pd.DataFrame(rows), {key: key for key in rows[0]}))
    return "\n\n".join(texts)


def short(table: pd.DataFrame) -> str:
    """Return the products for one sample."""
    return tables(table).split("\n\n")[0]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw products for one sample, half-widths and errors of 60, and half-widths for 32 samples."""
    height = 1.6 + 0.4 * table["case"].nunique()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, height), layout="constrained", sharey=True)
    sixty, best = table["method"] == SIXTY, table["method"] == BEST
    for ax, rows, column, factor in (
        (left, table[(table["samples"] == 1) & ~sixty & ~best], "products", 1),
        (right, table[table["samples"] == 32], "half_width", 100),
    ):
        for method, found in rows.groupby("method", sort=False):
            ax.plot(factor * found[column], found["case"], "o", alpha=0.6, label=method)
    for column, label in (("half_width", "half-width, as told"), ("error", "error, absolute")):
        middle.plot(100 * table.loc[sixty, column].abs(), table.loc[sixty, "case"], "o", alpha=0.6, label=label)
    middle.plot(
        100 * table.loc[best, "half_width"], table.loc[best, "case"], "k|", label="half-width, split best in hindsight"
    )
    left.set(xscale="log", xlabel="products", title="One sample, to 3 %")
    left.axvline(60, color="black", linewidth=0.8, linestyle=":", label="60 products")
    middle.set(xlabel="% of the mean", title="One sample, 60 products")
    right.set(xlabel="half-width of the interval, % of the mean", title="32 samples, 800 products")
    for ax in (middle, right):
        ax.axvline(100 * WANTED, color="black", linewidth=0.8, linestyle=":", label="3 %")
    for ax, place in ((left, "best"), (middle, "center right"), (right, "best")):
        ax.legend(frameon=False, fontsize="small", loc=place)
    typical = table[table["method"] == "krylov"].groupby("case")["products"].mean()
    told = 100 * table[sixty].groupby("case")["half_width"].mean()
    figure.suptitle(
        f"One sample's mean JSV to 3 % takes {typical.min():.0f} to {typical.max():.0f} products on average; with 60 it is known to "
        f"{told.min():.1f} to {told.max():.0f} %"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    cases = (RANDOM, TRAINED, MLP, ATTENTION, VGG, RESNET)
    script.run_measurement("outputs", __doc__, {name: partial(rows_of, name) for name in cases}, draw, tables)
