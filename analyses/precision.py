"""Would a mean JSV be known sooner where most samples are measured in bfloat16, and a few in both precisions correct them?

Sooner by 1.02 to 1.45 times, timed on three networks, and on one of six with intervals that do not hold: hence `measure` has no such method.
A CPU with native bfloat16 (avx512_bf16), two threads, 10 outputs, medians of three alternating pairs; 16 inputs in both precisions, or one in
32 where that is more:

- The gain, in seconds to the same half-width of the interval: ResNet-56 1.13, 1.22 and 1.45 with 128, 512 and 1,536 inputs, ResNet-20 1.02, 1.09
  and 1.19, VGG-16 (random weights) 1.13 and 1.07 with 128 and 512. With 1,536 inputs of ResNet-56 both precisions together take 0.63 of
  the seconds that float32 takes alone, which a correction without an error would turn into a gain of 1.59.
- On these three the correction is right: bfloat16's mean is off by 0.2 % or less, its correlation with float32's is 0.995 to 0.999, and of
  2,000 random choices of 16 inputs in both precisions 94.9 to 96.1 % gave a 95 % interval that held.
- Where bfloat16 fails at rare inputs, 16 do not see it: behind a layer log(1 - p + 1e-4) of class probabilities p the correlation is 0.27, and
  13.5 % of the intervals hold.
- The mean alone gains. On the two trained networks bfloat16 loses the smallest JSV of 94 to 100 % of the inputs in rounding errors.

Other CPUs and GPUs are not tested.

Run `python analyses/precision.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights; without
it random networks on random images are measured, and the table says so. Seven minutes of two cores.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from isometry import networks
from isometry.measurement.batch import Batch
from isometry.measurement.folding import fold_network
from isometry.measurement.function import NetworkFunction
from isometry.measurement.jacobian import Jacobian
from isometry.networks.preservation import state_preserved
from isometry.spectra import Spectrum, exact, student_quantile
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56

PAIRS = 16  # inputs in both precisions, at least
SHARE = 32  # one in so many
SAMPLES = {"resnet-20": (128, 512, 1536), "resnet-56": (128, 512, 1536), "vgg-16": (128, 512)}
AT_ONCE = {torch.float32: 64, torch.bfloat16: 128}
DRAWS = 2000  # of the inputs in both precisions
REPEATS = 3


class LogProbabilities(nn.Module):
    """log(1 - p + 1e-4) of class probabilities p: bfloat16 rounds 1 - p away where p is close to 1."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return log(1 - p + 1e-4) [B, classes]."""
        return torch.log(1 - torch.softmax(3 * logits, 1) + 1e-4)


