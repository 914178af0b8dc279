"""Is the learning rate of fine-tuning a hidden variable when pruning methods are compared?

Yes, on two small networks without BatchNorm, and on ResNet-20 only at the largest rate (80 % of the units removed, five epochs at a constant
rate, of 100 steps on MNIST and of 40 on CIFAR-10; three seeds, mean ± standard deviation). "Trainability accuracy" is the mean test accuracy
over those epochs.

- MLP-7-Linear (the oracle sets its layers so that every JSV is 1): L1 goes from 9.80 ± 1.02 % at lr 0.0003 to 75.89 ± 1.75 at 0.03, a gap of
  66 points between rates; with the oracle it stays between 84.70 and 90.88 %, with TPP between 70.89 and 79.41 %. The oracle is ahead of L1
  by 79 points at lr 0.0003 and by 9 at 0.03; at 0.1 all three diverge.
- LeNet-5: from 0.003 to 0.03 L1, L1 + reconstruct and TPP lie within 1.8 points of each other; at 0.0003 L1 (71.90 ± 14.37 %) is 21 to 22
  points behind the others. At 0.1 the order turns: L1 63.05 ± 16.59 %, reconstructed 27.59 ± 7.89 %, TPP 10.81 ± 0.14 %.
- The best rates differ, too: on MLP-7-Linear L1 is best at 0.03, TPP at 0.01 (in two of three seeds), the oracle at 0.001 and 0.003. A
  comparison at one rate can so favor either.
- On LeNet-5 L1 needs a median of two epochs at 0.01, four at 0.001 and more than five at 0.0003 until its mean JSV reaches the dense
  network's, TPP one to five below 0.03, the reconstructed network none. On MLP-7-Linear neither L1 nor TPP gets there at any rate; the
  oracle, from 1 to the dense 1.1, does within two epochs up to 0.01.
- ResNet-20 (units of every block's conv1): all three are best at 0.01, and from 0.0003 to 0.03 L1 + reconstruct is in all three seeds ahead of
  TPP, by 5.5 to 7.8 points in the mean, and TPP of L1, by 5.9 to 10.6. At 0.1 TPP is ahead of L1 by 6.8 and behind the reconstructed
  network in two seeds only (by 4.5 and 0.7, ahead by 3.2 in the third). Between rates up to 0.03 L1 changes by 19 points, its reconstruction
  by 14, TPP by 15. The mean JSV just before does not order these two: TPP starts at 1.15 to 1.34 times the dense network's, the
  reconstructed network at half of it.

TPP trained for 600 steps before removal (ResNet-20: 200), the others for none. Not tested: other ratios, long schedules, larger networks. Run
`python analyses/learning_rate.py --out figures`, $ISOMETRY_DATA naming the folder with MNIST: four minutes of one core per seed; with
`--networks resnet-20` some 20 minutes per seed. The rows of the other networks are kept.
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
from isometry.training.recipe import Recipe
from isometry.trials import Trial, script
from isometry.trials.outcomes import percent
from isometry.trials.protocols import growing

RATES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
STABLE = 3e-2  # the largest rate at which no network collapses or diverges
EPOCHS = 5  # of the first stage, at a constant rate


class Setting(NamedTuple):
    """What the trials of a network have in common, the steps that TPP trains before removal, and what is fine-tuned with.

    Attributes:
        trial: arguments of `Trial`.
        before: steps of TPP before removal.
        steps: of an epoch of fine-tuning.
        batch: samples a step.
        decay: weight decay.
    """

    trial: dict[str, Any]
    before: int
    steps: int
    batch: int
    decay: float


RESIDUAL = {"dataset": "cifar10", "pretrain": "cifar10", "layers": "layer*.conv1", "autocast": True, "validation": 5000}
NETWORKS = {
    "mlp-7-linear": Setting({"dataset": "mnist", "pretrain": Recipe(1e-2, 3, 64)}, 600, 100, 64, 1e-4),
    "lenet-5-relu": Setting({"dataset": "mnist", "pretrain": Recipe(1e-2, 2, 64)}, 600, 100, 64, 1e-4),
    "resnet-20": Setting(RESIDUAL, 200, 40, 128, 5e-4),
}
DIGITS = {"dataset": "digits", "pretrain": Recipe(1e-2, 1, 64), "options": {"input_shape": (1, 8, 8)}}


def trials(network: str, seed: int, ratio: float, quick: bool) -> dict[tuple[str, float], Trial]:
    """Return {(method, rate): trial} of a network and seed; the oracle repairs the linear network, least squares the others."""
    setting, epochs = NETWORKS[network], EPOCHS
    if quick:
        setting, epochs = setting._replace(trial=DIGITS, before=60, steps=5), 2
    before, batch, decay = setting.before, setting.batch, setting.decay
    repair = "oracle" if network == "mlp-7-linear" else "reconstruct"
    autocast = bool(setting.trial.get("autocast"))
    methods: dict[str, tuple[isometry.Pruner, str | None]] = {
        "L1": (isometry.L1(), None),
        f"L1 + {repair}": (isometry.L1(), repair),
        "TPP": (isometry.TPP(**growing(before, before // 6, batch_size=batch, weight_decay=decay), zero_out=1), None),
    }
    return {
        (name, lr): Trial(
            network=network, **setting.trial, pruner=pruner, ratio=ratio, repair=repair, seed=seed,
            finetune=Recipe(
                lr, epochs, batch, weight_decay=decay, schedule=None, epoch_steps=setting.steps, autocast=autocast
            ),
        )
        for (name, (pruner, repair)), lr in itertools.product(methods.items(), RATES)
    }  # fmt: skip


def outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per trial: trainability accuracy, last accuracy, epochs until the mean JSV reaches the dense network's."""
    lines = []
    for trial, rows in table.groupby(["network", "method", "lr", "seed"], sort=False):
        tuned, dense = rows[rows["phase"] == "finetune"], rows[rows["phase"] == "dense"].iloc[0]
        line: dict[str, Any] = dict(zip(("network", "method", "lr", "seed"), trial, strict=True))
        line["diverged"] = bool(tuned["diverged"].any())
        line["accuracy"] = math.nan if line["diverged"] else tuned["accuracy"].mean()
        line["final"] = math.nan if line["diverged"] else tuned["accuracy"].iloc[-1]
        course = pd.concat([rows[rows["phase"].isin(["pruned", "repaired"])].tail(1), tuned])
        passed = course[course["mean_jsv"] >= dense["mean_jsv"]]
        line["epochs_to_dense_jsv"] = passed["epoch"].iloc[0] if len(passed) else math.inf
        lines.append(line)
    return pd.DataFrame(lines)


