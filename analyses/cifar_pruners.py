"""Which pruner leaves a residual network trainable on CIFAR-10, and does its mean JSV just after pruning tell?

With 400 training steps for every method, those before removal included (given weights, 2 seeds, mean ± standard deviation; dense
ResNet-56 93.44 %, ResNet-20 91.76 %). Two seeds of two networks show large differences only.

- Just after removal and without a repair, TPP is far ahead up to 0.7. ResNet-56 at ratio 0.5: 86.75 ± 0.15 % and a mean JSV of
  13.1 (dense 12.4); L1 39.36 % and 8.6, GReg 60.91 ± 3.03 % and 9.0. At 0.7 71.28 ± 0.19 % and 16.7; the others are near
  chance, at 0.6 to 3.2. At 0.9 TPP's accuracy, too, is lost (21.91 ± 0.01 %), its mean JSV is not
  (11.5).
- Much of that is the statistics of BatchNorm: estimated anew without training they bring L1 to 81.98 ± 0.04 % at 0.5 and
  52.19 ± 0.09 % at 0.7. ResNet-20 fine-tuned with and without them ends as one and the same network.
- After fine-tuning ResNet-56 L1 is ahead at 0.5 (90.36 ± 0.10, TPP 89.61 ± 0.14 %) and at 0.7 (86.59 ± 0.13, TPP 84.45 %), where GReg,
  without TPP's Gram term, ends no worse than TPP (89.89 ± 0.03, 84.47 ± 0.37 %). At 0.9 TPP
  has the highest mean (60.15 ± 0.98; Slimming 59.04 ± 1.00, L1 56.55 ± 2.31 %), a lead that two seeds do not establish. On ResNet-20
  TPP does not lead at 0.9. TPP fine-tunes for half of the steps, having spent the others before removal.
- OrthP costs L1 3.5, 11.6 and 17.2 points at 0.5, 0.7 and 0.9 on ResNet-56, 6.5, 11.4 and 4.7 on ResNet-20, and leaves JSVs near or below
  1; published, on ResNet-56, it costs up to 0.7.
- Just before fine-tuning the mean JSV ranks what follows better than the accuracy, which is near chance for most methods: rank
  correlations within (network, ratio, seed) of 0.76 and 0.73 on ResNet-56 and ResNet-20 against 0.36 and 0.32; of two methods it finds
  the better one in 84 and 79 % against 67 and 63 %. Larger is better here, nearer to 1 is not: the distance of its logarithm from 0, and
  the isometry gap, correlate positively. Seven methods on two networks are few. L1 + recalibrate, left out there, shows the limit: on
  ResNet-20 at 0.5 it starts at 18.7, L1 at 8.4, and they end as one network. `predictors.py` asks the question with repairs.

Slimming and RNI have few steps here to make anything sparse; RNI's strength was chosen between two on training images. Nothing is chosen
on the test part; the given weights were trained on all of the training part. The published rows follow protocols with hundreds of times
the steps. Run `python analyses/cifar_pruners.py --seeds 2 --out figures`, and again with `--network resnet-20`, $ISOMETRY_DATA naming the
folder with CIFAR-10 and the weights: three hours of one core each.

The published schedules, 47,000 steps for L1 and 157,000 for TPP, are for a GPU, and have not been run. `--schedule published --device cuda
--jobs 6 --seconds 1500` ends in time, with the table `cifar_pruners-published` of what is finished; the same command goes on from there. It
begins with L1, alone and reconstructed, and TPP at ratio 0.9, goes on with the smaller ratios and RNI on VGG-16, and ends with the other
methods. Networks run in bfloat16, their weights, losses and JSVs are float32; steps are replayed from CUDA graphs. An estimate, no
measurement: at 3 to 6 ms per step of ResNet-56 L1 takes 2 to 5 minutes of a device, TPP 8 to 16, the methods at 0.9 that come first, with
three seeds, 40 to 75 minutes, and everything 7 to 13 hours. Published accuracies are of the best test epoch, those here of the last one.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

from isometry import plots
from isometry.files import markdown
from isometry.training.recipe import Recipe
from isometry.trials import Trial, script
from isometry.trials.outcomes import add_steps_spent, before_finetuning, last_epoch, name_methods, percent, texts_before
from isometry.trials.prediction import Cells, assess
from isometry.trials.protocols import cifar_methods, published_trials
from isometry.trials.published import CIFAR_ACCURACY, VGG_ACCURACY

NAMES = {"random": "Random", "l1": "L1", "greg": "GReg", "tpp": "TPP", "slimming": "Slimming", "recedingbn": "RNI"}
PREDICTORS = {
    "mean_jsv": "mean JSV", "from_dense": "distance of log mean JSV from dense", "from_one": "distance of log mean JSV from 0",
    "isometry_gap": "isometry gap", "condition_number": "condition number", "accuracy": "accuracy", "loss": "loss",
}  # fmt: skip
REPAIRS = {"orthp": " + OrthP", "recalibrate": " + recalibrate", "reconstruct": " + reconstruct"}
PUBLISHED = {"resnet-56": CIFAR_ACCURACY, "vgg-16": VGG_ACCURACY}


def trials(network: str, schedule: str, ratios: list[float], seeds: int) -> list[Trial]:
    """Return every trial of the question, on a short schedule."""
    base: dict[str, Any] = {"dataset": "cifar10", "network": network, "pretrain": "cifar10"}
    base |= {"validation": 5000, "autocast": True}
    if schedule == "quick":
        base = {"dataset": "digits", "network": "resnet-20", "pretrain": Recipe(1e-1, 3, 32)}
        base["options"] = {"input_shape": (1, 8, 8)}
    return [
        Trial(**base, finetune=tune, pruner=pruner, ratio=ratio, layers="layer*.conv1", repair=repair, seed=seed)
        for seed, ratio, (pruner, repair, tune) in itertools.product(range(seeds), ratios, cifar_methods(schedule))
    ]


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows from pruning on with columns `method` and `spent`, the training steps so far."""
    return add_steps_spent(name_methods(table, NAMES, REPAIRS))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network, method and ratio, mean and standard deviation over seeds as text; published rows too."""
    lines: list[dict[str, Any]] = []
    for network, part in named(table).groupby("network", sort=False):
        lines += unpruned(table[table["network"] == network])
        for (ratio, method), group in part.groupby(["ratio", "method"], sort=False):
            cell = {"network": network, "ratio": f"{ratio:g}", "method": method}
            pruned = table[(table["phase"] == "pruned") & table["trial"].isin(group["trial"])]
            start, tuned = before_finetuning(group), last_epoch(group)
            line = {**cell, "realized": f"{pruned['realised_ratio'].mean():.2f}", "protocol": protocol(group)}
            line |= {"parameters, k": f"{start['parameters'].mean() / 1e3:.0f}", **texts_before(start)}
            lines.append(line | ({"fine-tuned, %": percent(tuned, always=False)} if len(tuned) else {}))
            paper, accuracies = PUBLISHED.get(str(network), {}).get(str(method), ("", {}))
            if ratio in accuracies:
                lines.append({**cell, "fine-tuned, %": accuracies[ratio], "protocol": f"published, {paper}"})
    columns = ["network", "ratio", "method", "realized", "parameters, k", "mean JSV", "std", "condition number",
               "just pruned, %", "fine-tuned, %", "protocol"]  # fmt: skip
    return pd.DataFrame(lines).reindex(columns=columns).fillna("")


def unpruned(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the lines of networks before removal: of given weights, or trained from scratch by every method."""
    network, dense = table["network"].iloc[0], table[table["phase"] == "dense"].head(1)
    if network != "vgg-16":
        return [{"network": network, "method": "dense", **texts_before(dense), "protocol": "given weights"}]
    trained = table[table["phase"] == "sparse"].drop_duplicates(["method", "seed"])
    return [
        {"network": network, "method": method, **texts_before(rows), "protocol": "before removal"}
        for method, rows in trained.groupby("method", sort=False)
    ]


