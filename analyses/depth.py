"""What is the oracle worth as linear networks get deeper or wider, and do residual connections make it needless?

Without residual connections it is worth 23 points with 7 layers and 77 to 82 with 20 to 100, at the larger of two rates; with them
fine-tuning at that rate mends what pruning did, to within 2.4 points, and at the smaller one stays 3, 8 and 15 points behind the dense
network at 20, 50 and 100 layers. The oracle sets the pruned layers so that every JSV is 1. Linear networks on digits, width 64, 80 % of the
units removed by L1, 225 steps of fine-tuning, three seeds (mean ± standard deviation):

- Plain networks of 7, 20, 50 and 100 layers: the mean JSV just after pruning is 0.017, 5e-8, 4e-19 and 5e-38 (dense 7 to 8), and L1 ends at
  71.30 ± 6.09 % with 7 layers and at chance with more. With the oracle they end at 94.63 ± 1.63, 92.31 ± 2.57, 92.04 ± 0.64 and
  87.31 ± 1.43 % (dense 95 to 96 %). At a tenth of the rate: 88.06, 77.78, 66.11 and 67.04 %.
- At that smaller rate a reconstruction by least squares, which refits what the layers compute and has a mean JSV near the dense one (7.7 to
  9.5), is ahead of the oracle (94.17, 90.46, 86.11 and 82.78 %), but it diverges at the larger rate in every plain network.
- Residual networks (x + W2 W1 x, the inner units removed; the one listed with 7 layers has 6): L1 alone has a mean JSV of 1.3 to 2.5 (dense 5
  to 7) and ends within 1 point of the dense network up to 50 layers and 2.4 below it at 100; at a tenth of the rate it falls behind with the
  depth, by 15 points at 100, and a reconstruction stays within 0.3 points of the dense network; at the larger rate, up to 50 layers, it is
  1.1 to 2.9 points behind L1 alone. OrthP harms deep networks: 1e6 is the mean JSV at 100 layers, and training diverges from 20 on at the
  larger rate and from 50 on at both; with 7 layers it ends within 1 point of L1.
- Widths of 128 and 256 at 20 layers: with the oracle 94.35 ± 1.53 and 95.74 ± 1.63 %, without it 10 %. The residual network of width 256
  diverges at the larger rate when reconstructed, in 2 of 3 seeds.

Rates are 0.05 and 0.005 over the number of layers, the first also that of the dense training from orthogonal weights (residual: Gaussian).
Not tested: other data, ratios and initializations, longer training. Run `python analyses/depth.py --out figures`: the digits are bundled;
16 minutes of one shared core.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.files import markdown
from isometry.training.recipe import Recipe
from isometry.trials import Trial, script
from isometry.trials.outcomes import percent

DEPTHS, WIDTHS, RATES = (
    (7, 20, 50, 100),
    (128, 256),
    (0.05, 0.005),
)  # widths at 20 layers, where depths have 64; rates times depth
REPAIRS: dict[str, str | None] = {
    "L1": None,
    "L1 + oracle": "oracle",
    "L1 + OrthP": "orthp",
    "L1 + reconstruct": "reconstruct",
}


def plain(depth: int, width: int) -> nn.Module:
    """Return a linear MLP on 8 x 8 images with orthogonal weights at the start, so that depth alone does not stop its training."""
    network = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), widths=(width,) * (depth - 1))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    return network


class Block(nn.Module):
    """x + W2 W1 x, x [B, width]: two linear layers beside an identity."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=width**-0.5 * blocks**-0.25)  # the sum over blocks has variance 1
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, width]."""
        return x + self.fc2(self.fc1(x))


def residual(depth: int, width: int) -> nn.Module:
    """Return a linear residual network on 8 x 8 images of about so many layers."""
    blocks = (depth - 2) // 2
    ends = nn.Linear(64, width), nn.Linear(width, 10)
    for layer in ends:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(nn.Flatten(), ends[0], *(Block(width, blocks) for _ in range(blocks)), ends[1])


def trials(ratio: float, seeds: int, quick: bool) -> list[tuple[dict[str, Any], Trial]]:
    """Return (columns that name it, trial) of every network, method and seed; rates fall with the depth, as stable steps do."""
    found = []
    sizes = [(7, 64)] if quick else [*((depth, 64) for depth in DEPTHS), *((20, width) for width in WIDTHS)]
    networks: tuple[Callable[..., nn.Module], ...] = (plain, residual)
    for (depth, width), network, seed, rate in itertools.product(sizes, networks, range(seeds), RATES):
        dense = Recipe(RATES[0] / depth, 2 if quick else 20, 32, schedule=None)
        tune = Recipe(rate / depth, 2 if quick else 5, 32, schedule=None)
        for method, repair in REPAIRS.items():
            if (repair == "oracle") == (network is plain) or repair in (None, "reconstruct"):
                labels = {"network": network.__name__, "depth": depth, "width": width, "rate": rate, "method": method}
                trial = Trial(
                    "digits", network, dense, tune, isometry.L1(), ratio, repair=repair, seed=seed,
                    options={"depth": depth, "width": width}, layers="*.fc1" if network is residual else None,
                )  # fmt: skip
                found.append((labels, trial))
    return found


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every fine-tuning."""
    return table[table["phase"] == "finetune"].groupby("trial", sort=False).tail(1)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network, size and method: mean JSV and accuracy before fine-tuning, accuracy after it, by rate."""
    lines: list[dict[str, Any]] = []
    for keys, group in table.groupby(["network", "depth", "width", "method"], sort=False):
        line = dict(zip(("network", "layers", "width", "method"), keys, strict=True))
        dense = group[group["phase"] == "dense"]
        start = group[(group["epoch"] == 0) & (group["phase"] != "dense")].groupby("trial").tail(1)
        line |= {
            "dense, %": percent(dense.drop_duplicates("seed")),
            "dense mean JSV": f"{dense['mean_jsv'].mean():.3g}",
        }
        line |= {
            "mean JSV": f"{start['mean_jsv'].mean():.3g}",
            "just pruned, %": percent(start.drop_duplicates("seed")),
        }
        for rate, rows in ends(group).groupby("rate", sort=False):
            failed = int(rows["diverged"].sum())
            line[f"lr {rate:g} / layers, %"] = f"{failed} of {len(rows)} diverged" if failed else percent(rows)
        lines.append(line | {"seeds": group["seed"].nunique()})
    return pd.DataFrame(lines)


def tables(table: pd.DataFrame) -> str:
    """Return all results; accuracies as mean and standard deviation over seeds."""
    return markdown(summary(table))


def short(table: pd.DataFrame) -> str:
    """Return the deepest networks."""
    return tables(table[table["depth"] == table["depth"].max()])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy after fine-tuning, by rate, and mean JSV before it against the depth; left plain, right residual networks."""
    width = table.loc[table["depth"] == table["depth"].max(), "width"].iloc[0]
    figure, axes = plt.subplots(3, 2, figsize=(10.5, 10), layout="constrained", sharex=True, sharey="row")
    for column, network in enumerate(("plain", "residual")):
        part = table[(table["network"] == network) & (table["width"] == width)]
        starts = part[(part["epoch"] == 0) & (part["phase"] != "dense")].groupby("trial").tail(1)
        tuned = ends(part)
        panels = [(tuned[tuned["rate"] == rate], "accuracy", f"accuracy, lr {rate:g} / layers") for rate in RATES]
        for ax, (rows, y, text) in zip(
            axes[:, column], [*panels, (starts, "mean_jsv", "mean JSV, just pruned")], strict=True
        ):
            for index, method in enumerate(REPAIRS):
                over = rows[rows["method"] == method].groupby("depth")[y].agg(["mean", "std"]).dropna(subset="mean")
                if len(over):
                    ax.errorbar(
                        over.index, over["mean"], over["std"], color=f"C{index}", marker="o", capsize=3, label=method
                    )
            dense = part[part["phase"] == "dense"].groupby("depth")[y].mean()
            ax.plot(dense.index, dense, color="black", linestyle=":", label="dense")
            ax.set(xscale="log", yscale="log" if y == "mean_jsv" else "linear", ylabel=text)
            ax.set_xticks(sorted(part["depth"].unique()), [str(depth) for depth in sorted(part["depth"].unique())])
            ax.minorticks_off()
        axes[0, column].set(title=f"{network}, width {width}")
        axes[-1, column].set(xlabel="linear layers")
        axes[-1, column].axhline(1, color="#d62728", linewidth=1, linestyle=":")
    handles = {label: handle for ax in axes[-1] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    last = ends(table[(table["depth"] == table["depth"].max()) & (table["rate"] == RATES[0])])
    means = 100 * last.groupby(["network", "method"])["accuracy"].mean()
    figure.suptitle(
        f"{table['depth'].max()} linear layers, {100 * table['ratio'].iloc[0]:g} % of the units removed: {means['plain', 'L1 + oracle']:.0f} % with the "
        f"oracle, {means['plain', 'L1']:.0f} % without; residual, {means['residual', 'L1']:.0f} % without\n"
        f"(digits, lr {RATES[0]:g} / layers; bars: std over {table['seed'].nunique()} seeds; no point: diverged; dotted red: 1)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, extend=True)
    parser.add_argument("--ratio", type=script.ratio, default=0.8, help="fraction of units removed")
    options = script.parse(parser, quick_ignores=("seeds",))
    output = script.Output.of("depth", options)
    if not options.redraw:
        named = trials(options.ratio, 1 if options.quick else options.seeds, options.quick)
        output.write(
            *output.run_trials(
                [trial for _, trial in named], [labels for labels, _ in named], fixed=("dataset", "ratio")
            )
        )
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
