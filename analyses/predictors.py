"""Which number, just after pruning, predicts the accuracy after fine-tuning?

How close the network still is to the dense one in what it computes, and its accuracy, equally well; the mean JSV does as well only where
nothing was repaired. How close the JSVs are to the dense network's tells something that the accuracy does not. 2,673 trials from 891 pruned
networks: MLP-7-Linear, MLP-7-ReLU and LeNet-5 on MNIST, the last two on Fashion-MNIST, too (the first 3,000 training images, tested on the
next 615), conv-4 with and without BatchNorm on digits, ResNet-20 on CIFAR-10; 8 or 9 methods, repairs included; ratios 0.3 to 0.9 (ResNet-20:
0.7 and 0.9); the same fine-tuning for all, 200 steps (Fashion-MNIST 94, digits 46, ResNet-20 60) at lr 0.03, 0.01 and 0.001; three seeds
(ResNet-20: two, of one trained network). A training that diverged (19, all of MLP-7-Linear reconstructed) ends at 0. Of two networks of one
cell (network, ratio, rate, seed) that end more than half a point apart, with the sign of each number learned on the other networks (means
over the eight networks, which count the same, with 95 % intervals over networks, of which two differ from others in the data alone):

- The similarity of what the last layer reads to the dense network's (linear CKA) finds the better one in 79 % [71, 86], the accuracy on training
  images in 78 % [71, 85], the gap to the dense spectrum in 76 % [69, 82], the distance of the log mean JSV from the dense one's in 74 % [69,
  79]. The mean JSV itself: 57 % [44, 71], where chance is 50; the distance of its log from 0: 60 % [53, 68]. To know the method, and its
  ranks on the other networks, is as good as any number: 78 % [71, 85].
- The correlations of the isometry gap differ most between networks, by a standard deviation tau of 0.39 (-0.55 to 0.58), those of the loss after
  recalibration by 0.22, of the similarity and the accuracy by 0.10. A tau of 0 is one that resampling methods and seeds explains.
- Given the accuracy, the similarity still tells: partial rank correlation 0.32 [0.16, 0.48]. So do the gap to the dense spectrum (-0.34
  [-0.55, -0.12]) and the distance of the log mean JSV from the dense one's (-0.26 [-0.46, -0.06]); of the mean JSV (0.10 [-0.14, 0.33]) that
  is not shown.
- Among networks without a repair (Random, L1, GReg, TPP, Slimming; 1,365 trials) the mean JSV finds the better one in 85 % [74, 96], the
  similarity in 81 % [65, 98], the accuracy in 81 % [65, 98], which eight networks do not tell apart. Repairs change the one without the other:
  OrthP and the oracle (which set a linear MLP's layers so that every JSV is 1) set JSVs and not what is computed.
- ResNet-20 is an exception to both, in 108 trials: with repairs the mean JSV tells in 77 % there, the similarity in 63 and the accuracy in 70,
  without them 58, 38 and 40 %. `cifar_pruners.py`, with longer training, finds the mean JSV ahead of the accuracy on ResNets.
- The distance of the log mean JSV from the dense one's tells more at small rates: 81 % at lr 0.001, 64 % at 0.03. So does the accuracy: 86,
  67.
- As a warning light the mean JSV works: below a hundredth of the dense one's (100 networks pruned at 0.7 or more, ten of them by OrthP after the
  cut) trials end a median of 66 points (lr 0.001), 54 (0.01) and 28 (0.03) behind the best of their cell; between half and twice the dense one's
  0.7, 0.4 and 1.5. By network, at lr 0.001: medians of 24 (conv-4) to 81 (MLP-7-Linear) behind, ending at 10 to 15 %; 0.3 to 3.3 within half and
  twice. ResNet-20: 16.5 behind, ending at 21 %, and 8.6 within half and twice.
- A reconstruction puts L1 ahead of L1 alone in 108 of 109 cells at lr 0.001, 100 at 0.01, 60 at 0.03, by a median of 19.4, 2.6 and 0.2 points
  (at lr 0.03 it is behind on the three MLPs, by 0.4 to 7.0), and ahead of TPP, which trained for 600 steps more (ResNet-20: 100), in 78 at lr
  0.001 (a median of 0.8 points), 65 at 0.01 (0.2) and 52 at 0.03 (0.0). TPP is ahead of GReg in 48, 49 and 50, which hides opposites: on
  conv-4 in 42 of 45, by medians of 6 to 32 points, on MLP-7-Linear behind in 42 of 45, by 0.5 to 1.1.

Not tested: all of Fashion-MNIST, long fine-tuning, other residual networks. The trials took 8,400 seconds of a shared machine. Run `python
analyses/predictors.py --out figures` (with `--finished` for the trials that are there), $ISOMETRY_DATA naming the folder with MNIST,
Fashion-MNIST, CIFAR-10 and the weights.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry.data import Data, Split
from isometry.files import markdown
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, describe_origin, run, script
from isometry.trials.candidates import CANDIDATES, describe_starts
from isometry.trials.dataset import Own
from isometry.trials.outcomes import gains, name_methods, shortfall_by_jsv, shortfall_by_network
from isometry.trials.prediction import Assessment, Cells, assess, method_ranks
from isometry.trials.protocols import predictor_methods
from isometry.trials.provenance import is_finished
from isometry.trials.stages import plan_stages

MNIST = {"dataset": "mnist", "pretrain": Recipe(1e-2, 3, 64)}
CLOTHES = {"dataset": "fashion-mnist", "pretrain": Recipe(1e-2, 30, 64)}
DIGITS = {"dataset": "digits", "pretrain": Recipe(2e-2, 30, 64)}
NARROW = {"input_shape": (1, 8, 8), "widths": (16, 16, 32, 32)}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp-7-linear": {**MNIST, "network": "mlp-7-linear"},
    "mlp-7-relu": {**MNIST, "network": "mlp-7-relu"},
    "lenet-5-relu": {**MNIST, "network": "lenet-5-relu"},
    "conv-4": {**DIGITS, "network": "conv-4", "options": NARROW},
    "conv-4, no BatchNorm": {**DIGITS, "network": "conv-4", "options": {**NARROW, "norm": "none"}},
    "mlp-7-relu, Fashion-MNIST": {**CLOTHES, "network": "mlp-7-relu"},
    "lenet-5-relu, Fashion-MNIST": {**CLOTHES, "network": "lenet-5-relu"},
    "resnet-20": {"dataset": "cifar10", "pretrain": "cifar10", "network": "resnet-20", "layers": "layer*.conv1", "autocast": True},
}  # fmt: skip


@functools.cache
def clothes() -> Own:
    """Return the first 3,000 training images of Fashion-MNIST to train on, and the next 615 to test on."""
    whole = isometry.data.load("fashion-mnist", validation=0)
    first, none, rest = (
        Split(whole.train.inputs[part], whole.train.targets[part])
        for part in (slice(3000), slice(0), slice(3000, 3615))
    )
    return Own(Data("fashion-mnist-3000", first, none, rest, whole.classes, whole.input_shape))


def trials(network: str, seed: int, quick: bool = False) -> list[Trial]:
    """Return every method, ratio and rate on one network: the same fine-tuning for all methods."""
    base = NETWORKS[network]
    if base["dataset"] == "fashion-mnist":
        base = {**base, "dataset": clothes()}
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    rates: tuple[float, ...] = (3e-2, 1e-2, 1e-3)
    tune = Recipe(1e-2, 2, 64, schedule=Steps((0.5,)), epoch_steps=100)
    if network == "resnet-20":
        ratios = (0.7, 0.9)
        tune = Recipe(1e-2, 1, 128, 0.9, 5e-4, None, epoch_steps=60, autocast=True)
    if quick:
        ratios, rates, tune = (0.5, 0.9), (1e-2,), replace(tune, epoch_steps=5)
    return [
        Trial(**base, finetune=replace(tune, lr=lr), pruner=pruner, ratio=ratio, repair=repair, seed=seed)
        for ratio, (pruner, repair), lr in itertools.product(ratios, predictor_methods(network, quick=quick), rates)
    ]


NAMES = {"random": "Random", "l1": "L1", "greg": "GReg", "tpp": "TPP", "slimming": "Slimming"}
REPAIRS = {"orthp": " + OrthP", "reconstruct": " + reconstruct", "oracle": " + oracle"}
PAIRS = [
    ("L1 + reconstruct", "L1"),
    ("Random + reconstruct", "Random"),
    ("TPP", "L1"),
    ("L1 + reconstruct", "TPP"),
    ("TPP", "GReg"),
]
OPPOSITES = [("L1 + reconstruct", "L1"), ("TPP", "GReg")]
"""Pairs of whose networks not all agree."""
SHOWN = ("feature_similarity", "train_accuracy", "mean_jsv")
TEXTS = {"method_rank": "its method's rank elsewhere", **CANDIDATES}
del TEXTS["jsv_ratio"]  # ranks as the mean JSV does: the dense network is the same within a cell


def rows(network: str, done: list[Trial], runs: Path) -> pd.DataFrame:
    """Return one row per trial of one network and seed: the numbers before fine-tuning, the accuracy after it."""
    table = name_methods(run(done, runs, jobs=1, progress=False), NAMES, REPAIRS)
    ends = table.groupby("trial", sort=False).tail(1).reset_index(drop=True)
    images, samples = (500, 32) if network == "resnet-20" else (2000, 64)
    starts = pd.DataFrame(describe_starts(done, runs, images=images, samples=samples))
    kept = ends[["dataset", "method", "ratio", "lr", "seed", "diverged", "accuracy"]].assign(network=network)
    return pd.concat([kept, starts], axis=1)


def assessed(table: pd.DataFrame) -> list[Assessment]:
    """Return every candidate with how well it predicts, best choices first; a training that diverged ends at 0."""
    within = ["ratio", "lr"]
    rows = table.assign(outcome=table["accuracy"].where(~table["diverged"], 0.0))
    rows["method_rank"] = method_ranks(rows, "outcome", within=within)
    cells = Cells.of(rows, list(TEXTS), "outcome", within=within)
    return sorted(assess(cells, given="train_accuracy", margin=0.005), key=lambda each: -each.choices.mean)


def subsets(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the trials without a repair, those of every rate, and those of the small and the large ratios."""
    parts = {"no repair": table[~table["method"].str.contains("+", regex=False)]}
    parts |= {f"lr {lr:g}": rows for lr, rows in table.groupby("lr")}
    return parts | {"ratio < 0.75": table[table["ratio"] < 0.75], "ratio > 0.75": table[table["ratio"] > 0.75]}