def protocol(rows: pd.DataFrame) -> str:
    """Return how the trials of one method were trained, as text."""
    seeds, diverged = rows["seed"].nunique(), rows.loc[rows["diverged"], "seed"].nunique()
    steps = f"{rows['spent'].max():.0f} steps" if rows["steps"].notna().any() else "not fine-tuned"
    return f"{steps}, {seeds} seed{'s' * (seeds > 1)}" + (f", {diverged} diverged" if diverged else "")


def predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the numbers just before fine-tuning tell of the accuracy after it, within (network, ratio, seed).

    Nothing where no such cell has three methods yet. L1 + recalibrate is left out: fine-tuned, it is L1. So is VGG-16, whose methods start from networks of their own.
    """
    rows = named(table[(table["repair"] != "recalibrate") & (table["network"] != "vgg-16")])
    starts, ends = before_finetuning(rows).drop_duplicates("trial"), last_epoch(rows).set_index("trial")["accuracy"]
    starts = starts.assign(outcome=starts["trial"].map(ends)).dropna(subset="outcome")
    if starts.groupby(["network", "ratio", "seed"]).size().max() < 3 or starts.empty:
        return pd.DataFrame()
    dense = starts["network"].map(table[table["phase"] == "dense"].groupby("network")["mean_jsv"].first())
    ratio, size = starts["mean_jsv"] / dense, starts["mean_jsv"]
    starts = starts.assign(from_dense=ratio.map(math.log).abs(), from_one=size.map(math.log).abs())
    cells = Cells.of(starts, list(PREDICTORS), "outcome", within=["ratio"])
    return pd.DataFrame(
        {"number just before fine-tuning": PREDICTORS[each.candidate]}
        | {f"{name}: rank correlation": f"{value:.2f}" for name, value in each.correlations.items()}
        | {f"{name}: right choices, %": f"{100 * value:.0f}" for name, value in each.shares.items()}
        for each in assess(cells, given="accuracy", margin=0.005)
    )


def tables(table: pd.DataFrame) -> str:
    """Return all results ("realized" is the fraction of units removed), then what predicts the fine-tuned accuracy."""
    return "\n\n".join(markdown(part) for part in (summary(table), predictions(table)) if len(part))


def short(table: pd.DataFrame) -> str:
    """Return L1 and TPP on ResNet-56 at ratios 0.5 and 0.9."""
    rows = summary(table)
    rows = rows[(rows["network"] == "resnet-56") & rows["ratio"].isin(["0.5", "0.9"]) & (rows["realized"] != "")]
    columns = ["ratio", "method", "mean JSV", "just pruned, %", "fine-tuned, %"]
    return markdown(rows.loc[rows["method"].isin(["L1", "TPP"]), columns])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw one picture per network, the first at `path`, the others beside it with the network's name added."""
    for index, (network, rows) in enumerate(named(table).groupby("network", sort=False)):
        draw_network(rows, path.with_stem(f"{path.stem}-{network}") if index else path)


