"""How does the mean JSV of a just-pruned network fall with the ratio, and does it follow the published curves?

In shape, on the bundled digits (3 seeds, mean ± standard deviation; the table is not kept in figures/). L1 takes MLP-7-Linear from a mean
JSV of 7.92 ± 0.05 (dense) to 0.62 ± 0.05 at ratio 0.5 and 0.0008 ± 0.0003 at 0.9, and MLP-7-ReLU from 3.49 ± 0.26 to 1.62 ± 0.23 and 0.0095 ± 0.0030:
as in the published curves the linear network falls faster. Random falls faster than L1 on both (0.16 ± 0.01 and 0.12 ± 0.03 at 0.5).
The published values are of MNIST (presumably of L1) and cannot be compared with digits in size; that comparison, and the LeNets, which take
32 x 32 images, have not been run with this script (MLP-7-Linear has, in linear_mlp_oracle.py).

Run `python analyses/jsv_vs_ratio.py` for the digits (two minutes of one core, MLPs only), with `--dataset mnist` for the four networks at
the published recipe.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry import plots
from isometry.files import markdown
from isometry.training.recipe import Recipe
from isometry.trials import Trial, script
from isometry.trials.published import JSV_BY_RATIO, RATIOS

NAMES = {"l1": "L1", "random": "Random"}


def trials(dataset: str, ratios: list[float], seeds: int, epochs: int) -> list[Trial]:
    """Return every network, pruner, ratio and seed, the ratio 0 of the published curves too; digits have the MLPs only."""
    digits = dataset == "digits"
    recipe = Recipe(1e-2, epochs, 32 if digits else 100)
    options = {"input_shape": (1, 8, 8)} if digits else {}
    return [
        Trial(dataset, network, recipe, pruner=pruner, ratio=ratio, seed=seed, options=options)
        for network in (n for n in JSV_BY_RATIO if not digits or n.startswith("mlp"))
        for pruner in (isometry.L1(), isometry.Random())
        for ratio in ratios
        for seed in range(seeds)
    ]


def tables(table: pd.DataFrame) -> str:
    """Return mean JSVs by network, pruner and ratio: mean and standard deviation over seeds; published means of MNIST below."""
    rows, lines = table[table["phase"] == "pruned"], []
    for network, part in rows.groupby("network", sort=False):
        for pruner, group in part.groupby("pruner", sort=False):
            cells = {f"{ratio:g}": script.format_spread(g["mean_jsv"], 4) for ratio, g in group.groupby("ratio")}
            lines.append({"network": network, "pruner": NAMES[str(pruner)], "data": group["dataset"].iloc[0], **cells})
        published = {f"{ratio:g}": f"{value:.4f}" for ratio, value in JSV_BY_RATIO[str(network)].items()}
        lines.append({"network": network, "pruner": "L1, published", "data": "mnist", **published})
    return markdown(pd.DataFrame(lines).fillna(""))


short = tables


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the mean JSV against the ratio, one panel per network, the published curves beside."""
    networks = list(table["network"].unique())
    figure, axes = plt.subplots(
        1, len(networks), figsize=(5.2 * len(networks), 4.2), layout="constrained", squeeze=False
    )
    for ax, network in zip(axes[0], networks, strict=True):
        rows = table[(table["network"] == network) & (table["phase"] == "pruned")]
        plots.sweep(rows.assign(method=rows["pruner"].map(NAMES)), ax)
        ax.plot(RATIOS, JSV_BY_RATIO[network].values(), "kx", label="L1 on MNIST, published")
        ax.legend(frameon=False)
        ax.set_title(
            f"{network} on {rows['dataset'].iloc[0]} (bars: std over {rows['seed'].nunique()} seeds)", fontsize="medium"
        )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=RATIOS[1:], device=True)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist"], default="digits", help="images")
    options = script.parse(parser, quick_ignores=("seeds", "dataset"))
    dataset, seeds, epochs = ("digits", 1, 2) if options.quick else (options.dataset, options.seeds, 90)
    output = script.Output.of("jsv_vs_ratio", options, dataset)
    if not options.redraw:
        output.write(*output.run_trials(trials(dataset, [RATIOS[0], *options.ratios], seeds, epochs)))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