def tables(table: pd.DataFrame) -> str:
    """Return statistics with 95 % intervals over networks; correlations by network; shares of right choices by part; shortfalls; gains."""
    found = assessed(table)
    subset = {name: {each.candidate: each for each in assessed(part)} for name, part in subsets(table).items()}
    pooled, networks, shares = [], [], []
    for each in found:
        heading = {"number just after pruning": TEXTS[each.candidate]}
        texts = {"rank correlation": each.correlation.text(2), "between networks, tau": f"{each.correlation.tau:.2f}"}
        texts["given accuracy"] = each.partial.text(2)
        pooled.append({**heading, **texts, "right choices, %": each.choices.text(0, scale=100, limits=(0, 1))})
        values = {name: "" if np.isnan(value) else f"{value:.2f}" for name, value in each.correlations.items()}
        networks.append({"rank correlation": TEXTS[each.candidate], **values})
        means = {name: part[each.candidate].choices.mean for name, part in subset.items()}
        shares.append({"right choices, %": TEXTS[each.candidate]} | {n: f"{100 * m:.0f}" for n, m in means.items()})
    parts = [pd.DataFrame(lines) for lines in (pooled, networks, shares)]
    parts += [shares_by_network(found, subset["no repair"]), shortfall_by_jsv(table), shortfall_by_network(table, 1e-3)]
    parts += [gains(table, PAIRS), gains(table, OPPOSITES, by_network=True)]
    return "\n\n".join(map(markdown, parts))


