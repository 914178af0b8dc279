"""Which pruner leaves a residual network trainable, and does its mean JSV just after pruning tell?

With 400 training steps in all (given weights, 2 seeds, mean ± standard deviation; dense ResNet-56 93.44 %, ResNet-20 91.76 %):

- Just after the cut TPP alone, without a repair, holds accuracy and JSVs. ResNet-56 at ratio 0.5: 86.75 ± 0.15 % and a mean JSV
  of 13.1 (dense 12.4), against 39.36 % and 8.6 for L1 and 60.91 ± 3.03 % for GReg; at 0.7 71.28 ± 0.19 %, all others but
  the recalibrated L1 are at chance.
- Much of that is the statistics of BatchNorm: estimated anew, without any training, they bring L1 to 81.98 ± 0.04 % at 0.5 and
  52.19 ± 0.09 % at 0.7. They matter only until training starts: ResNet-20 fine-tuned with and without them is one network.
- Fine-tuned, the harder the cut the more TPP's steps before removal pay. ResNet-56: at 0.5 L1 leads (90.36 ± 0.10, TPP
  89.61 ± 0.14 %), at 0.7 too (86.59 ± 0.13, TPP 84.45 %), at 0.9 TPP does (60.15 ± 0.98, Slimming 59.04 ± 1.00, L1 56.55 ± 2.31,
  GReg 47.91 ± 0.53 %). ResNet-20, of a third of the depth, shows the first two and no lead at 0.9.
- OrthP, with JSVs near or below 1 behind ReLU and BatchNorm, costs L1 3.5 points at 0.5, 11.6 at 0.7 and 17.2 at 0.9; published it
  costs too.
- Slimming and RNI have little time here to make anything sparse; Slimming does well at 0.9, RNI from a converted net is far
  below its published self, which trained for 160 epochs from scratch.
- The mean JSV before fine-tuning ranks what follows over all fine-tuned trials (rank correlations of 0.82, 0.60 and 0.86 at 0.5,
  0.7 and 0.9 on ResNet-56; 0.88, 0.83 and 0.57 on ResNet-20), but is no cause by itself: L1 and its recalibrated twin start
  at 8.4 and 18.7 and end as the same network (ResNet-20, 0.5).

RNI's strength for the short schedule, 0.05, was set between two tried on training images: 0.03, which hardly moved
importances, and 0.1, which broke the network.
In the short schedule every method has the same budget of training steps, those before removal included. Nothing is chosen
on the test part; the given weights were trained on all of the training part.
PruningContext `python analyses/cifar_pruners.py --seeds 2 --out figures` and the same with `--network resnet-20`, $ISOMETRY_DATA pointing at
the CIFAR-10 files and the pretrained weights (see the README): some three hours of one core for ResNet-56, less for ResNet-20.
`--schedule published`, for a GPU, has TPP's own (100,000 + 10,000 steps, 120 epochs of fine-tuning for all) and 160 epochs
before removal for Slimming and RNI; `--quick` runs a tiny version on the bundled digits; `--redraw` draws from the written
table; an interrupted run goes on where it was. `--cost` measures what a step of TPP costs over a plain one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib import pyplot as plt

import isometry
from isometry import plots
from isometry.files import check_writable, markdown, software, write_table
from isometry.pruners import PruningContext
from isometry.surgery import trace
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, provenance, run

RATIOS = (0.5, 0.7, 0.9)
BUDGET = 400
# (paper, ratio, network, final accuracy, its standard deviation where known): ResNet-56 on CIFAR-10, fine-tuned for 120
# epochs from lr 0.01 (Wang & Fu, ICLR 2023, Tab. 1; best test epoch of 3 runs) or trained and fine-tuned for 160 epochs
# each (Suteu & Guo 2022, notebook of the reference code; single runs, best test epoch).
TPP_PAPER, RNI_PAPER = "Wang & Fu 2023", "Suteu & Guo 2022"
PUBLISHED = [
    (TPP_PAPER, 0.5, "L1", 93.51, 0.07),
    (TPP_PAPER, 0.5, "L1 + OrthP", 93.36, 0.19),
    (TPP_PAPER, 0.5, "TPP", 93.46, 0.06),
    (TPP_PAPER, 0.7, "L1", 92.26, 0.17),
    (TPP_PAPER, 0.7, "L1 + OrthP", 91.96, 0.06),
    (TPP_PAPER, 0.7, "TPP", 92.35, 0.12),
    (TPP_PAPER, 0.9, "L1", 86.75, 0.31),
    (TPP_PAPER, 0.9, "L1 + OrthP", 86.01, 0.34),
    (TPP_PAPER, 0.9, "TPP", 89.63, 0.10),
    (RNI_PAPER, 0.5, "Slimming", 93.37, None),
    (RNI_PAPER, 0.5, "RNI", 93.26, None),
    (RNI_PAPER, 0.9, "Slimming", 89.91, None),
    (RNI_PAPER, 0.9, "RNI", 90.01, None),
]
NAMES = {"random": "Random", "l1": "L1", "greg": "GReg", "tpp": "TPP", "slimming": "Slimming", "recedingbn": "RNI"}
REPAIRS = {"orthp": " + OrthP", "recalibrate": " + recalibrate"}


def schedules(name: str) -> tuple[dict[str, Any], dict[str, Any], Recipe, Recipe]:
    """Return the settings of growing pruners, of sparsifying ones, and how nets fine-tune after one-shot and those."""
    steps = Steps((0.5, 0.75))
    if name == "published":
        tune = Recipe(1e-2, 120, 128, 0.9, 5e-4, steps, autocast=True)
        return {}, {"epochs": 160}, tune, tune
    quick = name == "quick"
    half, epochs, batch = (8, 2, 32) if quick else (BUDGET // 2, 4, 128)
    # The penalty's pull on leaving weights, the sum of lr x strength / (1 - momentum) over steps, is to be 7.7 in so few
    # steps: they shrink by exp(-7.7). Zeroing layer by layer takes one step a layer.
    settle = 4 if quick else 56
    grow = {"delta": 6 / (half - settle), "interval": 1, "ceiling": 6.0, "stabilize": settle, "batch_size": batch}
    sparse = {"epochs": epochs, "epoch_steps": half // epochs, "lr": 1e-2, "batch_size": batch, "weight_decay": 5e-4}
    short = Recipe(1e-2, epochs, batch, 0.9, 5e-4, steps, epoch_steps=2 * half // epochs, autocast=not quick)
    shorter = Recipe(1e-2, epochs, batch, 0.9, 5e-4, steps, epoch_steps=half // epochs, autocast=not quick)
    return grow, sparse, short, shorter


def trials(network: str, schedule: str, ratios: list[float], seeds: int) -> list[Trial]:
    """Return every trial of the question."""
    grow, sparse, after_one_shot, after_training = schedules(schedule)
    strengths = (
        {"slimming": 1e-5, "receding": 1e-4} if schedule == "published" else {"slimming": 1e-2, "receding": 5e-2}
    )
    zero_out = 100 if schedule == "published" else 1
    methods: list[tuple[isometry.Pruner, str | None, Recipe | None]] = [
        (isometry.Random(), None, after_one_shot),
        (isometry.L1(), None, after_one_shot),
        (isometry.L1(), "orthp", after_one_shot),
        (isometry.L1(), "recalibrate", None),  # training replaces the statistics: from then on it is L1
        (isometry.GReg(**grow), None, after_training),
        (isometry.TPP(**{**grow, "zero_out": zero_out}), None, after_training),
        (isometry.Slimming(strength=strengths["slimming"], **sparse), None, after_training),
        (isometry.RecedingBN(strength=strengths["receding"], shift=0.0, **sparse), None, after_training),
    ]
    if schedule == "quick":
        base: dict[str, Any] = {"dataset": "digits", "network": "resnet-20", "options": {"input_shape": (1, 8, 8)}}
        base["pretrain"] = Recipe(1e-1, 3, 32)
        methods = [(p, r, t) for p, r, t in methods if not isinstance(p, isometry.TPP)]
    else:
        base = {"dataset": "cifar10", "network": network, "pretrain": "cifar10", "validation": 5000, "autocast": True}
    return [
        Trial(**base, finetune=tune, pruner=pruner, ratio=ratio, layers="layer*.conv1", repair=repair, seed=seed)
        for seed, ratio, (pruner, repair, tune) in itertools.product(range(seeds), ratios, methods)
    ]


def costs(quick: bool) -> list[dict[str, Any]]:
    """Return what a step of TPP costs against a plain one: seconds paired in one run, and growth of peak memory."""
    rows: list[dict[str, Any]] = []
    for autocast in (False,) if quick else (False, True):
        times: dict[str, list[float]] = {"plain": [], "TPP": []}
        for _ in range(2 if quick else 9):
            for name, found in times.items():
                found.append(stepped(name, 8 if quick else 128, 1 if quick else 3, autocast))
        ratios = [tpp / plain for tpp, plain in zip(times["TPP"], times["plain"], strict=True)]
        rows += [
            {"phase": "cost", "pruner": name, "autocast": autocast, "seconds": statistics.median(found),
             "ratio_to_plain": statistics.median(ratios) if name == "TPP" else 1.0}
            for name, found in times.items()
        ]  # fmt: skip
    if Path("/proc/self/status").exists():
        peaks = {name: peak(name, 8 if quick else 128) for name in ("plain", "TPP")}
        for row in rows:
            row |= {"peak_mib": peaks[row["pruner"]], "memory_to_plain": peaks[row["pruner"]] / peaks["plain"]}
    return rows


def stepped(name: str, batch: int, steps: int, autocast: bool) -> float:
    """Return the seconds of one training step of ResNet-56 with half of every block's conv1 leaving, or a plain one."""
    net = isometry.networks.build("resnet-56", seed=0)
    data = (torch.randn(batch * steps, 3, 32, 32), torch.arange(batch * steps) % 10)
    penalty = None
    if name == "TPP":
        families = [f for f in trace(net, data[0][:2]).groups if f.root.endswith("conv1")]
        chosen = [(family, tuple(range(family.units // 2))) for family in families]
        run_ = PruningContext(net, families, None, 0, False, None)
        penalty = isometry.TPP(delta=1e-4, interval=1).penalty(run_, chosen)
        penalty.strengths = [1e-4] * len(penalty.strengths)
    arguments: dict[str, Any] = {"lr": 1e-3, "epochs": 2, "batch_size": batch, "autocast": autocast, "schedule": None}
    last = list(isometry.train(net, data, **arguments, penalty=penalty))[-1]  # the first epoch warms up
    return last.seconds / steps


def _peak(name: str, batch: int, queue: Any) -> None:
    def high_water() -> float:
        return float(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024

    isometry.networks.build("resnet-56", seed=0)(torch.randn(2, 3, 32, 32))
    before = high_water()
    stepped(name, batch, 1, False)
    queue.put(high_water() - before)


def peak(name: str, batch: int) -> float:
    """Return the growth of a fresh process's peak memory over two steps, in MiB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(name, batch, queue))
    process.start()
    found = queue.get(timeout=600)
    process.join()
    return float(found)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of fine-tuned trials with a `method` column, one epoch-0 row each, and the steps spent so far."""
    rows = table[~table["phase"].isin(["dense", "sparse", "cost"])].copy()
    rows["method"] = rows["pruner"].map(NAMES) + rows["repair"].map(REPAIRS).fillna("")
    sizes = ("realised_ratio", "flops")
    rows[list(sizes)] = rows.groupby("trial")[list(sizes)].transform("max")
    rows = rows[(rows["repair"] == "none") | (rows["phase"] != "pruned")]
    total = rows.groupby("trial")["steps"].transform("max")
    most = total.groupby(rows["network"]).transform("max")
    rows["spent"] = rows["steps"].fillna(0) + (most - total).fillna(0)
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results a network, method and ratio, mean and standard deviation over seeds as text; published rows too."""
    table = table[table["phase"] != "cost"]
    rows = named(table)
    lines: list[dict[str, Any]] = []
    for network, part in rows.groupby("network", sort=False):
        dense = table[(table["phase"] == "dense") & (table["network"] == network)].head(1)
        cell = {"network": str(network), "method": "dense", **_jsvs(dense), "just pruned, %": _percent(dense)}
        lines.append({**cell, "protocol": "given weights"})
        for (ratio, method), group in part.groupby(["ratio", "method"], sort=False):
            start, tuned = group[group["epoch"] == 0], group[group["phase"] == "finetune"]
            cell = {"ratio": f"{ratio:g}", "network": str(network), "method": str(method),
                    "realised": f"{start['realised_ratio'].mean():.2f}",
                    "parameters, k": f"{start['parameters'].mean() / 1e3:.0f}", **_jsvs(start),
                    "just pruned, %": _percent(start), "protocol": _protocol(group)}  # fmt: skip
            if len(tuned):
                cell["fine-tuned, %"] = _percent(tuned[tuned["epoch"] == tuned["epoch"].max()])
            lines.append(cell)
            for paper, at, name, value, deviation in PUBLISHED:
                if at == ratio and name == method and network == "resnet-56":
                    spread = f"{value:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
                    told = {"fine-tuned, %": spread, "protocol": f"published, {paper}"}
                    lines.append({"ratio": f"{ratio:g}", "network": str(network), "method": str(method), **told})
    columns = ["network", "ratio", "method", "realised", "parameters, k", "mean JSV", "std", "condition number",
               "just pruned, %", "fine-tuned, %", "protocol"]  # fmt: skip
    return pd.DataFrame(lines).reindex(columns=columns).fillna("")


def _percent(rows: pd.DataFrame) -> str:
    return _spread(100 * rows["accuracy"], 2)


def _protocol(rows: pd.DataFrame) -> str:
    seeds, lost = rows["seed"].nunique(), rows.loc[rows["diverged"], "seed"].nunique()
    steps = int(rows["spent"].max()) if rows["steps"].notna().any() else 0
    told = f"{steps} steps" if steps else "not fine-tuned"
    return f"{told}, {seeds} seed{'s' * (seeds > 1)}" + (f", {lost} diverged" if lost else "")


def _jsvs(rows: pd.DataFrame) -> dict[str, str]:
    names = {"mean_jsv": "mean JSV", "std_jsv": "std", "condition_number": "condition number"}
    return {shown: _spread(rows[column], 3 if column != "condition_number" else 0) for column, shown in names.items()}


def _spread(values: pd.Series, digits: int) -> str:
    some = len(values) > 1 and values.std(ddof=1) > 0.5 * 10**-digits
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if some else "")


def readme(table: pd.DataFrame) -> str:
    """Return the tables of the README."""
    text = markdown(summary(table))
    cost = table[table["phase"] == "cost"]
    if not len(cost):
        return text
    shown = pd.DataFrame(
        {
            "training step, ResNet-56, batch 128": cost["pruner"],
            "precision": cost["autocast"].map(
                {True: "bfloat16", False: "float32", "True": "bfloat16", "False": "float32"}
            ),
            "seconds": cost["seconds"].map("{:.3f}".format),
            "ratio": cost["ratio_to_plain"].map("{:.3f}".format),
            "peak memory, ratio": cost["memory_to_plain"].map("{:.3f}".format),
        }
    )
    return f"{text}\n\n{markdown(shown)}"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw a picture a network, the first at `path`, the others beside it with the network's name added."""
    rows = named(table)
    for index, (network, part) in enumerate(rows.groupby("network", sort=False)):
        draw_network(part, path if not index else path.with_stem(f"{path.stem}-{network}"))


def draw_network(rows: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against steps spent a ratio, JSVs just after pruning, and what these tell of the final accuracy."""
    tuned = rows["trial"].isin(rows.loc[rows["phase"] == "finetune", "trial"])
    ratios = sorted(rows["ratio"].unique())
    figure, axes = plt.subplots(2, len(ratios), figsize=(5.2 * len(ratios), 9), layout="constrained", squeeze=False)
    for ax, below, ratio in zip(axes[0], axes[1], ratios, strict=True):
        part = rows[rows["ratio"] == ratio]
        for name, group in part.groupby("method", sort=False):
            over = group.groupby("spent")["accuracy"].agg(["mean", "std"]).fillna(0.0)
            ax.errorbar(
                over.index, 100 * over["mean"], 100 * over["std"], color=plots.color(str(name)), label=str(name), marker="o",
                markersize=3, capsize=2, linestyle="--" if "+" in str(name) else "-", linewidth=1.4,
            )  # fmt: skip
            start, last = group[group["epoch"] == 0], group[group["epoch"] == group["epoch"].max()]
            if not tuned[group.index].any():
                continue
            below.scatter(
                start["mean_jsv"], 100 * last.set_index("seed").loc[start["seed"], "accuracy"],
                color=plots.color(str(name)), marker="s" if "+" in str(name) else "o", s=30,
            )  # fmt: skip
        ax.set(xlabel="training steps spent, those before removal included", ylabel="test accuracy, %")
        ax.set_title(f"ratio {ratio:g} of the units of every block's conv1", fontsize="medium")
        part = part[tuned[part.index]]
        joined = part[part["epoch"] == 0].set_index("trial")["mean_jsv"]
        final = part[part["epoch"] == part["epoch"].max()].set_index("trial")["accuracy"]
        correlation = joined.rank().corr(final.reindex(joined.index).rank())
        below.axvline(1, color="#d62728", linewidth=1, linestyle=":")
        below.set(xlabel="mean JSV just before fine-tuning", ylabel="test accuracy at the end, %", xscale="log")
        below.set_title(f"a point a trial; rank correlation {correlation:.2f}", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(sentence(rows[tuned]), fontsize="large")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def sentence(rows: pd.DataFrame) -> str:
    """Return what the figure shows, from its numbers."""
    ratios = sorted(rows["ratio"].unique())
    ratio = ratios[len(ratios) // 2]
    part = rows[rows["ratio"] == ratio]
    last = (
        part[part["epoch"] == part["epoch"].max()].groupby("method")["accuracy"].mean().sort_values(ascending=False)
        * 100
    )
    told = ", ".join(f"{name} {value:.1f}" for name, value in last.items())
    return (
        f"{rows['network'].iloc[0]} on {rows['dataset'].iloc[0]}, {int(rows['spent'].max())} training steps for every method "
        f"(mean over {rows['seed'].nunique()} seeds, bars: one standard deviation)\nfine-tuned accuracy at ratio {ratio:g}, %: {told}"
    )


def totals(networks: dict[str, Any]) -> dict[str, Any]:
    """Return the software and the seconds of all networks together."""
    software_used = [entry for origin in networks.values() for entry in origin["software"]]
    unique = [entry for index, entry in enumerate(software_used) if entry not in software_used[:index]]
    seconds = sum(origin["computing_seconds"] for origin in networks.values())
    return {"software": unique, "computing_seconds": round(seconds, 1)}


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=["resnet-20", "resnet-56"], default="resnet-56")
    parser.add_argument("--schedule", choices=["short", "published"], default="short")
    parser.add_argument("--quick", action="store_true", help="a tiny version on the bundled digits")
    parser.add_argument("--redraw", action="store_true", help="draw from the written table, without training")
    parser.add_argument(
        "--cost", action="store_true", help="only measure what a step of TPP costs, into the written table"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--jobs", type=int, help="processes; default: the number of cores, 1 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trials keep their state")
    parser.add_argument("--out", type=Path, help="where table and figure go; default: a folder under --runs")
    options = parser.parse_args()
    mpl.use("Agg")
    if options.seeds < 1:
        parser.error(f"--seeds got {options.seeds}; it takes at least 1, e.g. --seeds 3")
    schedule = "quick" if options.quick else options.schedule
    stem = (options.out or options.runs / f"cifar_pruners-{options.network}-{schedule}") / "cifar_pruners"
    if options.cost:
        table = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False, na_values=[""])
        origin = json.loads(stem.with_suffix(".json").read_text()) | {"cost_software": software()}
        table = pd.concat([table[table["phase"] != "cost"], pd.DataFrame(costs(False))], ignore_index=True)
        write_table(table, origin, stem)
    elif not options.redraw:
        check_writable(stem.parent)
        ratios, seeds = ([0.5], 1) if options.quick else (options.ratios, options.seeds)
        wanted = trials(options.network, schedule, ratios, seeds)
        table = run(wanted, options.runs, jobs=options.jobs, device=options.device, progress=True)
        origin = {"networks": {wanted[0].network: provenance(wanted, options.runs)}}
        if options.quick:
            table = pd.concat([table, pd.DataFrame(costs(True))], ignore_index=True)
        elif stem.with_suffix(".csv").exists():  # other networks, and what a step costs, measured before
            before = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False, na_values=[""])
            kept = json.loads(stem.with_suffix(".json").read_text())
            others = before[before["network"] != wanted[0].network]
            table = pd.concat([table, others], ignore_index=True).sort_values("network", ascending=False, kind="stable")
            origin = kept | {"networks": {**kept["networks"], **origin["networks"]}}
        write_table(table, origin | totals(origin["networks"]), stem)
    elif not stem.with_suffix(".csv").exists():
        parser.error(f"--redraw found no {stem.with_suffix('.csv')}; run without it first")
    table = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False, na_values=[""])
    draw(table, stem.with_suffix(".png"))
    print(readme(table))
    print(f"\nwrote {stem}.csv, .json, .png")


if __name__ == "__main__":
    main()
