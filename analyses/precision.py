"""Is a mean JSV known sooner where most samples are measured in bfloat16 and a few in both precisions correct them?

By a third at most. A CPU with native bfloat16 (avx512_bf16), two threads, 10 outputs, three alternating pairs of runs each; the gain is
in seconds to the same half-width of the interval, `measure(method="mixed")` against "exact":

- ResNet-56: 1.23, 1.30 and 1.35 with 128, 512 and 1,536 inputs; VGG-16 (random weights): 1.16, 1.22 and 1.35; ResNet-20: 0.86 to 1.16,
  no gain to speak of. In a profile of ResNet-56 bfloat16 took 0.62 of the time of float32 (64 inputs: convolutions and ReLUs halve, sums
  at shortcuts double), and at that cost and correlation no share of corrected inputs gains more than 1.44.
- The correction is right: bfloat16's mean is off by -0.40 to 0.18 %, its correlation with float32's is 0.995 to 0.999, and of 2,000 random
  choices of 16 inputs in both precisions, 94.1 to 95.2 % gave an interval (95 %) that held.
- The mean alone gains. On the two trained networks bfloat16 loses the smallest JSV of 93 to 98 % of the inputs in rounding errors.

Hence "auto" never chooses it. Other CPUs and GPUs are not tested.

Run `python analyses/precision.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights; without
it random networks on random images are measured, and the table says so. Eight minutes of two cores.
"""

from __future__ import annotations

import math
import os
import statistics
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry import networks
from isometry.measurement.levels import LOW_PRECISION, PAIRS, Levels
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56

NETWORKS = ("resnet-20", "resnet-56", "vgg-16")
SAMPLES = (128, 512, 1536)
DRAWS = 2000  # of the samples that correct


def subject(name: str, quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return a network in eval mode, images, and a description of both; --quick takes a small one in any network's place."""
    net, images, description = resnet_56(quick)
    if quick or name == "resnet-56":
        return net, images, f"{'ResNet-20 for ' if quick else ''}{name}, {description}"
    weights = "cifar10" if name == "resnet-20" and os.environ.get("ISOMETRY_DATA") else None
    described = "pretrained, CIFAR-10" if weights else "random weights"
    return networks.build(name, weights=weights, seed=0).eval(), images, f"{name}, {described}"


def rows(name: str, quick: bool) -> list[Row]:
    """Return seconds and half-widths by both methods, alternating, and how often the interval of the correction held."""
    net, images, case = subject(name, quick)
    found: list[Row] = []
    for samples in (24, 32) if quick else SAMPLES:
        x = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]]
        for warm_up in ("exact", "mixed") * (not found):
            isometry.measure(net, x, method=warm_up)
        pairs = [[isometry.measure(net, x, method=method) for method in ("exact", "mixed")] for _ in range(3)]
        exact, mixed = pairs[0]
        ratios = [cost(one) / cost(other) for one, other in pairs]
        found.append({
            "case": case, "samples": len(x), "method": mixed.method,
            **{f"seconds_{k}": statistics.median(pair[i].cost.seconds for pair in pairs) for i, k in enumerate(("exact", "mixed"))},
            "half_width_exact": half_width(exact), "half_width_mixed": half_width(mixed),
            "gain": statistics.median(ratios), "gain_low": min(ratios), "gain_high": max(ratios),
        })  # fmt: skip
    found[-1] |= agreement(exact, isometry.measure(net.to(LOW_PRECISION), x.to(LOW_PRECISION), dtype=LOW_PRECISION))
    return found


def half_width(report: isometry.Report) -> float:
    """Return the half-width of the interval, as a share of the mean."""
    return (report.interval[1] - report.interval[0]) / 2 / report.mean_jsv


def cost(report: isometry.Report) -> float:
    """Return seconds times squared half-width, which a larger number of samples leaves as it is."""
    return report.cost.seconds * half_width(report) ** 2


def agreement(exact: isometry.Report, low: isometry.Report) -> Row:
    """Return how low precision follows, and the share of random choices of samples in both whose correction's interval holds."""
    fine, coarse = exact.sample_means, low.sample_means
    generator, held = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        chosen = torch.randperm(len(fine), generator=generator)[:PAIRS]
        known = torch.full_like(fine, math.nan).index_copy(0, chosen, fine[chosen])
        brackets = Levels(coarse, known, known).brackets(0.0)
        own = 1.96 * math.sqrt(float(brackets.probe_variance.mean()) / len(fine))
        held.append(abs(float((brackets.middle - fine).mean())) <= math.hypot(own, float(brackets.shared.mean())))
    return {
        "correlation": float(torch.corrcoef(torch.stack([fine, coarse]))[0, 1]),
        "bias": float(coarse.mean() / fine.mean()) - 1,
        "unresolved": low.singular_samples / len(fine),
        "held": sum(held) / DRAWS,
    }


def tables(table: pd.DataFrame) -> str:
    """Return the gains, and how the precisions agree, as markdown."""
    columns = {"case": "network", "correlation": "correlation", "bias": "bias of bfloat16", "unresolved": "inputs whose smallest JSV is lost",
               "held": f"intervals from {PAIRS} inputs that hold"}  # fmt: skip
    return f"{gains(table)}\n\n{script.format_columns(table.dropna(subset='held'), columns)}"


def short(table: pd.DataFrame) -> str:
    """Return the gains with the most inputs as markdown."""
    return gains(table.groupby("case", sort=False).tail(1))


def gains(table: pd.DataFrame) -> str:
    """Return seconds, half-widths and gains as markdown."""
    columns = {"case": "network", "samples": "inputs", "method": "chosen", "seconds_exact": "seconds, exact", "seconds_mixed": "mixed",
               "half_width_exact": "half-width, exact", "half_width_mixed": "half-width, mixed", "gain": "gain", "gain_low": "lowest",
               "gain_high": "highest"}  # fmt: skip
    return script.format_columns(table, columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the gain against the number of samples."""
    figure, ax = plt.subplots(figsize=(6.5, 4.6), layout="constrained")
    for name, part in table.groupby("case", sort=False):
        errors = [part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]]
        ax.errorbar(part["samples"], part["gain"], yerr=errors, marker="o", capsize=3, label=str(name))
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel="inputs", ylabel="seconds to the same half-width, exact over mixed")
    ax.set_xticks(table["samples"].unique(), [f"{count:,}" for count in table["samples"].unique()], minor=False)
    ax.minorticks_off()
    ax.set_ylim(bottom=0.6)
    ax.set_title(
        f"bfloat16, corrected by a few inputs, is up to {table['gain'].max():.2f} times as fast", fontsize="medium"
    )
    ax.legend(frameon=False, fontsize="small", title="bars: lowest and highest of three", title_fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {name: partial(rows, name) for name in NETWORKS}

if __name__ == "__main__":
    script.run_measurement("precision", __doc__, PARTS, draw, tables)