def draw_network(rows: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against steps spent by ratio, and the final accuracy against the JSV just before fine-tuning."""
    ratios = sorted(rows["ratio"].unique())
    figure, axes = plt.subplots(2, len(ratios), figsize=(5.2 * len(ratios), 9), layout="constrained", squeeze=False)
    for upper, lower, ratio in zip(axes[0], axes[1], ratios, strict=True):
        part = rows[rows["ratio"] == ratio]
        plots.sweep(part, upper, x="spent", y="accuracy").legend([], frameon=False)
        upper.set_xlabel("training steps spent, those before removal included")
        upper.set_title(f"ratio {ratio:g} of the units of every block's conv1", fontsize="medium")
        plots.outcome(part[part["method"] != "L1 + recalibrate"], lower)  # which, fine-tuned, is L1
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    tuned = rows[rows["phase"] == "finetune"]  # L1 + recalibrate may not be: fine-tuned, it is L1
    spent = tuned.groupby("method")["spent"].max()
    length = f"{int(spent.max())} training steps for every method" if spent.nunique() == 1 else "published schedules"
    setting = f"{rows['network'].iloc[0]} on {rows['dataset'].iloc[0]}, {length}"
    result = f"at ratio {' / '.join(f'{ratio:g}' for ratio in ratios)}: " + "; ".join(
        f"{when} {contrast(part, ratios)}"
        for when, part in (
            ("just after the cut", before_finetuning(rows)),
            ("at the end", tuned.groupby("trial").tail(1)),
        )
    )
    spread = f"(mean over {rows['seed'].nunique()} seeds, bars: one standard deviation)"
    figure.suptitle(f"{setting} {spread}\n{result}", fontsize="large")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def contrast(rows: pd.DataFrame, ratios: list[float]) -> str:
    """Return the mean accuracies of TPP and L1 at every ratio as text; of a method without rows, nothing."""
    means = 100 * rows.groupby(["method", "ratio"])["accuracy"].mean()
    texts = {name: [f"{means[name, r]:.1f}" for r in ratios if (name, r) in means] for name in ("TPP", "L1")}
    return ", ".join(f"{name} {' / '.join(values)} %" for name, values in texts.items() if values)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3, ratios=(0.5, 0.7, 0.9), device=True, seconds=True, extend=True)
    parser.add_argument("--network", choices=["resnet-20", "resnet-56"], default="resnet-56", help="which network")
    parser.add_argument(
        "--schedule",
        choices=["short", "published"],
        default="short",
        help="of training; published: with VGG-16 after the network",
    )
    options = script.parse(parser, quick_ignores=("network", "ratios", "schedule", "seeds"))
    published = options.schedule == "published"
    setting = options.network if options.quick else f"{options.network}-{options.schedule}"
    output = script.Output.of("cifar_pruners-published" if published else "cifar_pruners", options, setting)
    if published and not options.redraw:
        wanted, labels, ranks = published_trials(options.network, options.ratios, options.seeds)
        table, origin = output.run_trials(wanted, labels, ranks=ranks)
        if len(table):
            output.write(table, origin)
    elif not options.redraw:
        schedule, ratios, seeds = ("quick", [0.5], 1) if options.quick else ("short", options.ratios, options.seeds)
        output.write_network(*output.run_trials(trials(options.network, schedule, ratios, seeds)))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