def subject(name: str, quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return a network in eval mode, images, and a description of both; --quick takes a small one in any network's place."""
    net, images, description = resnet_56(quick)
    if quick or name == "resnet-56":
        return net, images, f"{'ResNet-20 for ' if quick else ''}{name}, {description}"
    weights = "cifar10" if name == "resnet-20" and os.environ.get("ISOMETRY_DATA") else None
    described = "pretrained, CIFAR-10" if weights else "random weights"
    return networks.build(name, weights=weights, seed=0).eval(), images, f"{name}, {described}"


def small(name: str, quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return a random multilayer perceptron, normal inputs, and a description."""
    torch.manual_seed(1)
    first = nn.Linear(12, 64)
    net = nn.Sequential(first, nn.Tanh() if name == "tanh" else nn.ReLU(), nn.Linear(64, 5))
    if name == "log-probabilities":
        net.append(LogProbabilities())
        nn.init.uniform_(first.weight, -1.2, 1.2)
    inputs = torch.randn(200 if quick else 20_000, 12, generator=torch.Generator().manual_seed(0))
    return net.eval(), inputs, f"MLP, {name}, random weights"


def spectra(function: NetworkFunction, x: Tensor, dtype: torch.dtype) -> Spectrum:
    """Return all singular values at `x` [B, ...], batch by batch."""
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    size = AT_ONCE[dtype] * (1 if x.ndim == 4 else 20)
    parts = (part.to(dtype, memory_format=layout) for part in x.split(size))
    return Spectrum.pool(exact(Jacobian(function.bound_to(Batch.of(part)), part)) for part in parts)


def rows(make: partial[tuple[nn.Module, Tensor, str]], sizes: tuple[int, ...], quick: bool) -> list[Row]:
    """Return seconds and half-widths by both ways with so many inputs, and how often the interval of the correction holds."""
    net, x, case = make(quick)
    function = NetworkFunction(net)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    sizes = sizes and ((24, 32) if quick else sizes)
    found: list[Row] = []
    with state_preserved(net), function.differentiable():
        full = fold_network(function, Batch.of(x[:2])) or function
        low = full.in_dtype(torch.bfloat16)
        for samples in sizes:
            found.append({"case": case, "samples": samples, **compare(full, low, x[:samples])})
        x = x[: sizes[-1]] if sizes else x
        found = found or [{"case": case, "samples": len(x)}]
        found[-1] |= agreement(spectra(full, x, torch.float32), spectra(low, x, torch.bfloat16))
    return found


def compare(full: NetworkFunction, low: NetworkFunction, x: Tensor) -> Row:
    """Return seconds and half-widths by float32 alone, and by bfloat16 with some inputs in both."""
    times: list[tuple[float, float]] = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        fine = spectra(full, x, torch.float32).sample_means
        middle = time.perf_counter()
        known = spectra(full, x[: max(PAIRS, len(x) // SHARE)], torch.float32).sample_means
        coarse = spectra(low, x, torch.bfloat16).sample_means
        times.append((middle - start, time.perf_counter() - middle))
    alone = student_quantile(len(x)) * float(fine.std()) / math.sqrt(len(x)) / float(fine.mean())
    both = half_width(known, coarse) / float(fine.mean())
    gains = [(one * alone**2) / (other * both**2) for one, other in times[1:]]  # the first is warm-up
    return {
        "seconds_float32": statistics.median(one for one, _ in times[1:]),
        "seconds_both": statistics.median(other for _, other in times[1:]),
        "half_width_float32": alone, "half_width_both": both,
        "gain": statistics.median(gains), "gain_low": min(gains), "gain_high": max(gains),
    }  # fmt: skip


def half_width(known: Tensor, coarse: Tensor) -> float:
    """Return the half-width of the 95 % interval of the mean over inputs like these.

    The estimate is mean(coarse) + mean(known - coarse), the latter over the n inputs in both precisions; its variance is
    var(d) / n + (var(y) - var(d)) / N, d being the difference and y the mean JSV of an input (Giles, Acta Numerica 24, 2015).

    Args:
        known: [n], the first inputs in float32.
        coarse: [N], all inputs in bfloat16.
    """
    difference = known - coarse[: len(known)]
    own, between = float(difference.var()), float(coarse.var())
    return student_quantile(len(known)) * math.sqrt(own / len(known) + max(between - own, 0.0) / len(coarse))


def agreement(full: Spectrum, low: Spectrum) -> Row:
    """Return how bfloat16 follows, and the share of random choices of inputs in both whose interval of the correction holds.

    The interval is that of the mean over all inputs in float32: t sd(d) sqrt(1/n - 1/N).
    """
    fine, coarse = full.sample_means, low.sample_means
    difference, generator = fine - coarse, torch.Generator().manual_seed(0)
    reach = student_quantile(PAIRS) * math.sqrt(1 / PAIRS - 1 / len(fine))
    held = 0
    for _ in range(DRAWS):
        chosen = difference[torch.randperm(len(fine), generator=generator)[:PAIRS]]
        held += abs(float(chosen.mean() - difference.mean())) <= reach * float(chosen.std())
    return {
        "correlation": float(torch.corrcoef(torch.stack([fine, coarse]))[0, 1]),
        "bias": float(coarse.mean() / fine.mean()) - 1,
        "unresolved": low.singular_samples / len(fine),
        "held": held / DRAWS,
    }


def tables(table: pd.DataFrame) -> str:
    """Return the gains, and how the precisions agree, as markdown."""
    columns = {"case": "network", "samples": "inputs", "correlation": "correlation", "bias": "bias of bfloat16",
               "unresolved": "inputs whose smallest JSV is lost", "held": f"intervals from {PAIRS} inputs that hold"}  # fmt: skip
    agree = script.format_columns(table.dropna(subset="held"), columns)
    return f"{gains(table.dropna(subset='gain'))}\n\n{agree}"


def short(table: pd.DataFrame) -> str:
    """Return the gains with the most inputs as markdown."""
    return gains(table.dropna(subset="gain").groupby("case", sort=False).tail(1))


def gains(table: pd.DataFrame) -> str:
    """Return seconds, half-widths and gains as markdown."""
    columns = {"case": "network", "samples": "inputs", "seconds_float32": "seconds, float32", "seconds_both": "both",
               "half_width_float32": "half-width, float32", "half_width_both": "half-width, both", "gain": "gain", "gain_low": "lowest",
               "gain_high": "highest"}  # fmt: skip
    return script.format_columns(table, columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the gain against the number of inputs, and the share of intervals that hold."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    timed, counts = table.dropna(subset="gain"), table.dropna(subset="gain")["samples"].unique()
    for name, part in timed.groupby("case", sort=False):
        errors = [part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]]
        left.errorbar(part["samples"], part["gain"], yerr=errors, marker="o", capsize=3, label=str(name))
    left.axhline(1, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel="inputs", ylabel="seconds to the same half-width, float32 over both")
    left.set_xticks(counts, [f"{count:,}" for count in counts])
    left.minorticks_off()
    left.legend(frameon=False, fontsize="small", title="bars: lowest and highest of three", title_fontsize="small")
    held = table.dropna(subset="held")[::-1]
    right.barh(held["case"], 100 * held["held"], color="C7")
    right.axvline(95, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="95 % intervals, corrected by 16 inputs, that hold, %", xlim=(0, 100))
    figure.suptitle(
        f"bfloat16, corrected by a few inputs, is {timed['gain'].min():.2f} to {timed['gain'].max():.2f} times as fast; of its intervals "
        f"{100 * held['held'].min():.0f} to {100 * held['held'].max():.0f} % hold",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {name: partial(rows, partial(subject, name), sizes) for name, sizes in SAMPLES.items()}
PARTS |= {name: partial(rows, partial(small, name), ()) for name in ("tanh", "relu", "log-probabilities")}

if __name__ == "__main__":
    script.run_measurement("precision", __doc__, PARTS, draw, tables)
