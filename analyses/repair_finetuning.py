"""Does a network repaired by least squares fine-tune better, and better than one pruned by TPP in as many steps?

Mostly yes to both: of 135 comparisons (LeNet-5 and conv-4 on MNIST and conv-4 on digits with 0.5, 0.7 and 0.9 of the units of all layers
removed, ResNet-20 and ResNet-56 on CIFAR-10 with as many of the units of every block's first convolution; lr 0.01, 0.001, 0.0001; three
seeds) L1 reconstructed ends ahead of TPP in 123, level in 4, and ahead of L1 alone in 123. Every method has 800
training steps (conv-4 on digits: 805 to 807, ResNets: 300), of which TPP spends 600 (200) before removal. The digits have 360 test images.
Mean ± standard deviation, by rate:

- LeNet-5 at ratio 0.9: L1 reconstructed 88.72 ± 2.07 / 82.81 ± 4.08 / 75.19 ± 6.18 %, TPP 85.44 ± 2.21 / 75.71 ± 7.45 / 70.61 ± 6.64, L1
  alone 88.76 ± 1.82 / 47.54 ± 27.04 / 22.87 ± 11.06 %. At 0.5 and 0.7 it is 0.3 to 0.9 points ahead of TPP.
- conv-4 on digits at 0.9: 63.52 ± 4.89 / 51.11 ± 7.56 / 38.33 ± 7.24, 39.26 ± 8.81 / 26.39 ± 8.14 / 21.57 ± 3.79, 49.72 ± 7.70 / 26.39 ±
  4.11 / 16.94 ± 1.55 %; at 0.7 2.6 to 9.2 points ahead of TPP, at 0.5 -0.6 to 0.8.
- ResNet-20 at 0.9 (one trained network, the given weights): 50.45 ± 0.65 / 39.90 ± 0.47 /
  28.96 ± 0.99, 35.77 ± 0.45 / 25.62 ± 1.48 / 20.75 ± 2.33, 42.42 ± 1.74 / 30.99 ± 1.14 / 18.03 ± 0.33 %. At 0.7 78.69 ± 0.37 / 73.19 ± 0.16 /
  64.70 ± 0.44, 69.96 ± 0.70 / 60.67 ± 0.14 / 52.55 ± 0.25, 75.20 ± 0.40 / 63.77 ± 0.09 / 37.37 ± 0.14 %; at 0.5 86.10 ± 0.04 / 83.99 ± 0.22 /
  81.18 ± 0.05, 82.30 ± 0.34 / 78.69 ± 0.09 / 75.92 ± 0.36, 85.53 ± 0.13 / 80.28 ± 0.16 / 67.50 ± 0.13 %: ahead of both in all 27 cells.
- ResNet-56 likewise: 66.57 ± 0.11 / 53.43 ± 0.55 / 40.62 ± 0.33 %, TPP 53.09 ± 1.31 / 40.51 ± 2.73 / 29.91 ± 1.33, L1 alone 54.54 ± 0.70 /
  40.02 ± 1.84 / 24.53 ± 1.30 %: ahead of both in all 9 cells, by 12 to 14 points at lr 0.01. At 0.7 86.52 ± 0.24 / 83.72 ±
  0.20 / 80.63 ± 0.01, 82.14 ± 0.25 / 77.46 ± 0.13 / 73.83 ± 0.11 and 86.20 ± 0.20 / 79.59 ± 0.22 / 64.96 ± 0.14 %; at 0.5 90.63 ± 0.05 /
  90.30 ± 0.04 / 89.09 ± 0.05, 88.98 ± 0.12 / 87.80 ± 0.01 / 87.03 ± 0.12 and 90.44 ± 0.13 / 88.58 ± 0.17 / 84.01 ± 0.13 %: ahead of both in
  all 18 cells, at lr 0.01 by 0.1 to 0.5 points of L1. With more steps the lead shrinks: `training_budget.py`.
- conv-4 on MNIST (dense 94.3, 74.5 and 95.7 %, as it was trained for one epoch) at 0.9 turns the order at the largest rate: L1 alone 44.28 ±
  6.60, TPP 34.16 ± 6.62, L1 reconstructed 24.41 ± 17.03 % at lr 0.01; at 0.001 and 0.0001 reconstruction leads (42.14 ± 17.15 and 34.19 ±
  8.02 %; TPP 28.25 ± 10.63, 26.02 ± 11.85). At 0.7 it is 5.5 to 15.8 points ahead of TPP, at 0.5 1.2 to 1.8.
- Before fine-tuning TPP and reconstruction are level on LeNet-5 (at 0.9 67.42 ± 6.34 and 66.80 ± 7.12 %); on conv-4, MNIST, TPP is ahead at 0.5
  (93.21 ± 0.44, 82.93 ± 14.81) and 0.7 (68.49 ± 9.01, 55.40 ± 17.11), and ends behind; on the ResNets reconstruction is
  ahead (at 0.9 ResNet-20 18.25 ± 1.91 and 27.51 ± 1.93 %, ResNet-56 27.10 ± 1.75 and 40.16 ± 1.43). TPP then has 200 (100) steps left.
- At lr 0.01 L1 alone is 0.5 to 10.5 points ahead of TPP in the mean of every setting, and between 13.8 behind its reconstruction and, on
  MNIST, ahead of it (0.2 points and less on LeNet-5, 19.9 on conv-4); on the digits at 0.5 0.7 ahead. At 0.0001 it is 0.9 to 52 points behind
  its reconstruction.
- Equal steps are about equal seconds: a step of TPP took 0.98 to 1.03 times a plain one on ResNet-56 (`tpp_step.py`), and the reconstruction,
  not counted, about as long as 20 steps (12 CPU seconds).

Where both have one and the same short fine-tuning, TPP's 600 steps coming on top, reconstruction is ahead at lr 0.001, by a median of 0.8
points, and level with TPP at 0.01 and 0.03 (`predictors.py`). Not run: lr above 0.01. Run `python
analyses/repair_finetuning.py --networks lenet-5-relu "conv-4 (digits)" --out figures`, $ISOMETRY_DATA naming the folder with MNIST: three
minutes of one core per seed; with `--networks resnet-20 resnet-56 --ratios 0.9` forty, ResNet-20 at another ratio
fifteen. The rows of the other networks are kept.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry.files import markdown
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, script
from isometry.trials.outcomes import percent
from isometry.trials.protocols import growing
from isometry.trials.provenance import is_finished


class Setting(NamedTuple):
    """A network, its data, and how long it is trained.

    Attributes:
        trial: what all its trials have in common.
        before: steps that TPP trains before removal.
        settle: steps of these that zero its layers, one after the other.
        after: steps that it trains after it; the others have the sum of both after it.
        batch: samples a step.
        epoch: steps of a pass over the training images.
    """

    trial: dict[str, Any]
    before: int
    settle: int
    after: int
    batch: int
    epoch: int

    def recipe(self, steps: int, lr: float) -> Recipe:
        """Return a fine-tuning of about so many steps, the second half of them at a tenth of the rate."""
        epochs = max(2, round(steps / self.epoch))
        autocast = bool(self.trial.get("autocast"))
        decay, first = 5e-4 if autocast else 1e-4, min(steps // 2, self.epoch)
        return Recipe(lr, epochs, self.batch, 0.9, decay, Steps((0.5,)), epoch_steps=first, autocast=autocast)


NARROW = {"widths": (16, 16, 32, 32)}
RESIDUAL = {"dataset": "cifar10", "pretrain": "cifar10", "layers": "layer*.conv1", "autocast": True}
NETWORKS = {
    "lenet-5-relu": Setting({"network": "lenet-5-relu", "dataset": "mnist", "pretrain": Recipe(1e-2, 2, 64)}, 600, 100, 200, 64, 938),
    "conv-4": Setting(
        {"network": "conv-4", "dataset": "mnist", "pretrain": Recipe(2e-2, 1, 64), "options": {"input_shape": (1, 28, 28), **NARROW}}, 600, 100, 200, 64, 938
    ),
    "conv-4 (digits)": Setting(
        {"network": "conv-4", "dataset": "digits", "pretrain": Recipe(2e-2, 30, 64), "options": {"input_shape": (1, 8, 8), **NARROW}}, 600, 100, 200, 64, 23
    ),
    "resnet-20": Setting({"network": "resnet-20", **RESIDUAL}, 200, 33, 100, 128, 351),
    "resnet-56": Setting({"network": "resnet-56", **RESIDUAL}, 200, 60, 100, 128, 351),
}  # fmt: skip


def trials(name: str, seed: int, ratios: list[float], quick: bool) -> dict[tuple[str, float, float], Trial]:
    """Return {(method, ratio, rate): trial} of a setting and seed."""
    setting = NETWORKS[name]
    base = {**setting.trial, "seed": seed}
    if quick:
        setting = setting._replace(before=40, settle=6, after=20)
        base["pretrain"] = Recipe(2e-2, 1, 64)
    tune, longer = setting.after, setting.before + setting.after
    decay = 5e-4 if "autocast" in base else 1e-4
    grow = growing(setting.before, setting.settle, batch_size=setting.batch, weight_decay=decay)
    methods: dict[str, tuple[isometry.Pruner, str | None, int]] = {
        "L1": (isometry.L1(), None, longer),
        "L1 + reconstruct": (isometry.L1(), "reconstruct", longer),
        "TPP": (isometry.TPP(**grow, zero_out=1), None, tune),
    }
    return {
        (method, ratio, lr): Trial(
            **base, pruner=pruner, ratio=ratio, repair=repair, finetune=setting.recipe(steps, lr)
        )
        for (method, (pruner, repair, steps)), ratio, lr in itertools.product(
            methods.items(), ratios, (1e-2, 1e-3, 1e-4)
        )
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network, ratio and method: accuracy in % before fine-tuning and after it, by rate."""
    lines: list[dict[str, Any]] = []
    for (network, ratio, method), group in table.groupby(["network", "ratio", "method"], sort=False):
        start = group[(group["epoch"] == 0) & group["phase"].isin(["pruned", "repaired"])]
        start = start.groupby("trial").tail(1).drop_duplicates("seed")
        line = {"network": network, "ratio": f"{ratio:g}", "method": method, "before": percent(start)}
        line["mean JSV before"] = script.format_spread(start["mean_jsv"], 3)
        for lr, rows in group[group["phase"] == "finetune"].groupby("lr", sort=False):
            line[f"after, lr {lr:g}"] = percent(rows.groupby("trial").tail(1))
        lines.append(line)
    return pd.DataFrame(lines)


