"""What does the Jacobian spectrum of a network cost, next to other routes and to what cannot be saved?

Two cores of one machine, one network each, medians of nine interleaved repetitions; other machines give other ratios.

- ResNet-56, 64 CIFAR-10 inputs, all ten singular values each: `measure` takes 1.20 times the floor (1.09 to 1.32 over the repetitions; the
  floor is one forward pass and one input-gradient pass per class of the network with folded BatchNorms). Of the routes that give the same
  numbers, `.backward()` per class with an SVD takes 2.0 times as long as `measure`, curvlinops' operator made dense 4.1 times,
  `vmap(jacrev)` 8.5 times. With a table of every block `measure` itself takes 1.4 times as long (1.2 to 1.5).
- Peak memory grows by 236 MiB for 64 inputs and 243 MiB for 256. `.backward()` per class needs 476 MiB, `vmap(jacrev)` 6,107; the routes that
  take one sample at a time need less than `measure` (26 to 131 MiB). One measurement each, no repetition.

Run `python analyses/cost.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights (see the
README); without it a random ResNet-56 on random images is measured, and the table says so. Minutes of two cores. With `--device cuda` the
table is `cost-cuda`; it has not been run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.trials import script
from isometry.trials.resources import can_measure_memory, peak_memory
from isometry.trials.routes import OURS, ROUTES, SINGLE_SAMPLE, build_floor, warm_up
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56

LAYERS, FLOOR = "isometry.measure, layers=True", "floor"


def subject(quick: bool, device: str) -> tuple[nn.Module, Tensor, str]:
    """Return the network and images on the device, and a description."""
    net, images, description = resnet_56(quick)
    return (
        net.to(device),
        images.to(device),
        description + ("" if device == "cpu" else f", {torch.cuda.get_device_name()}"),
    )


def usable(device: str) -> list[str]:
    """Return the routes that work on the device; curvlinops' are written for the CPU."""
    return [name for name in ROUTES if device == "cpu" or "curvlinops" not in name]


def routes(quick: bool, device: str) -> list[Row]:
    """Return seconds of every route, interleaved in one run, and the difference of its numbers from ours.

    The floor and layers=True are timed next to ours, a call after the routes whose gigabytes the allocator gives back in others' time.
    """
    net, images, description = subject(quick, device)
    count, repeats = (8, 2) if quick else (64, 9)
    x = images[:count]
    reference = ROUTES[OURS](net, x)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    calls: dict[str, Callable[[Tensor], object]] = {
        FLOOR: build_floor(net, x),
        OURS: partial(ROUTES[OURS], net),
        LAYERS: lambda some: isometry.measure(net, some, layers=True, progress=False),
        **{name: partial(ROUTES[name], net) for name in usable(device) if name != OURS},
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values() if device == "cuda" else ():  # the first call loads kernels
        call(x[:2])
    for _ in range(repeats):
        calls[OURS](x)  # after what the slow routes left
        for name, call in calls.items():
            some = x[: 2 if quick else 4] if name in SINGLE_SAMPLE else x
            wait()
            start = time.perf_counter()
            call(some)
            wait()
            times[name].append((time.perf_counter() - start) * len(x) / len(some))
    rows: list[Row] = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[OURS], strict=True)]
        row: Row = {"case": f"{description}, {count} inputs", "method": name, "seconds": statistics.median(seconds),
                    "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}  # fmt: skip
        if name in ROUTES:
            means = ROUTES[name](net, x[:4]).detach().double().cpu()
            row["error"] = float((means - reference[:4]).abs().max() / reference.abs().max())
        rows.append(row)
    return rows


def memory(quick: bool, device: str) -> list[Row]:
    """Return the growth of peak memory by every route, and by `measure` at four times the inputs (Linux only, or CUDA)."""
    if device == "cpu" and not can_measure_memory():
        return []
    net, images, description = subject(quick, device)
    count = 4 if quick else 64
    cases = [(OURS, 1), (OURS, 4)] + [(name, 1) for name in usable(device) if name != OURS and not quick]
    peak = peak_memory if device == "cpu" else peak_on_device
    return [
        {"case": f"{description}, {times * count} inputs", "method": name,
         "peak_mib": peak(ROUTES[name], warm_up, net, images[: times * count].clone())}
        for name, times in cases
    ]  # fmt: skip


def peak_on_device(route: Callable[..., object], warm_up: Callable[..., object], *arguments: object) -> float:
    """Return by how much a call raises the allocated memory of the CUDA device at most, in MiB."""
    warm_up(*arguments)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    route(*arguments)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def tables(table: pd.DataFrame) -> str:
    """Return the routes and their memory as markdown."""
    columns = {"case": "case", "method": "route", "peak_mib": "peak MiB"}
    rows = table[table["part"] == "memory"].reindex(columns=list(columns))
    return f"{short(table)}\n\n{script.format_columns(rows, columns)}"


def short(table: pd.DataFrame) -> str:
    """Return the routes as markdown; "ratio" is over the seconds of `isometry.measure`."""
    columns = {"method": "route", "seconds": "seconds", "ratio": "ratio", "error": "largest difference"}
    return script.format_columns(table[table["part"] == "routes"], columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the seconds of every route as ratios."""
    rows = table[table["part"] == "routes"]
    figure, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    reach = np.stack([rows["ratio"] - rows["ratio_low"], rows["ratio_high"] - rows["ratio"]]).clip(0)
    colors = ["#bbbbbb" if m == FLOOR else "#2ca02c" if m.startswith(OURS) else "#1f77b4" for m in rows["method"]]
    ax.errorbar(rows["ratio"], rows["method"], xerr=reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
    ax.scatter(rows["ratio"], rows["method"], s=60, color=colors, zorder=3)
    for place, high, ratio in zip(rows["method"], rows["ratio_high"], rows["ratio"], strict=True):
        ax.annotate(f"{ratio:.3g}", (high, place), (8, 0), textcoords="offset points", va="center")
    ax.grid(axis="y", alpha=0.25)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlim(right=2.5 * rows["ratio"].max())
    ax.invert_yaxis()
    ax.set_xlabel("seconds over those of isometry.measure\n(median of paired repetitions, bars: their range)")
    floor = rows.loc[rows["method"] == FLOOR, "ratio"].iloc[0]
    ax.set_title(f"ResNet-56, {rows['case'].iloc[0]}: measure takes {1 / floor:.2f} times the floor", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement("cost", __doc__, {"routes": routes, "memory": memory}, draw, tables, device=True)