def tables(table: pd.DataFrame) -> str:
    """Return the trainability accuracy in % by method and rate, the gap between the best and the worst rate, and the epochs."""
    accuracies, epochs = [], []
    for (network, method), group in outcomes(table).groupby(["network", "method"], sort=False):
        line, waits = ({"network": network, "method": method} for _ in range(2))
        means: dict[float, float] = {}
        for lr, rows in group.groupby("lr", sort=False):
            failed = int(rows["diverged"].sum())
            line[f"lr {lr:g}"] = f"{failed} of {len(rows)} diverged" if failed else percent(rows)
            means[float(str(lr))] = rows["accuracy"].mean() if not failed else math.nan
            typical = rows["epochs_to_dense_jsv"].median()
            waits[f"lr {lr:g}"] = "never" if math.isinf(typical) else f"{typical:g}"
        known = [mean for lr, mean in means.items() if lr <= STABLE and not math.isnan(mean)]
        line[f"best - worst, to {STABLE:g}"] = f"{100 * (max(known) - min(known)):.1f}" if known else ""
        accuracies.append(line)
        epochs.append(waits)
    caption = "Median epochs until the mean JSV reaches the dense network's:"
    return f"{markdown(pd.DataFrame(accuracies))}\n\n{caption}\n\n{markdown(pd.DataFrame(epochs))}"


def short(table: pd.DataFrame) -> str:
    """Return the trainability accuracies of the first network."""
    return tables(table[table["network"] == table["network"].iloc[0]]).split("\n\n")[0]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the trainability accuracy and the last accuracy against the rate, one row of panels per network."""
    found = outcomes(table)
    names = list(found["network"].unique())
    size = (max(8.4, 5.2 * len(names)), 7.6)
    figure, axes = plt.subplots(2, len(names), figsize=size, layout="constrained", squeeze=False, sharex=True)
    texts = (("accuracy", f"mean accuracy over {EPOCHS} epochs, %"), ("final", f"accuracy after {EPOCHS} epochs, %"))
    for (column, network), (row, (y, text)) in itertools.product(enumerate(names), enumerate(texts)):
        ax, part = axes[row, column], found[found["network"] == network]
        seeds = part["seed"].nunique()
        for index, (method, rows) in enumerate(part.groupby("method", sort=False)):
            over = (100 * rows.set_index("lr")[y]).groupby(level=0).agg(["mean", "std"])
            ax.errorbar(
                over.index, over["mean"], over["std"].fillna(0), color=f"C{index}", marker="o", capsize=3, label=method
            )
        ax.set(xscale="log", xlabel="learning rate of fine-tuning" if row else "", ylabel=text)
        ax.set_title(f"{network}, {seeds} seed{'s' * (seeds > 1)}")
        ax.legend(frameon=False)
    kept = found[~found["diverged"] & (found["lr"] <= STABLE)]
    means = 100 * kept.groupby(["network", "method", "lr"], sort=False)["accuracy"].mean()
    gaps = means.groupby(level=["network", "method"], sort=False).agg(lambda mean: mean.max() - mean.min())
    told = "; ".join(
        f"{name}: {', '.join(f'{method} {gap:.0f}' for method, gap in gaps[name].items())}"
        for name in gaps.index.unique("network")
    )
    figure.suptitle(
        f"Points of accuracy between the best and the worst rate up to {STABLE:g}, {100 * table['ratio'].max():g} % of the units removed:\n{told}\n"
        f"{EPOCHS} epochs at a constant rate; bars: std over seeds; no point: diverged"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, extend=True)
    parser.add_argument("--ratio", type=script.ratio, default=0.8, help="fraction of units removed")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["mlp-7-linear", "lenet-5-relu"])
    options = script.parse(parser, quick_ignores=("networks", "seeds"))
    output = script.Output.of("learning_rate", options)
    if not options.redraw:
        networks, seeds = (["mlp-7-linear"], 1) if options.quick else (options.networks, options.seeds)
        for network in networks:
            named = [
                each for seed in range(seeds) for each in trials(network, seed, options.ratio, options.quick).items()
            ]
            labels = [{"method": method} for (method, _), _ in named]
            output.write_network(*output.run_trials([trial for _, trial in named], labels, fixed=("dataset", "ratio")))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
