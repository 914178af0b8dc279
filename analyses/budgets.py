"""When is a stochastic estimate of the mean JSV worth it, and does `auto` spend a budget as well as it can be spent?

In 93 % of 1,200 runs the interval that `auto` bought can be expected to be at most 1.1 times as wide as that of the best pure choice (five
networks of 150 to 300 outputs, four budgets of products J v or Jᵀu, 60 seeds each). Pure choices are all singular values of 8 samples or
more, or brackets of many samples' means by Golub-Kahan, with the best of a grid of pilots, numbers of probes and lengths of runs. The variance
between samples is known from 400 of them, the errors of probes and brackets from 80. `auto` may mix the two and then beats the grid, in 35 %
of the runs, by up to 2 % in the median of a cell.

- Fifteen of the twenty cells reach 98 %; the others are the tanh network at 3,000 products (97 %) and the logarithmic spectrum at 700, 1,500,
  3,000 and 6,000 (87, 18, 75 and 97 %; at 1,500 the typical run is 1.13 times the best). The worst run was 1.97 times the best. No run
  exceeded its budget.
- By the half-widths as reported, which are estimated from few samples themselves, 33 to 100 % of the runs of a cell are within 1.1.
- The intervals held the truth in 92 to 98 % of the 60 runs of a cell, with a standard error of 2 to 4 points; see `coverage.py` for more runs.
- At 3,000 products brackets give a half-width of 0.39 of that of exact spectra on the ReLU network, 0.56 on the convolutions, 0.18 with one
  large value, and 0.93 on the tanh network of 150 outputs.
- A ResNet-50 with 1,000 outputs (random weights and images): 24 samples and 2,500 products give a half-width of 1.7 % of the mean; the two exact
  samples that they would buy 8.2 %. On a pretrained ResNet-56, with ten outputs, all values are the better choice, and `auto`'s, at 300,
  1,000 and 3,000 products (half-widths of 0.80, 0.76 and 0.75 of those of brackets).

Run `python analyses/budgets.py --out figures` with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained weights; without
it a random ResNet-56 on random images is measured, and the table says so. It is written after every part; `--only` goes on with those
that are missing. Twenty minutes of one core; the seconds in the table are of a machine with other work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

import isometry
from isometry.measurement.calibration import LENGTHS
from isometry.spectra import (
    Matrices,
    bidiagonalize,
    bracketed_half_width,
    probes,
    singular_vectors,
    student_quantile,
)
from isometry.trials import script
from isometry.trials.script import Row
from isometry.trials.subjects import Scaled, resnet_56

BUDGETS = (700, 1500, 3000, 6000)
STEPS = (*LENGTHS, 32, 48, 96)
NETWORKS = ("ReLU, 300 outputs", "tanh, 150", "convolutions, 200", "one large value of 300", "log spectrum, 300")


def network(name: str) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """Return a network by its name, and what draws (count, seed) inputs of it."""
    torch.manual_seed(0)
    large = torch.linspace(0.5, 1.5, 300)
    large[0] = 60
    nets: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        NETWORKS[0]: (nn.Sequential(nn.Linear(350, 320), nn.ReLU(), nn.Linear(320, 300)), (350,)),
        NETWORKS[1]: (nn.Sequential(nn.Linear(150, 256), nn.Tanh(), nn.Linear(256, 150)), (150,)),
        NETWORKS[2]: (nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(),
                                    nn.Flatten(), nn.Linear(256, 200)), (3, 16, 16)),
        NETWORKS[3]: (Scaled.of(large, 0.2), (301,)),
        NETWORKS[4]: (Scaled.of(torch.logspace(0, -5, 300), 0.2), (301,)),
    }  # fmt: skip
    net, shape = nets[name]
    return net, lambda count, seed: torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def joined(reach: float, half: float) -> float:
    """Return the half-width of an interval around brackets of this half-width, whose ends have intervals that reach so far."""
    deviation, bracket = (torch.tensor(value, dtype=torch.float64) for value in (reach / 1.96, half))
    return float(bracketed_half_width(deviation, bracket))


@dataclass
class Known:
    """A network's components of error, as shares of its mean JSV, from many samples.

    Attributes:
        rank: products of an exact sample.
        mean: the mean JSV.
        variance: between samples.
        runs: {steps: (variance of a probe, half-width of the bracket, variance of the calibrating factor between samples
            and within one)}.
    """

    rank: int
    mean: float
    variance: float
    runs: dict[int, tuple[float, float, float, float]]

    @classmethod
    def of(cls, net: nn.Module, x: Tensor, few: int) -> Known:
        """Return the components at samples x, those of runs at the first `few` of them, from eight probes each."""
        report = isometry.measure(net, x, method="exact", progress=False)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda one: net(one[None])[0]), chunk_size=20)(x[:few])
        values, vectors = singular_vectors(jacobian.detach().flatten(2))
        start = probes(few, 8, values.shape[1], torch.Generator().manual_seed(0), values)
        forms, mean = ((start @ vectors).square() * values[:, None]).sum(-1), report.mean_jsv
        whole = bidiagonalize(Matrices(vectors * values[:, None]), start, steps=STEPS[-1], keep_basis=True)
        runs = {}
        for steps in STEPS:
            run = whole.first(steps)
            lower, upper = run.bracket()
            middle = (lower + upper) / 2 * (forms.mean() / (lower + upper).mean() * 2)
            left = (forms - middle) / mean
            within = float(left.var(1).mean())
            between = max(float(left.mean(1).var()) - within / 8, 0.0)
            noise = float((middle + run.correction()).var(1).mean()) / mean**2
            low, high = run.narrowed()  # as runs that no other corrects are reported
            runs[steps] = (noise, float((high - low).mean()) / 2 / mean, between, within)
        return cls(values.shape[1], mean, float(report.sample_means.var()) / mean**2, runs)

    def near(self, steps: int) -> tuple[float, float, float, float]:
        """Return the components of runs of about so many steps."""
        return self.runs[min(STEPS, key=lambda known: abs(math.log(known / steps)))]

    def calibration(self, steps: int, samples: int, probes_each: int) -> float:
        """Return the expected half-width of what a pilot of so many samples says about runs of so many steps."""
        _, _, between, within = self.near(steps)
        return student_quantile(max(samples, 2)) * math.sqrt((between + within / probes_each) / max(samples, 1))

    def expected(self, report: isometry.Report) -> float:
        """Return the expected half-width of the interval for samples and products spent as in a report.

        Its own half-width is estimated from few samples, so that a good choice may look bad, and the other way round.
        """
        count, found = len(report.spectrum), report.brackets
        if found is None:
            return student_quantile(count) * math.sqrt(self.variance / count)
        calibrated = found.shared > 0
        pilot, exactly = int((~calibrated).sum()), bool((found.probes == 0).any())
        variance, error = count * self.variance, 0.0
        for each, steps, short in zip(found.probes.tolist(), found.steps.tolist(), calibrated.tolist(), strict=True):
            variance += self.near(steps)[0] / each if each else 0.0
            error += self.calibration(steps, pilot, 8 if exactly else 2) if short else 0.0
        half = float((found.upper - found.lower).mean()) / 2 / self.mean
        return joined(math.hypot(student_quantile(count) * math.sqrt(variance), error) / count, half)

    def best_exact(self, budget: int) -> float:
        """Return the half-width that exact samples give, at least 8 of them."""
        count = (budget - 4) // self.rank
        return student_quantile(count) * math.sqrt(self.variance / count) if count >= 8 else math.inf

    def best_krylov(self, budget: int) -> float:
        """Return the half-width that runs give: the best pilot, lengths and numbers of probes, found by trying."""
        best = math.inf
        for pilot, long in [(0, 0), *((pilot, long) for pilot in range(3, 17) for long in STEPS[3:])]:
            left = budget - 4 - pilot * (4 * long + 2)
            noise, half, _, _ = self.runs[long] if pilot else (0.0, 0.0, 0.0, 0.0)
            for steps in (steps for steps in STEPS if not pilot or steps < long):
                for each in (2, 3, 4, 6, 8, 12, 16, 24):
                    short = left // (2 * each * steps + 2)
                    count = pilot + short
                    if short < 1 or count < 2:
                        continue
                    variance = count * self.variance + pilot * noise / 2 + short * self.runs[steps][0] / each
                    error = short * self.calibration(steps, pilot, 2) if pilot else 0.0
                    wide = math.hypot(student_quantile(count) * math.sqrt(variance), error) / count
                    best = min(best, joined(wide, half if pilot else self.runs[steps][1]))
        return best


def choice(name: str, quick: bool) -> list[Row]:
    """Return what `auto` does with budgets, over seeds of inputs and probes, beside the best that can be done."""
    net, draw = network(name)
    known = Known.of(net, draw(60 if quick else 400, 10**6), 6 if quick else 80)
    rows: list[Row] = []
    for limit in BUDGETS[1:2] if quick else BUDGETS:
        exact, krylov = known.best_exact(limit), known.best_krylov(limit)
        for seed in range(2 if quick else 60):
            report = isometry.measure(net, draw(700, seed), budget=limit, seed=seed, progress=False)
            low, high = report.interval
            rows.append({"case": name, "method": "auto", "budget": limit, "seed": seed, "chosen": report.method,
                         "products": report.cost.products, "samples": len(report.spectrum), "best_exact": exact,
                         "best_krylov": krylov, "expected": known.expected(report), "covers": low <= known.mean <= high,
                         "half_width": (high - low) / 2 / known.mean})  # fmt: skip
    return rows


def many_outputs(quick: bool) -> tuple[nn.Module, Tensor, str, int]:
    """Return a network without a narrow layer, 24 random images, its description and its number of outputs."""
    generator = torch.Generator().manual_seed(0)
    if quick:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(768, 400), nn.ReLU(), nn.Linear(400, 300)).eval()
        return net, torch.randn(24, 3, 16, 16, generator=generator), "random, 300 outputs", 300
    net = isometry.networks.build("resnet-50", 1000, seed=0, input_shape=(3, 64, 64)).eval()
    return net, torch.randn(24, 3, 64, 64, generator=generator), "resnet-50, random, 1000 outputs", 1000


def large(quick: bool) -> list[Row]:
    """Return exact against stochastic on a few samples of the network with many outputs."""
    net, x, case, _ = many_outputs(quick)
    x = x[: 2 if quick else 4]
    reports = {method: isometry.measure(net, x, method=method, progress=False) for method in ("exact", "krylov")}
    rows: list[Row] = [
        {"case": case, "method": method, "products": report.cost.products, "seconds": report.cost.seconds}
        for method, report in reports.items()
    ]
    brackets, truth = reports["krylov"].brackets, reports["exact"].sample_means
    assert brackets is not None
    rows[1]["half_width"] = float(((brackets.upper - brackets.lower) / (brackets.upper + brackets.lower)).max())
    rows[1]["error"] = float((brackets.middle / truth - 1).abs().max())
    return rows


def budget(quick: bool) -> list[Row]:
    """Return the half-width of the interval that a number of products buys, by estimator, on residual networks."""
    wide, few = many_outputs(quick), resnet_56(quick)
    wanted = [(*wide, limit) for limit in ((600,) if quick else (400, 1000, 2500))]
    small = (few[0], few[1], f"resnet-56, {few[2]}", 10)
    wanted += [(*small, limit) for limit in ((200,) if quick else (300, 1000, 3000))]
    rows: list[Row] = []
    for net, x, case, outputs, limit in wanted:
        # Two exact samples are the least that give an interval.
        for method in ("exact", "krylov", "auto") if limit >= 2 * outputs else ("krylov", "auto"):
            report = isometry.measure(net, x, method=method, budget=limit, progress=False)
            low, high = report.interval
            rows.append({"case": case, "method": method, "budget": limit, "half_width": (high - low) / 2 / report.mean_jsv,
                         "products": report.cost.products, "samples": len(report.spectrum), "chosen": report.method})  # fmt: skip
    return rows


def choices(table: pd.DataFrame) -> str:
    """Return how `auto` fares against the best choice, network by network and budget by budget, as markdown."""
    rows = []
    for (case, limit), runs in table[table["part"].isin(NETWORKS)].groupby(["case", "budget"], sort=False):
        best = runs[["best_exact", "best_krylov"]].min(axis=1)
        ratio, raw = runs["expected"] / best, runs["half_width"] / best
        rows.append({
            "network": case, "budget": limit, "exact": float(runs["best_exact"].iloc[0]),
            "krylov": float(runs["best_krylov"].iloc[0]), "auto": float(runs["expected"].median()),
            "within 1.1, %": f"{100 * (ratio <= 1.1).mean():.0f}", "worst": float(ratio.max()),
            "as reported, within 1.1, %": f"{100 * (raw <= 1.1).mean():.0f}",
            "holds the truth, %": f"{100 * runs['covers'].astype(bool).mean():.0f}",
            "most spent / budget": float((runs["products"] / runs["budget"]).max()),
            "exact only, %": f"{100 * (runs['chosen'] == 'exact').mean():.0f}",
        })  # fmt: skip
    frame = pd.DataFrame(rows).replace(math.inf, math.nan)
    return script.format_columns(frame, {name: name for name in frame.columns})


def short(table: pd.DataFrame) -> str:
    """Return how `auto` fares at the second budget."""
    return choices(table[table["budget"] == BUDGETS[1]])


def tables(table: pd.DataFrame) -> str:
    """Return the choices of `auto`, exact against stochastic, and what budgets buy, as markdown."""
    columns = {"case": "network", "method": "method", "products": "products"}
    large_columns = columns | {"seconds": "seconds", "half_width": "half-width", "error": "largest error"}
    budget_columns = columns | {"budget": "budget", "samples": "samples"}
    budget_columns |= {"half_width": "half-width / mean", "chosen": "estimator"}
    parts = (("large", large_columns), ("budget", budget_columns))
    rest = [script.format_columns(table[table["part"] == part], shown) for part, shown in parts]
    return "\n\n".join([choices(table), *rest])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw expected half-widths against budgets, one panel per network."""
    groups = list(table[table["part"].isin(NETWORKS)].groupby("case", sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(3 * len(groups), 3.8), layout="constrained", squeeze=False)
    for ax, (case, runs) in zip(axes[0], groups, strict=True):
        found = runs.groupby("budget")
        low, middle, high = (found["expected"].quantile(share) for share in (0.05, 0.5, 0.95))
        for column, color in (("best_exact", "#1f77b4"), ("best_krylov", "#ff7f0e")):
            ax.plot(found[column].first().replace(math.inf, math.nan), color=color, label=f"{column[5:]}, at best")
        ax.errorbar(
            middle.index, middle, yerr=[middle - low, high - middle], fmt="ko", markersize=4, capsize=3, label="auto"
        )
        ax.set(xscale="log", yscale="log", xlabel="budget, products")
        ax.set_xticks(list(middle.index), [f"{limit:,.0f}" for limit in middle.index])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_title(str(case), fontsize="small")
    axes[0][0].set_ylabel("expected half-width / mean")
    axes[0][0].legend(frameon=False, fontsize="x-small")
    figure.suptitle(
        "auto: how wide an interval a budget buys, against the best of a grid of pure choices, which a mixture may beat (bars: 5 to 95 % of 60 seeds)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    kinds = {name: partial(choice, name) for name in NETWORKS}
    script.run_measurement("budgets", __doc__, {**kinds, "large": large, "budget": budget}, draw, tables)
