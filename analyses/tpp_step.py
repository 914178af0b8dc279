"""What does a training step of TPP cost over a plain one?

Nothing that was measurable: on ResNet-56 with batches of 128, half of every block's conv1 to be removed, a step of TPP took 0.98 times a
plain one in float32 and 1.03 times in bfloat16 (medians of nine paired repetitions of three steps, two CPU cores), and the growth of peak
memory was 0.90 times that of a plain step (float32, one measurement each). Ratios below 1 are noise; the spread over repetitions is not in
the table, so differences of a few percent are not resolved. Not measured: a GPU, other networks, wider layers.

Run `python analyses/tpp_step.py --out figures`: two minutes of two cores.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt

import isometry
from isometry.files import markdown
from isometry.pruners import PruningContext
from isometry.surgery import trace
from isometry.trials import script
from isometry.trials.resources import can_measure_memory, peak_memory
from isometry.trials.script import Row


def time_step(step: str, batch: int, steps: int, autocast: bool) -> float:
    """Return the seconds of one training step of ResNet-56.

    Args:
        step: "TPP", with half of the units of every block's conv1 to be removed, or "plain".
        batch: images per step.
        steps: number of steps per epoch; the second epoch is timed.
        autocast: whether in bfloat16.
    """
    net = isometry.networks.build("resnet-56", seed=0)
    data = (torch.randn(batch * steps, 3, 32, 32), torch.arange(batch * steps) % 10)
    penalty = None
    if step == "TPP":
        groups = [group for group in trace(net, data[0][:2]).groups if group.root.endswith("conv1")]
        selection = [(group, tuple(range(group.units // 2))) for group in groups]
        context = PruningContext(net, groups, training_data=None, seed=0, progress=False, checkpoint=None)
        penalty = isometry.TPP(delta=1e-4, interval=1).penalty(context, selection)
        penalty.strengths = [1e-4] * len(penalty.strengths)
    arguments: dict[str, Any] = {"lr": 1e-3, "epochs": 2, "batch_size": batch, "autocast": autocast, "schedule": None}
    last = list(isometry.train(net, data, **arguments, penalty=penalty))[-1]  # the first epoch warms up
    return last.seconds / steps


def warm_up(*_: object) -> None:
    """Run the network once."""
    isometry.networks.build("resnet-56", seed=0)(torch.randn(2, 3, 32, 32))


def steps(quick: bool) -> list[Row]:
    """Return seconds of both kinds of step, paired in one run, and the growth of peak memory."""
    batch = 4 if quick else 128
    rows: list[Row] = []
    for autocast in (False,) if quick else (False, True):
        times: dict[str, list[float]] = {"plain": [], "TPP": []}
        for _ in range(1 if quick else 9):
            for step, seconds in times.items():
                seconds.append(time_step(step, batch, 1 if quick else 3, autocast))
        ratios = [tpp / plain for tpp, plain in zip(times["TPP"], times["plain"], strict=True)]
        rows += [
            {"step": step, "autocast": autocast, "seconds": statistics.median(seconds),
             "ratio_to_plain": statistics.median(ratios) if step == "TPP" else 1.0}
            for step, seconds in times.items()
        ]  # fmt: skip
    if can_measure_memory():
        peaks = {step: peak_memory(time_step, warm_up, step, batch, 1, False) for step in ("plain", "TPP")}
        for row in (row for row in rows if not row["autocast"]):
            row |= {"peak_mib": peaks[row["step"]], "memory_to_plain": peaks[row["step"]] / peaks["plain"]}
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return the steps as markdown."""
    names = {"step": "training step, ResNet-56, batch 128", "autocast": "precision", "seconds": "seconds",
             "ratio_to_plain": "ratio of pairs", "memory_to_plain": "peak memory, ratio"}  # fmt: skip
    shown = table.reindex(columns=list(names)).rename(columns=names)
    shown["precision"] = ["bfloat16" if autocast else "float32" for autocast in table["autocast"]]
    for name in ("seconds", "ratio of pairs", "peak memory, ratio"):
        shown[name] = shown[name].map("{:.3f}".format).replace("nan", "")
    return markdown(shown)


short = tables


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the seconds of both kinds of step."""
    figure, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    names = [
        f"{step}, {'bfloat16' if low else 'float32'}"
        for step, low in zip(table["step"], table["autocast"], strict=True)
    ]
    colors = ["#2ca02c" if step == "TPP" else "#bbbbbb" for step in table["step"]]
    bars = ax.barh(names, table["seconds"], color=colors)
    ax.bar_label(bars, [f" {ratio:.2f} x plain" for ratio in table["ratio_to_plain"]])
    ax.margins(x=0.25)
    ax.invert_yaxis()
    ax.set_xlabel("seconds per training step, median; label: median ratio of pairs")
    ratios = " and ".join(f"{ratio:.2f}" for ratio in table.loc[table["step"] == "TPP", "ratio_to_plain"])
    ax.set_title(f"A step of TPP takes {ratios} times a plain one (ResNet-56)", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement("tpp_step", __doc__, {"steps": steps}, draw, tables)
