"""Would a mean JSV cost less if most samples were measured in bfloat16 and a few in float32 told how far that is off?

A CPU with native bfloat16 (avx512_bf16), one thread, 10 outputs, medians of three alternating pairs while other programs ran:

- A bfloat16 sample takes 0.52 (ResNet-56), 0.56 (VGG-16, random weights) and 0.64 (ResNet-20) of the seconds of a float32 one, on the
  same folded copy. Its mean JSV follows float32's with correlations of 0.996 to 0.999, and is off by 0.3 % or less on average.
- From these, not from runs of such an estimator: a control variate with the best split would reach the same half-width 1.2 to 1.4
  times faster with 64 inputs, and 1.74, 1.43 and 1.42 times with thousands. 1.6 takes a cost of 0.57 at a correlation of 0.9993.
- The mean alone gains. On the two trained networks bfloat16 loses the smallest JSV of 91 to 100 % of the inputs in rounding errors:
  smallest value, condition number and spectrum would come from the few float32 samples.

Hence `measure` has no such method. Other CPUs and GPUs are not tested.

Run `OMP_NUM_THREADS=1 python analyses/precision.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained
weights; without it random networks on random images are measured, and the table says so. Two minutes of one core.
"""

from __future__ import annotations

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
from isometry.spectra import Spectrum, exact
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56

LEAST = 12  # float32 samples below which an interval of the correction is not to be trusted
SIZES = {"resnet-20": (64, 128), "resnet-56": (64, 128), "vgg-16": (32, 64)}  # inputs at once
SAMPLES = (64, 256, 1024, 4096, 16384)


def subject(name: str, quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return a network in eval mode, images, and a description of both; --quick takes a small one in any network's place."""
    net, images, description = resnet_56(quick)
    if quick or name == "resnet-56":
        return net, images, f"{'ResNet-20 for ' if quick else ''}{name}, {description}"
    weights = "cifar10" if name == "resnet-20" and os.environ.get("ISOMETRY_DATA") else None
    described = "pretrained, CIFAR-10" if weights else "random weights"
    return networks.build(name, weights=weights, seed=0).eval(), images, f"{name}, {described}"


def spectrum(function: NetworkFunction, x: Tensor) -> Spectrum:
    """Return all singular values at `x` [B, 3, 32, 32], as `measure` finds them."""
    x = x.to(next(function.model.parameters()).dtype, memory_format=torch.channels_last)
    return exact(Jacobian(function.bound_to(Batch.of(x)), x))


def precisions(name: str, quick: bool) -> list[Row]:
    """Return seconds of processor time per sample in both precisions, alternating, and how far their numbers agree."""
    net, images, case = subject(name, quick)
    function = NetworkFunction(net)
    with state_preserved(net), function.differentiable():
        folded = fold_network(function, Batch.of(images[:2]))
        assert folded is not None
        half = folded.in_dtype(torch.bfloat16)
        sizes, repeats = ((4, 8), 2) if quick else (SIZES[name], 3)
        return [{"case": case, "size": size, **compare(folded, half, images[:size], repeats)} for size in sizes]


def compare(function: NetworkFunction, half: NetworkFunction, x: Tensor, repeats: int) -> Row:
    """Return seconds per sample in float32 and in bfloat16, their ratio, and statistics of the difference."""
    times: dict[NetworkFunction, list[float]] = {function: [], half: []}
    spectra = {}
    for _ in range(repeats + 1):
        for each, seconds in times.items():
            start = time.process_time()
            spectra[each] = spectrum(each, x)
            seconds.append((time.process_time() - start) / len(x))
    exact_times, half_times = times[function][1:], times[half][1:]  # the first is warm-up
    ratios = [b / a for a, b in zip(exact_times, half_times, strict=True)]
    known, rough = (spectra[each].sample_means for each in times)
    return {
        "seconds": statistics.median(exact_times), "seconds_bfloat16": statistics.median(half_times),
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
        "correlation": float(torch.corrcoef(torch.stack([known, rough]))[0, 1]),
        "bias": float((rough.mean() - known.mean()) / known.mean()),
        "unresolved": spectra[half].singular_samples / len(x),
    }  # fmt: skip


def gain(cost: float, correlation: float, samples: int) -> float:
    """Return by how much two levels shorten the time to the same half-width.

    All N samples are measured in bfloat16, at `cost` times the seconds of float32, and n of them in float32 too. The
    control variate's variance is sigma² (rho² / N + (1 - rho²) / n), its cost N cost + n; plain sampling has sigma² / N at
    cost N. The best n of at least LEAST; without that limit, and for large N, the gain is (rho sqrt(cost) + sqrt(1 - rho²))^-2.
    """
    shares = [n / samples for n in range(LEAST, samples + 1)]
    return max(1 / ((cost + share) * (correlation**2 + (1 - correlation**2) / share)) for share in shares)


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network: seconds at the better number of inputs at once, in either precision, and the gain."""
    rows = []
    for name, part in table.groupby("case", sort=False):
        cost, largest = float(part["seconds_bfloat16"].min() / part["seconds"].min()), part.iloc[-1]
        gained = {f"gain_{n}": gain(cost, float(largest["correlation"]), n) for n in SAMPLES}
        rows.append({"case": name, "cost": cost, **largest[["correlation", "bias", "unresolved"]], **gained})
    return pd.DataFrame(rows)


def tables(table: pd.DataFrame) -> str:
    """Return the seconds and the gains as markdown."""
    shown = table.assign(ms=1e3 * table["seconds"], ms_bfloat16=1e3 * table["seconds_bfloat16"])
    columns = {"case": "network", "size": "inputs at once", "ms": "ms per input, float32", "ms_bfloat16": "bfloat16",
               "ratio": "ratio", "ratio_low": "lowest", "ratio_high": "highest"}  # fmt: skip
    return f"{short(table)}\n\n{script.format_columns(shown, columns)}"


def short(table: pd.DataFrame) -> str:
    """Return the gains as markdown."""
    columns = {"case": "network", "cost": "cost of bfloat16", "correlation": "correlation", "bias": "bias",
               "unresolved": "inputs whose smallest JSV is lost"}  # fmt: skip
    return script.format_columns(gains(table), columns | {f"gain_{n}": f"gain, {n:,} inputs" for n in SAMPLES})


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the gain against the number of samples."""
    figure, ax = plt.subplots(figsize=(6.5, 4.6), layout="constrained")
    found = gains(table).set_index("case")[[f"gain_{n}" for n in SAMPLES]]
    for name, row in found.iterrows():
        ax.plot(SAMPLES, row, marker="o", label=str(name))
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel="inputs measured in bfloat16", ylabel="predicted seconds, float32 alone over both")
    ax.set_ylim(bottom=0.8)
    ax.set_title(
        f"bfloat16 with corrections, predicted: at most {found.to_numpy().max():.2f} times faster", fontsize="medium"
    )
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {name: partial(precisions, name) for name in SIZES}

if __name__ == "__main__":
    script.run_measurement("precision", __doc__, PARTS, draw, tables)
