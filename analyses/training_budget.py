"""After how many training steps does preserving trainability pay off?

At no budget that was run it clearly does: on ResNet-56 TPP is ahead of plain L1 by 1.5 points at 800 steps and level with it at 400 and
1,600, and on ResNet-20 it stays behind up to 6,400, the longest run, or comes level at 800 and 1,600 where only half of them are before
removal, and falls behind again, by 1.8 and 3.0 points, at 3,200 and 6,400 (ratio 0.9, CIFAR-10, given weights: dense 93.46 and 91.75 %); L1
with a reconstruction by least squares, which takes no training, is ahead of both there, by less the longer one trains: at 0.7 L1 alone
overtakes it between 800 and 1,600 steps.

- ResNet-56: TPP, with two thirds of the steps before removal, ends at 57.73 ± 1.12 % with 400 steps in all and 67.15 ± 0.33 % with 800, L1 at
  57.37 ± 1.12 and 65.61 ± 1.06 % (two seeds, mean ± standard deviation; TPP is ahead in three of the four comparisons, by 0.6 to 2.5 points,
  and behind by 1.2 in the other), and at 73.74 % with 1,600, L1 at 73.94 (one seed). With 200 steps there are too few to zero its 27 pruned
  layers one after the other, at one layer a step (the last of them is the 54th).
- ResNet-20: TPP ends behind L1 with 200 steps (28.52 ± 0.68 against 38.55 ± 2.55 %), with 400 (40.47 ± 0.45, 44.44 ± 2.44), with 800 (47.55 ±
  1.46, 50.87 ± 1.47), with 1,600 (53.59 ± 0.46, 57.63 ± 0.95), with 3,200 (58.08 ± 0.47, 63.84 ± 1.33) and with 6,400 (64.59 ± 0.49, 70.36 ±
  1.62; two seeds each, behind in all twelve comparisons). What it lacks falls from 10 points to 3 and then grows to 6: nothing here points to
  a crossing.
- L1 reconstructed is ahead of L1 by 16.9, 11.2, 7.3 and 3.3 points on ResNet-56 (200 to 1,600 steps, the first and the last from one seed),
  by 8.9, 8.5, 8.5, 7.4, 6.2 and 3.6 on ResNet-20 (two seeds; 1.8 and 5.3 with 6,400): the lead shrinks, and is there in every comparison at
  0.9. With 400 steps it is where L1 is with more than 800.
- ResNet-20 at 0.7, two seeds: L1 reconstructed is ahead of L1 by 4.2, 2.4 and 0.7 points with 200, 400 and 800 steps and, in both seeds,
  behind it with 1,600 (83.00 ± 0.23 against 83.43 ± 0.08 %), 3,200 (84.71 ± 0.30, 85.23 ± 0.03) and 6,400 (86.20 ± 0.06, 86.53 ± 0.04). TPP
  is behind L1 by 7.6, 4.1, 2.9, 2.2, 1.8 and 1.45 points (85.08 ± 0.20 % with 6,400), and so comes nearer with every doubling; up to 6,400
  steps it does not get there.
- Half of the steps before removal suit TPP better than two thirds, ResNet-20, two seeds: by 2.2, 2.0, 2.8, 3.8, 4.0 and 2.8 points at 0.9 with
  200 to 6,400 steps, and at 0.7 by 1.9, 1.3, 0.9 and 0.9 with 400 to 3,200 (200: -1.2). So it is 7.8, 2.0, 0.5, 0.2, 1.8 and 3.0 points behind
  L1 at 0.9 (67.38 ± 0.12 % with 6,400; with 800 and 1,600 ahead in one seed of two, otherwise in none), and 8.8, 2.2, 1.5, 1.2 and 0.95 at 0.7
  (84.28 ± 0.17 % with 3,200; in every comparison).
- The others, likewise, end behind TPP in the mean but for GReg with 200 steps: with 3,200 at 0.9 GReg 57.15 ± 0.34, Slimming 48.16 ± 2.21,
  RNI 36.30 ± 13.51 %; at 0.7 83.57 ± 0.00, 58.86 ± 4.37, 69.03 ± 2.69 %. Slimming's and RNI's strengths are the same at every budget, so that
  more steps are also more of the penalty: at 0.7 Slimming ends lower with 3,200 steps than with 400.
- With 400 steps and half of them before removal (`cifar_pruners.py`, 2 seeds) TPP ends behind L1 on ResNet-20: 83.65 ± 0.13 against 85.90 ±
  0.08 % at 0.5, 74.32 ± 0.07 against 76.60 ± 0.11 % at 0.7, 41.46 ± 0.61 against 44.03 ± 3.70 % at 0.9; on ResNet-56 at 0.9 ahead in both
  seeds, by 5.9 and 1.3 points: 60.15 ± 0.98 against 56.55 ± 2.31 %.
- The published 2.9 points by which TPP is ahead at 0.9 on ResNet-56 are not at equal steps: TPP trains for about 157,000 steps, L1 for
  47,000.

Not run: ResNet-56 at 0.7 and with more than 1,600 steps; 6,400 steps of TPP with half before removal at 0.7, of GReg, Slimming and
RNI at both ratios; more seeds. Budgets up to 800 steps take some hours of one core, all of them most of a day. Run
`python analyses/training_budget.py --out figures`, which takes the cheapest budgets first, or parts of it (`--network resnet-56 --budgets 400
800 --ratios 0.9 --only L1 "TPP, 2/3 before"`), and then all that is there with `--finished`, network by network; `--extend` adds it to a
table whose runs are elsewhere. $ISOMETRY_DATA names the folder with CIFAR-10 and the weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import isometry
from isometry.files import markdown
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, script
from isometry.trials.outcomes import percent
from isometry.trials.protocols import growing
from isometry.trials.provenance import is_finished
from isometry.trials.published import CIFAR_ACCURACY

PUBLISHED_STEPS = 401 * 391  # 281 epochs before removal and 120 after, of 50,000 images in batches of 128
PASS = 351  # whole batches of a pass over the 45,000 training images, at which an epoch ends at the latest
BUDGETS = (200, 400, 800, 1600, 3200, 6400)


def methods(budget: int, quick: bool) -> dict[str, tuple[isometry.Pruner, str | None, int]]:
    """Return {method: (pruner, repair, steps of fine-tuning)}; with those before removal they make the budget.

    Growing penalties pull alike on the weights to be removed whatever the budget; see `growing`.
    """
    half, long, batch = budget // 2, 2 * budget // 3, 32 if quick else 128
    grow = {steps: growing(steps, max(int(0.28 * steps), 2), batch_size=batch) for steps in (half, long)}
    epochs = 4 * math.ceil(half / (4 * PASS))
    sparse: dict[str, Any] = {
        "epochs": epochs,
        "epoch_steps": half // epochs,
        "lr": 1e-2,
        "batch_size": batch,
        "weight_decay": 5e-4,
    }
    tpp = {
        "TPP, 2/3 before": (isometry.TPP(**grow[long], zero_out=1), None, budget - long),
        "TPP, 1/2 before": (isometry.TPP(**grow[half], zero_out=1), None, budget - half),
    }
    return {
        "L1": (isometry.L1(), None, budget),
        "L1 + reconstruct": (isometry.L1(), "reconstruct", budget),
        **({} if quick else tpp),  # in a few steps it diverges
        "GReg, 1/2 before": (isometry.GReg(**grow[half], magnitude_ratio=None), None, budget - half),
        "Slimming, 1/2 before": (isometry.Slimming(strength=1e-2, **sparse), None, budget - half),
        "RNI, 1/2 before": (isometry.RecedingBN(strength=5e-2, shift=0.0, **sparse), None, budget - half),
    }


def trials(
    network: str, budgets: list[int], ratios: list[float], seeds: int, quick: bool
) -> Iterator[tuple[int, str, Trial]]:
    """Yield (budget, method, trial), the cheapest budgets first."""
    base: dict[str, Any] = {"dataset": "cifar10", "network": network, "pretrain": "cifar10", "autocast": True}
    base["validation"] = 5000
    if quick:
        base = {"dataset": "digits", "network": network, "pretrain": Recipe(1e-1, 1, 32, epoch_steps=5)}
        base["options"] = {"input_shape": (1, 8, 8)}
    for budget, ratio, seed in itertools.product(budgets, ratios, range(seeds)):
        for name, (pruner, repair, steps) in methods(budget, quick).items():
            batch, epochs = 32 if quick else 128, 2 * math.ceil(steps / (2 * PASS))
            tune = Recipe(
                1e-2, epochs, batch, 0.9, 5e-4, Steps((0.5,)), epoch_steps=steps // epochs, autocast=not quick
            )
            yield (
                budget,
                name,
                Trial(
                    **base, finetune=tune, pruner=pruner, ratio=ratio, layers="layer*.conv1", repair=repair, seed=seed
                ),
            )


def finals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every trial."""
    return table.groupby(["trial", "method", "budget"], sort=False).tail(1)