def shares_by_network(found: list[Assessment], unrepaired: dict[str, Assessment]) -> pd.DataFrame:
    """Return the shares of right choices of the numbers that matter, by network, with and without repairs."""
    lines: dict[str, dict[str, str]] = {}
    for each in found:
        for name, part in {
            TEXTS[each.candidate]: each,
            f"{TEXTS[each.candidate]}, no repair": unrepaired[each.candidate],
        }.items():
            if each.candidate in SHOWN:
                for network, share in part.shares.items():
                    lines.setdefault(network, {"right choices, %": network})[name] = f"{100 * share:.0f}"
    return pd.DataFrame(lines.values()).replace("nan", "").fillna("")


def short(table: pd.DataFrame) -> str:
    """Return the best three numbers and those of the mean JSV."""
    lines = tables(table).split("\n\n")[0].splitlines()
    return "\n".join(lines[:5] + [line for line in lines[5:] if "mean JSV" in line or "spectrum" in line])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the correlation and the share of right choices of every candidate, pooled, by network, and without repairs."""
    found = assessed(table)[::-1]
    unrepaired = {each.candidate: each for each in assessed(subsets(table)["no repair"])}
    names = [TEXTS[each.candidate] for each in found]
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 7.2), sharey=True, layout="constrained")
    for row, each in enumerate(found):
        bare = unrepaired[each.candidate]
        panels = (
            (axes[0], 1, each.correlation, each.correlations, bare.correlation),
            (axes[1], 100, each.choices, each.shares, bare.choices),
        )
        for ax, scale, pooled, networks, other in panels:
            for color, (network, value) in enumerate(networks.items()):
                ax.plot(scale * value, row, "o", color=f"C{color}", markersize=4, alpha=0.8, label=network)
            ax.plot([scale * pooled.low, scale * pooled.high], [row, row], color="black", linewidth=1.2)
            ax.plot(scale * pooled.mean, row, "D", color="black", markersize=5, label="mean, 95 % interval")
            ax.plot(
                scale * other.mean, row, "s", color="black", markersize=7, fillstyle="none", label="without repairs"
            )
            ax.grid(axis="y", alpha=0.25)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set(xlim=(-1.02, 1.02), xlabel="rank correlation with the fine-tuned accuracy, within cells")
    axes[1].set(xlim=(0, 101), xlabel="right choices of the better of two, %; sign from other networks")
    axes[0].axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes[1].axvline(50, color="black", linewidth=0.8, linestyle=":")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    told = {each.candidate: f"{100 * each.choices.mean:.0f} %" for each in found}
    alone = {name: f"{100 * each.choices.mean:.0f} %" for name, each in unrepaired.items()}
    best = found[-1].candidate
    figure.suptitle(
        f"Which of two pruned networks fine-tunes better? {names[-1]} tells in {told[best]}, accuracy in {told['train_accuracy']}, "
        f"the mean JSV in {told['mean_jsv']};\nwhere nothing was repaired: {alone[best]}, {alone['train_accuracy']}, {alone['mean_jsv']} "
        f"({len(table)} trials, {len(subsets(table)['no repair'])} of them without a repair)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--finished", action="store_true", help="take the trials that have been run, run no others")
    options = script.parse(parser, quick_ignores=("networks", "seeds"))
    output = script.Output.of("predictors", options)
    if not options.redraw:
        parts, every = [], []
        networks, seeds = (list(NETWORKS)[3:5], 1) if options.quick else (options.networks, options.seeds)
        for seed, network in itertools.product(range(seeds), networks):
            done = trials(network, seed, options.quick)
            if options.finished:
                done = [trial for trial in done if is_finished(trial, options.runs)]
            else:
                output.run_trials(done)
            every += done
            if done:
                parts.append(rows(network, done, options.runs))
        origin = describe_origin(every, options.runs)
        shown = [t for t in every if t.ratio == 0.9 and t.finetune is not None and t.finetune.lr == 1e-2]
        origin["settings"] = {stage.folder: stage.settings for stage in (plan_stages(trial)[-1] for trial in shown)}
        origin["note"] = "settings of ratio 0.9 and lr 0.01; the other trials differ in these two"
        output.write(pd.concat(parts, ignore_index=True), origin)
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
