"""What does the Jacobian spectrum of a network cost, next to other routes and to what cannot be saved?

Two cores of one machine, one network each, medians of five interleaved repetitions; other machines give other ratios.

- ResNet-56, 64 CIFAR-10 inputs, all ten singular values each: `measure` takes 1.08 times the floor (one forward pass and one
  input-gradient pass per class of the network with folded BatchNorms). Of the routes that give the same numbers,
  `.backward()` per class with an SVD takes 2.2 times as long as `measure`, curvlinops' operator made dense 3.5 times,
  `vmap(jacrev)` 14 times. With a table of every block `measure` itself takes 1.5 times as long.
- Peak memory grows by 226 MiB for 64 inputs and 245 MiB for 256. `.backward()` per class needs 483 MiB; the routes that take one
  sample at a time need less than `measure` (26 to 128 MiB). One measurement each, no repetition.
- 1,000 outputs (a random ResNet-50 on four random images): Golub-Kahan brackets every sample's mean to 3 % with 12 times fewer
  products and 9.0 times less time than the exact spectrum. One network, one run.

Run `python analyses/cost.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights (see the
README); without it a random ResNet-56 on random images is measured, and the table says so. Four minutes of two cores.
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


def routes(quick: bool) -> list[Row]:
    """Return seconds of every route, interleaved in one run, and the difference of its numbers from ours."""
    net, images, description = resnet_56(quick)
    count, repeats = (8, 2) if quick else (64, 5)
    x = images[:count]
    reference = ROUTES[OURS](net, x)
    calls: dict[str, Callable[[Tensor], object]] = {
        FLOOR: build_floor(net, x),
        **{name: partial(route, net) for name, route in ROUTES.items()},
        LAYERS: lambda some: isometry.measure(net, some, layers=True, progress=False),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            some = x[: 2 if quick else 4] if name in SINGLE_SAMPLE else x
            start = time.perf_counter()
            call(some)
            times[name].append((time.perf_counter() - start) * len(x) / len(some))
    rows: list[Row] = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[OURS], strict=True)]
        row: Row = {"case": f"{description}, {count} inputs", "method": name, "seconds": statistics.median(seconds),
                    "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}  # fmt: skip
        if name in ROUTES:
            means = ROUTES[name](net, x[:4]).detach().double()
            row["error"] = float((means - reference[:4]).abs().max() / reference.abs().max())
        rows.append(row)
    return rows


def memory(quick: bool) -> list[Row]:
    """Return the growth of peak memory by every route, and by `measure` at four times the inputs (Linux only)."""
    if not can_measure_memory():
        return []
    net, images, description = resnet_56(quick)
    count = 4 if quick else 64
    cases = [(OURS, 1), (OURS, 4)] + [(name, 1) for name in ROUTES if name != OURS and not quick]
    return [
        {"case": f"{description}, {times * count} inputs", "method": name,
         "peak_mib": peak_memory(ROUTES[name], warm_up, net, images[: times * count].clone())}
        for name, times in cases
    ]  # fmt: skip


def large(quick: bool) -> list[Row]:
    """Return exact against stochastic at 1,000 outputs of a network without a narrow layer."""
    generator = torch.Generator().manual_seed(0)
    if quick:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(768, 400), nn.ReLU(), nn.Linear(400, 300)).eval()
        x, case = torch.randn(24, 3, 16, 16, generator=generator)[:2], "random, 300 outputs"
    else:
        net = isometry.networks.build("resnet-50", 1000, seed=0, input_shape=(3, 64, 64)).eval()
        x, case = torch.randn(24, 3, 64, 64, generator=generator)[:4], "resnet-50, random, 1000 outputs"
    reports = {method: isometry.measure(net, x, method=method, progress=False) for method in ("exact", "krylov")}
    rows: list[Row] = [
        {"case": case, "method": method, "products": report.cost.products, "seconds": report.cost.seconds}
        for method, report in reports.items()
    ]
    brackets, truth = reports["krylov"].brackets, reports["exact"].sample_means
    assert brackets is not None
    lower, upper = brackets.lower, brackets.upper
    half = float(((upper - lower) / (upper + lower)).max())
    rows[1] |= {"half_width": half, "low": float((lower / truth).min()), "high": float((upper / truth).max())}
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return the routes, their memory, and exact against stochastic, as markdown."""
    rows = {part: table[table["part"] == part] for part in ("memory", "large")}
    memory_columns = {"case": "case", "method": "route", "peak_mib": "peak MiB"}
    large_columns = {
        "case": "network",
        "method": "method",
        "products": "products",
        "seconds": "seconds",
        "half_width": "half-width",
    }
    return "\n\n".join([
        short(table),
        script.format_columns(rows["memory"].reindex(columns=list(memory_columns)), memory_columns),
        script.format_columns(rows["large"], large_columns),
    ])  # fmt: skip


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
    bars = ax.barh(rows["method"], rows["ratio"], xerr=reach, color=colors, capsize=3)
    ax.bar_label(bars, [f" {ratio:.2g}" for ratio in rows["ratio"]], padding=8)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.set_xlabel("seconds over those of isometry.measure (median of paired repetitions, bars: their range)")
    floor = rows.loc[rows["method"] == FLOOR, "ratio"].iloc[0]
    ax.set_title(f"ResNet-56, {rows['case'].iloc[0]}: measure takes {1 / floor:.2f} times the floor", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {"routes": routes, "memory": memory, "large": large}


def main() -> None:
    """Measure, write, draw."""
    parser = script.build_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="measure these parts again, keep the others")
    output = script.Output.of("cost", script.parse(parser))
    if not output.options.redraw:
        script.run_parts(PARTS, output)
    output.publish(draw, tables)


if __name__ == "__main__":
    main()