def tables(table: pd.DataFrame) -> str:
    """Return the accuracy in % just before fine-tuning and after it, by ratio, method and budget: mean ± deviation over seeds."""
    lines = []
    for (network, ratio, method), group in finals(table).groupby(["network", "ratio", "method"], sort=False):
        line: dict[str, Any] = {"network": network, "ratio": f"{ratio:g}", "method": method}
        for budget, rows in group.groupby("budget"):
            seeds = rows["seed"].nunique()
            line[f"{budget} steps"] = f"{percent(rows)}, {seeds} seed{'s' * (seeds > 1)}"
        lines.append(line)
    return markdown(pd.DataFrame(lines).fillna(""))


def short(table: pd.DataFrame) -> str:
    """Return L1, with and without reconstruction, and TPP at the largest ratio."""
    ends = finals(table)
    few = ends["method"].isin(["L1", "L1 + reconstruct", "TPP, 2/3 before"]) & (ends["ratio"] == ends["ratio"].max())
    return tables(ends[few])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against the budget, a row per network and a panel per ratio, and what each method is ahead of L1 at the largest ratio."""
    ends = finals(table)
    networks, names = list(ends["network"].value_counts().index), list(ends["method"].unique())
    ratios = sorted(ends["ratio"].unique())
    columns = len(ratios) + 1
    size = (5.4 * columns, 1.2 + 3.8 * len(networks))
    figure, axes = plt.subplots(len(networks), columns, figsize=size, layout="constrained", squeeze=False)
    drawn: list[int] = []
    for line, network in zip(axes, networks, strict=True):
        own = ends[ends["network"] == network]
        for ax, ratio in zip(line, [*ratios, own["ratio"].max()], strict=True):
            part, ahead = own[own["ratio"] == ratio].set_index(["budget", "seed"]), ax is line[-1]
            ax.set_visible(len(part) > 0)
            l1 = part.loc[part["method"] == "L1", "accuracy"]
            for index, name in enumerate(names):
                accuracy = part.loc[part["method"] == name, "accuracy"]
                shown = (accuracy - l1 if ahead else accuracy).dropna()  # the same seed's L1
                over = 100 * shown.groupby(level="budget").agg(["mean", "std"]).fillna(0)
                ax.errorbar(over.index, over["mean"], over["std"], color=f"C{index}", marker="o", capsize=3, label=name)
            published = mark_published(ax, network, ratio) if ahead else []
            drawn += published
            marks = [*part.index.unique("budget").sort_values(), *published]
            ax.set(xscale="log", xlabel="training steps in all", title=f"{network}, ratio {ratio:g}")
            ax.set_xticks(marks, [f"{mark:,}" for mark in marks])
            ax.minorticks_off()
            ax.set_ylabel("points ahead of L1" if ahead else "accuracy, %")
        line[-1].axhline(0, color="black", linewidth=0.8)
    handles = dict(pair for ax in axes[:, -1] for pair in zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    seeds = ends.groupby(["network", "ratio", "method", "budget"])["seed"].nunique()
    low, high = seeds.min(), seeds.max()
    spread = "one seed" if high == 1 else f"bars: std over {low if low == high else f'{low} to {high}'} seeds"
    first = ends[ends["network"] == networks[0]]
    first = first[first["ratio"] == first["ratio"].max()]
    last = first[first["budget"] == first["budget"].max()]
    counts = last.groupby("seed")["method"].nunique()  # of seeds that all methods have
    last = last[last["seed"].isin(counts.index[counts == counts.max()])]
    means = 100 * last.groupby("method")["accuracy"].mean()
    told = ", ".join(f"{name} {means[name]:.1f} %" for name in names if name in means)
    note = "; crosses: as published, at unequal steps" if drawn else ""
    figure.suptitle(
        f"{networks[0]} on {ends['dataset'].iloc[0]}, ratio {last['ratio'].iloc[0]:g}: with {last['budget'].iloc[0]} training steps in all {told}\n"
        f"({spread}; L1 of the same seed is subtracted on the right{note})"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def mark_published(ax: Axes, network: str, ratio: float) -> list[int]:
    """Draw by how much TPP was ahead of L1 as published, and return at how many steps of its own; nothing where that is not known."""
    accuracies = [CIFAR_ACCURACY[name][1].get(ratio) for name in ("TPP", "L1")]
    if network != "resnet-56" or None in accuracies:
        return []
    tpp, one = (float(str(accuracy).split()[0]) for accuracy in accuracies)
    ax.plot(PUBLISHED_STEPS, tpp - one, "kx", label="TPP, published (TPP's steps)")
    return [PUBLISHED_STEPS]


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=2, ratios=(0.9, 0.7), device=True, extend=True)
    parser.add_argument("--network", choices=["resnet-20", "resnet-56"], default="resnet-20")
    parser.add_argument(
        "--budgets", type=script.positive, nargs="+", default=list(BUDGETS), help="total training steps"
    )
    parser.add_argument("--only", nargs="+", help="these methods only")
    parser.add_argument("--finished", action="store_true", help="take the trials that have been run, run no others")
    options = script.parse(parser, quick_ignores=("budgets", "ratios"))
    output = script.Output.of("training_budget", options)
    if not options.redraw:
        budgets, ratios = ([12], [0.5]) if options.quick else (options.budgets, options.ratios)
        every = trials(options.network, budgets, ratios, options.seeds, options.quick)
        wanted = [each for each in every if not options.only or each[1] in options.only]
        if options.finished:
            wanted = [each for each in wanted if is_finished(each[2], options.runs)]
        labels = [{"method": name, "budget": budget} for budget, name, _ in wanted]
        output.write_network(*output.run_trials([trial for _, _, trial in wanted], labels))
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
