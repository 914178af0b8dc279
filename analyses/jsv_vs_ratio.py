"""How does the mean JSV of a just-pruned network fall with the ratio, and does it follow the published curves?

The two MLPs follow them within 30 % up to ratio 0.7, the LeNets do not. MNIST at the recipe of the papers for MLP-7-Linear;
mean ± standard deviation over three seeds of the MLPs, two of the LeNets; L1 (presumably the published criterion, too, which is
not named), just pruned, at ratios 0, 0.5 and 0.9:

- MLP-7-Linear 2.503 ± 0.004, 0.152 ± 0.003 and 0.0002 (published 2.499, 0.118, 0.0004): 0.97 to 1.29 of the published values up to 0.7,
  0.43 at 0.9. MLP-7-ReLU 1.301 ± 0.017, 0.507 ± 0.017 and 0.0034 ± 0.0004 (1.828, 0.628, 0.0056): 0.6 to 0.9 of the published values at
  every ratio. LeNet-5-Linear 6.36 ± 0.18, 1.65 and 0.038 ± 0.006 (3.74, 1.52, 0.113): higher when dense, and falling faster at every
  ratio, to 0.34 of the published at 0.9. LeNet-5-ReLU 1.68 ± 0.02, 0.98 ± 0.33 and 0.0163 ± 0.0013 (3.01, 1.84, 0.185): 0.51 to 0.58
  of the published up to 0.5, then falling much faster, to 0.22 at 0.7 and 0.09 at 0.9. `lenet_recipe.py` looks for a recipe that gives
  LeNet-5-Linear the published level.
- The linear MLP falls faster than the one with ReLU, and Random faster than L1 on all four, at every ratio: at 0.5 it is 0.046 ± 0.010 and
  0.038 ± 0.008 on MLP-7-Linear and -ReLU, 0.80 ± 0.10 and 0.29 ± 0.06 on LeNet-5-Linear and -ReLU, there 0.010 and 0.0005 at 0.9.
- A reconstruction by least squares holds the mean JSV of the MLPs: 2.51 to 2.94 at all ratios on MLP-7-Linear, 1.25 to 1.58 on MLP-7-ReLU;
  on LeNet-5-Linear it overshoots (7.2 to 10.3; 6.9 ± 1.9 at 0.9), on LeNet-5-ReLU from 0.7 on (4.0 and 3.2; 1.69 to 1.95 before).
- ResNet-20 on CIFAR-10 with the given weights (the units of every block's conv1; two seeds): 16.0 when dense, 17.1 with L1 at 0.1; at 0.5,
  0.7 and 0.9 L1 8.5, 3.3 and 0.59, Random 3.65 ± 0.96, 1.11 ± 0.06 and 0.45 ± 0.01, L1 reconstructed 13.34 ± 0.03, 12.20 ± 0.09 and 2.33 ±
  0.19.
- ResNet-56 likewise, one seed: 12.3 when dense, 12.6 with L1 at 0.1; at 0.5, 0.7 and 0.9 L1 8.56, 2.74 and 0.24, Random 1.77, 0.56 and 0.20;
  L1 reconstructed stays within 2 % of the dense network up to 0.7 (12.2 to 12.5), and has 5.54 at 0.9.
- The distribution is wide: at 0.9 the smallest JSVs are below 0.3 % of the mean in every network, as they are in the dense ones but
  the LeNets (3 %; second table, one seed, 64 images).

Run `python analyses/jsv_vs_ratio.py` for the digits (two minutes of one core, MLPs only); with `--dataset mnist --out figures` for the four
networks at the published recipe, and with `--dataset cifar10 --out figures` for the ResNets with the given weights, $ISOMETRY_DATA naming
the folder with the data. `--networks` runs some of them; the rows of the others are kept.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry import plots
from isometry.files import markdown
from isometry.training.recipe import Recipe
from isometry.trials import Trial, script
from isometry.trials.outcomes import name_methods
from isometry.trials.published import JSV_BY_RATIO, RATIOS

NAMES = {"l1": "L1", "random": "Random"}
REPAIRS = {"reconstruct": " + reconstruct"}
RESNETS = ("resnet-20", "resnet-56")


def trials(network: str, dataset: str, ratios: list[float], seeds: int, epochs: int) -> list[Trial]:
    """Return every method, ratio and seed of a network, the ratio 0 of the published curves too."""
    digits = dataset == "digits"
    base: dict[str, Any] = {"pretrain": Recipe(1e-2, epochs, 32 if digits else 100)}
    base |= {"options": {"input_shape": (1, 8, 8)}} if digits else {}
    if dataset == "cifar10":
        base = {"pretrain": "cifar10", "layers": "layer*.conv1", "autocast": True}
    methods = ((isometry.L1(), None), (isometry.Random(), None), (isometry.L1(), "reconstruct"))
    return [
        Trial(dataset, network, **base, pruner=pruner, ratio=ratio, repair=repair, seed=seed)
        for (pruner, repair), ratio, seed in itertools.product(methods, ratios, range(seeds))
        if ratio or repair is None  # nothing was removed that a repair could make up for
    ]


def networks_of(dataset: str) -> list[str]:
    """Return the networks that a data set has; the LeNets take 32 x 32 images, and the digits are smaller."""
    if dataset == "cifar10":
        return list(RESNETS)
    return [network for network in JSV_BY_RATIO if dataset != "digits" or network.startswith("mlp")]


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every trial with a column `method`."""
    return name_methods(table, NAMES, REPAIRS).groupby("trial", sort=False).tail(1)