def tables(table: pd.DataFrame) -> str:
    """Return accuracies in % and mean JSVs, mean and standard deviation over seeds; in how many comparisons who is ahead."""
    return f"{markdown(summary(table))}\n\n{markdown(comparisons(table))}"


def short(table: pd.DataFrame) -> str:
    """Return the largest ratio of the first network."""
    first = table["network"] == table["network"].iloc[0]
    return markdown(summary(table[first & (table["ratio"] == table["ratio"].max())]))


def leads(table: pd.DataFrame, other: str) -> pd.DataFrame:
    """Return by how many points L1 reconstructed ends ahead of another method: one row per network, ratio, rate and seed."""
    keys = ["network", "ratio", "lr", "seed"]
    ends = table[table["phase"] == "finetune"].groupby(["trial", "method"], sort=False).tail(1)
    cells = ends.pivot_table(index=keys, columns="method", values="accuracy", sort=False)
    return (100 * (cells["L1 + reconstruct"] - cells[other])).dropna().rename("points").reset_index()


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """Return in how many comparisons L1 reconstructed ends ahead, by network and ratio, by rate, and in all."""
    lines: dict[str, dict[str, Any]] = {}
    for other in ("TPP", "L1"):
        every = leads(table, other)
        cases = every["network"] + ", ratio " + every["ratio"].map("{:g}".format)
        for names in (cases, "lr " + every["lr"].map("{:g}".format), pd.Series("all", every.index)):
            for name, points in every["points"].groupby(names, sort=False):
                line = lines.setdefault(str(name), {"comparisons": name, "number": len(points)})
                line[f"ahead of {other}"] = (points > 0).sum()
                line[f"level with {other}"] = (points == 0).sum()
                line[f"points ahead of {other}"] = f"{points.median():.1f} ({points.min():.1f} to {points.max():.1f})"
    return pd.DataFrame(lines.values())


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the accuracy after fine-tuning against the rate, one panel per network and ratio; dashed: before."""
    networks, ratios = list(table["network"].unique()), sorted(table["ratio"].unique())
    size = 3.8 * len(ratios), 1.1 + 2.9 * len(networks)
    figure, axes = plt.subplots(len(networks), len(ratios), figsize=size, layout="constrained", squeeze=False)
    for ax, (network, ratio) in zip(axes.flat, itertools.product(networks, ratios), strict=True):
        part = table[(table["network"] == network) & (table["ratio"] == ratio)]
        if part.empty:
            ax.set_visible(False)
            continue
        for index, (method, rows) in enumerate(part.groupby("method", sort=False)):
            ends = rows[rows["phase"] == "finetune"].groupby("trial").tail(1)
            over = 100 * ends.groupby("lr")["accuracy"].agg(["mean", "std"]).fillna(0)
            ax.errorbar(over.index, over["mean"], over["std"], color=f"C{index}", marker="o", capsize=3, label=method)
            before = rows[rows["epoch"] == 0].groupby("trial").tail(1)["accuracy"].mean()
            ax.axhline(100 * before, color=f"C{index}", linestyle="--", linewidth=1)
        ax.set(xscale="log", xlabel="learning rate", ylabel="accuracy, %")
        setting = NETWORKS[network]
        steps = f"about {setting.before + setting.after} steps (TPP {setting.before} + {setting.after})"
        ax.set_title(f"{network}, ratio {ratio:g}\n{steps}, n = {part['seed'].nunique()}", fontsize="medium")
    last = axes[0, -1]
    last.axhline(math.nan, color="black", linestyle="--", linewidth=1, label="before fine-tuning")
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    tpp, alone = leads(table, "TPP")["points"], leads(table, "L1")["points"]
    figure.suptitle(
        f"In as many training steps L1 reconstructed ends ahead of TPP in {(tpp > 0).sum()} of {len(tpp)} comparisons, "
        f"of L1 alone in {(alone > 0).sum()}\n"
        "(TPP's first steps are before removal, the others' all after it; mean and standard deviation over n seeds)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=(0.5, 0.7, 0.9), extend=True)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS)[:2])
    parser.add_argument("--finished", action="store_true", help="take the trials that have been run, run no others")
    options = script.parse(parser, quick_ignores=("seeds", "networks"))
    output = script.Output.of("repair_finetuning", options)
    if not options.redraw:
        networks, seeds = (["conv-4 (digits)"], 1) if options.quick else (options.networks, options.seeds)
        ratios = options.ratios[:2] if options.quick else options.ratios
        for network in networks:
            named = [each for seed in range(seeds) for each in trials(network, seed, ratios, options.quick).items()]
            if options.finished:
                named = [(heading, trial) for heading, trial in named if is_finished(trial, options.runs)]
            labels = [{"network": network, "method": method} for (method, _, _), _ in named]
            output.write_network(*output.run_trials([trial for _, trial in named], labels))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
