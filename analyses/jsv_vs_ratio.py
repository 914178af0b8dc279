"""How does the mean JSV of a just-pruned network fall with the ratio, and does it follow the published curves?

On the bundled digits: XXX

Published are curves of L1 on MNIST, read here from the reference repository's plot data (Wang et al. 2021, arXiv 2105.05916; two runs
each, their mean is shown); digits can be compared with them in shape only. Run `python analyses/jsv_vs_ratio.py` for the digits (MLPs only,
as LeNet-5 takes 32 x 32 images; minutes), with `--dataset mnist` for the four networks at the published recipe (hours; not run yet).
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

RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
PUBLISHED = {  # by ratio, as above
    "mlp-7-linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "mlp-7-relu": (1.8276, 1.6667, 1.2592, 0.6276, 0.1340, 0.0056),
    "lenet-5-linear": (3.7446, 3.3722, 2.5516, 1.5169, 0.4225, 0.1127),
    "lenet-5-relu": (3.0052, 2.8623, 2.5952, 1.8428, 0.6950, 0.1850),
}
NAMES = {"l1": "L1", "random": "Random"}


def trials(dataset: str, ratios: list[float], seeds: int, epochs: int) -> list[Trial]:
    """Return every network, pruner, ratio and seed; digits have the MLPs only."""
    digits = dataset == "digits"
    recipe = Recipe(1e-2, epochs, 32 if digits else 100)
    options = {"input_shape": (1, 8, 8)} if digits else {}
    return [
        Trial(dataset, network, recipe, pruner=pruner, ratio=ratio, seed=seed, options=options)
        for network in (n for n in PUBLISHED if not digits or n.startswith("mlp"))
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
        published = {f"{ratio:g}": f"{value:.4f}" for ratio, value in zip(RATIOS, PUBLISHED[str(network)], strict=True)}
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
        ax.plot(RATIOS, PUBLISHED[network], "kx", label="L1 on MNIST, published")
        ax.legend(frameon=False)
        ax.set_title(
            f"{network} on {rows['dataset'].iloc[0]} (bars: std over {rows['seed'].nunique()} seeds)", fontsize="medium"
        )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=RATIOS, device=True)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist"], default="digits")
    options = script.parse(parser)
    dataset, seeds, epochs = ("digits", 1, 2) if options.quick else (options.dataset, options.seeds, 90)
    output = script.Output.of("jsv_vs_ratio", options, dataset)
    if not options.redraw:
        output.write(*output.run_trials(trials(dataset, options.ratios, seeds, epochs)))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