def tables(table: pd.DataFrame) -> str:
    """Return mean JSVs by network, method and ratio (mean and standard deviation over seeds), the published below; then more of the first seed."""
    lines, details = [], []
    for network, part in named(table).groupby("network", sort=False):
        for method, group in part.groupby("method", sort=False):
            cells = {f"{ratio:g}": script.format_spread(g["mean_jsv"], 4) for ratio, g in group.groupby("ratio")}
            heading = {"network": network, "method": method, "data": group["dataset"].iloc[0]}
            lines.append({**heading, "seeds": f"{group['seed'].nunique()}", **cells})
            details += [heading | detail(row) for _, row in group[group["seed"] == 0].sort_values("ratio").iterrows()]
        if network in JSV_BY_RATIO:
            published = {f"{ratio:g}": f"{value:.4f}" for ratio, value in JSV_BY_RATIO[str(network)].items()}
            lines.append({"network": network, "method": "published, presumably L1", "data": "mnist", **published})
    text = markdown(pd.DataFrame(lines).fillna(""))
    return f"{text}\n\nSeed 0, 64 images:\n\n{markdown(pd.DataFrame(details))}"


def detail(row: pd.Series) -> dict[str, str]:
    """Return the statistics of one network's JSVs as text."""
    low, high = row["mean_jsv"] + 1.96 * row["sem"] * np.array([-1, 1])
    texts = {"ratio": f"{row['ratio']:g}", "mean ± 1.96 standard errors": f"{low:.3g} to {high:.3g}"}
    names = {"median_jsv": "median", "max_jsv": "largest", "min_jsv": "smallest"}
    return texts | {text: f"{row[name]:.3g}" for name, text in names.items()}


def short(table: pd.DataFrame) -> str:
    """Return the mean JSVs of MLP-7-Linear, or of the first network."""
    names = list(table["network"].unique())
    name = "mlp-7-linear" if "mlp-7-linear" in names else names[0]
    return tables(table[table["network"] == name]).split("\n\n")[0]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the mean JSV against the ratio, one panel per network, the published curves beside."""
    networks = list(table["network"].unique())
    columns = 2 if len(networks) in (2, 4) else min(len(networks), 3)
    lines = -(-len(networks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 4.0 * lines), layout="constrained", squeeze=False
    )
    for ax in grid.flat[len(networks) :]:
        ax.set_visible(False)
    rows = named(table)
    for ax, network in zip(grid.flat, networks, strict=False):
        part = rows[rows["network"] == network]
        plots.sweep(part, ax)
        if network in JSV_BY_RATIO:
            ax.plot(RATIOS, JSV_BY_RATIO[network].values(), "kx", label="published (MNIST; presumably L1)")
        ax.legend(frameon=False, fontsize="small")
        seeds = part["seed"].nunique()
        title = f"{network} on {part['dataset'].iloc[0]}, {seeds} seed{'s' * (seeds > 1)}"
        ax.set_title(title, fontsize="medium")
    figure.suptitle(
        "Just after pruning, the mean JSV falls with the ratio (ResNets: from 0.3 on); least squares holds it longer, or overshoots\n"
        "(bars: standard deviation over seeds; dotted red: 1)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=RATIOS[1:], device=True, extend=True)
    parser.add_argument(
        "--dataset", choices=["digits", "mnist", "fashion-mnist", "cifar10"], default="digits", help="images"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=[*JSV_BY_RATIO, *RESNETS], help="some of the data set's networks"
    )
    options = script.parse(parser, quick_ignores=("seeds", "dataset", "networks"))
    dataset, seeds, epochs = ("digits", 1, 2) if options.quick else (options.dataset, options.seeds, 90)
    output = script.Output.of("jsv_vs_ratio", options, dataset)
    if unknown := set(options.networks or ()) - set(networks_of(dataset)):
        raise SystemExit(
            f"--networks: {', '.join(sorted(unknown))}: not on {dataset}, which has {', '.join(networks_of(dataset))}"
        )
    if not options.redraw:
        for network in options.networks or networks_of(dataset):
            wanted = trials(network, dataset, [RATIOS[0], *options.ratios], seeds, epochs)
            output.write_network(*output.run_trials(wanted))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
