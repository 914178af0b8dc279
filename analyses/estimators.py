"""What does a Jacobian spectrum cost, how well is it known, and when is a stochastic estimate worth it?

With few outputs, all singular values cost little more than nothing would: for ResNet-56 with 64 CIFAR-10 inputs `measure` takes
1.08 times the floor (one forward and ten input-gradient passes of the folded network), 2.2 times less time than
`.backward()` per class with an SVD, 14 times less than `vmap(jacrev)`, 3.5 times less than curvlinops' operator made dense; a
table of every block costs 1.5 times as much. At 1,000 outputs (a random ResNet-50) Golub-Kahan brackets every sample's mean
to 3 % for 12 times fewer products and 9.0 times less time than exact. At equal budgets exact gives the shorter interval for
ten outputs and the brackets do for a thousand; `auto` took the shorter one at every budget, and kept it to a few per cent.
The ratios to other routes are those of two cores of one machine and differ between machines.

PruningContext `python analyses/estimators.py` with $ISOMETRY_DATA pointing at the CIFAR-10 files and the pretrained ResNet-56 (see
the README); without them a random ResNet-56 on random images stands in. `--quick` runs small versions of everything,
`--redraw` draws from the written table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from tqdm.auto import tqdm

import isometry
from isometry.files import check_writable, markdown, software, write_table
from isometry.spectra import Matrices, Spectrum, bidiagonalize, laws, mean_with_error, probes

Row = dict[str, Any]
PALETTE = ("#9467bd", "#1f77b4", "#ff7f0e", "#2ca02c")


def spectra(size: int) -> dict[str, Tensor]:
    """Return the prescribed spectra."""
    return {
        "isometry": torch.ones(size),
        "uniform": torch.linspace(0.5, 1.5, size),
        "log, condition 1e5": torch.logspace(0, -5, size),
        "half zeros": torch.cat([torch.linspace(0.5, 1.5, size - size // 2), torch.zeros(size // 2)]),
    }


def matrix(values: Tensor, columns: int, seed: int) -> Tensor:
    """Return a matrix [r, columns] with the given singular values in random directions, float64."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, len(values), generator=g, dtype=torch.float64)).Q
    return (u * values.double()) @ v.T


def prescribed(quick: bool) -> list[Row]:
    """Return error and bracket against products on prescribed spectra, and coverage over seeds."""
    size, seeds = (60, 40) if quick else (200, 400)
    rows: list[Row] = []
    for name, values in spectra(size).items():
        a = matrix(values, size + size // 2, 0)
        truth = float(values.double().mean())
        for steps in (4, 8, 16, 32):
            start = probes(1, 64, size, torch.Generator().manual_seed(1), a)
            run = bidiagonalize(Matrices(a), start, steps=steps)
            lower, upper = (end[0] for end in run.bracket())
            rows.append(
                {"part": "prescribed", "case": name, "method": "krylov", "products": run.products, "probes": 1,
                 "error": float(((lower + upper) / 2 - truth).abs().median()) / truth,
                 "half_width": float((upper - lower).mean() / 2) / truth}
            )  # fmt: skip
        if size > 100:
            k = size - 1
            start_time = time.perf_counter()
            found = svds(a.numpy(), k=k, return_singular_vectors=False)
            rows.append(
                {"part": "peer", "case": name, "method": f"scipy svds, k={k}", "seconds": time.perf_counter() - start_time,
                 "error": abs(found.sum() / size - truth) / truth}
            )  # fmt: skip
        hits = 0
        for seed in range(seeds):
            start = probes(1, 12, size, torch.Generator().manual_seed(seed), a)
            lower, upper = (end[0] for end in bidiagonalize(Matrices(a), start, steps=32).bracket())
            low, high = mean_with_error((lower + upper) / 2, lower, upper).interval
            hits += low - 1e-9 <= truth <= high + 1e-9
        rows.append(
            {"part": "coverage", "case": name, "method": "krylov, 12 probes", "coverage": hits / seeds, "seeds": seeds}
        )
    return rows


def resnet_56(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return the network, CIFAR images and what they are."""
    root = os.environ.get("ISOMETRY_DATA")
    if quick or not root:
        net = isometry.networks.build("resnet-20" if quick else "resnet-56", seed=0)
        with torch.no_grad():  # a random net without trained statistics explodes: scale its branches down
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.mul_(0.2)
        return net.eval(), torch.randn(40 if quick else 512, 3, 32, 32), "random weights"
    weights = Path(root) / "weights" / "resnet56_cifar10.safetensors"
    net = isometry.networks.build("resnet-56", weights=weights).eval()
    images = isometry.data.load("cifar10", root, normalization=isometry.data.IMAGENET).test.inputs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return net, images[order[:2000]], "pretrained, CIFAR-10"


def ours(net: nn.Module, x: Tensor) -> Tensor:
    """Return the mean JSVs a sample by isometry.measure."""
    return isometry.measure(net, x, progress=False).sample_means


def backward_per_class(net: nn.Module, x: Tensor) -> Tensor:
    """Return them by what the research code does: `.backward()` per class, then a full SVD."""
    z = x.clone().requires_grad_(True)
    outputs = net(z)
    rows: list[Tensor] = []
    for k in range(outputs.shape[1]):
        z.grad = None
        one_hot = torch.zeros_like(outputs)
        one_hot[:, k] = 1
        outputs.backward(one_hot, retain_graph=True)
        assert z.grad is not None
        rows.append(z.grad.flatten(1).clone())
    _, values, _ = torch.linalg.svd(torch.stack(rows, 1), full_matrices=False)
    net.zero_grad()
    return values.mean(1)


def vmap_jacrev(net: nn.Module, x: Tensor) -> Tensor:
    """Return them by torch.func: vmap of jacrev, then singular values."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda s: net(s[None])[0]))(x)
    return torch.linalg.svdvals(jacobians.flatten(2)).mean(1)


def functional_jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """Return them by torch.autograd.functional.jacobian, sample by sample."""
    means = []
    for sample in x:
        j = torch.autograd.functional.jacobian(lambda s: net(s[None])[0], sample)
        means.append(torch.linalg.svdvals(j.flatten(1)).mean())
    return torch.stack(means)


class _At(nn.Module):
    """The network with its input as the one parameter, which is how curvlinops sees an input Jacobian."""

    def __init__(self, net: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.net, self.sample = net, nn.Parameter(sample.clone())

    def forward(self, _: Tensor) -> Tensor:
        return self.net(self.sample)


def _operators(net: nn.Module, x: Tensor) -> Iterator[Any]:
    from curvlinops import JacobianLinearOperator

    unused = [(torch.zeros(1, 1), torch.zeros(1))]
    flags = [p.requires_grad for p in net.parameters()]
    net.requires_grad_(False)
    for sample in x:
        at = _At(net, sample[None])
        yield JacobianLinearOperator(at, [at.sample], unused, check_deterministic=False)
    for p, flag in zip(net.parameters(), flags, strict=True):
        p.requires_grad_(flag)


def curvlinops_svd(net: nn.Module, x: Tensor) -> Tensor:
    """Return them by curvlinops' operator made dense by its own products with the unit vectors, then singular values."""
    rows = [operator.adjoint() @ torch.eye(operator.shape[0]) for operator in _operators(net, x)]
    return torch.linalg.svdvals(torch.stack(rows)).mean(1)


def curvlinops_svds(net: nn.Module, x: Tensor) -> Tensor:
    """Return them by scipy's svds on curvlinops' operator, which cannot have the smallest one: the sum of r - 1 over r."""
    sizes = [min(operator.shape) for operator in _operators(net, x[:1])]
    sums = [svds(o.to_scipy(), k=sizes[0] - 1, return_singular_vectors=False).sum() for o in _operators(net, x)]
    return torch.tensor(sums) / sizes[0]


def floor(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return what cannot be saved: one forward pass and an input-gradient pass a class, of the folded network."""
    from isometry.measurement.folding import folded
    from isometry.measurement.function import NetworkFunction
    from isometry.networks.modules import state_preserved

    with state_preserved(net):
        view = folded(NetworkFunction(net), x[:2])
        assert view is not None
        model = view.model.eval().requires_grad_(False)
    leaf = x.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        z = leaf.clone(memory_format=torch.preserve_format).requires_grad_(True)
        outputs = model(z)
        cotangent = torch.zeros_like(outputs)
        for k in range(outputs.shape[1]):
            cotangent[:, k] = 1
            torch.autograd.grad(outputs, z, cotangent, retain_graph=True)
            cotangent[:, k] = 0

    return run


ROUTES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "isometry.measure": ours,
    ".backward() per class + SVD": backward_per_class,
    "vmap(jacrev) + SVD": vmap_jacrev,
    "autograd.functional.jacobian": functional_jacobian,
}
if importlib.util.find_spec("curvlinops"):  # an optional peer: pip install curvlinops-for-pytorch
    ROUTES |= {"curvlinops + SVD": curvlinops_svd, "curvlinops + scipy svds": curvlinops_svds}
# One sample at a time whatever their number: timed on the first few.
SINGLY = ("autograd.functional.jacobian", "curvlinops + SVD", "curvlinops + scipy svds")


def peak(route: str, file: str, queue: Any) -> None:
    """Put the growth of this process's peak memory over one call, in MiB, into `queue`."""

    def high_water() -> float:
        # Not getrusage: its maximum starts from the parent's size.
        return float(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024

    net, x = torch.load(file, weights_only=False)
    with torch.no_grad():
        net(x[:2])
    before = high_water()
    ROUTES[route](net, x)
    queue.put(high_water() - before)


def memory(route: str, net: nn.Module, x: Tensor) -> float:
    """Return `peak` of a fresh process that holds nothing but the network and its inputs."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "subject.pt")
        torch.save((net, x.clone()), file)
        process = context.Process(target=peak, args=(route, file, queue))
        process.start()
        found = queue.get(timeout=600)
        process.join()
    return float(found)


def routes(quick: bool) -> list[Row]:
    """Return seconds, paired and interleaved in one run, memory and agreement of every route to the spectrum."""
    net, images, described = resnet_56(quick)
    count, repeats = (8, 2) if quick else (64, 5)
    x = images[:count]
    reference = ours(net, x)
    lowest = floor(net, x)
    layered = "isometry.measure, layers=True"
    calls: dict[str, Callable[[Tensor], object]] = {
        "floor": lambda _: lowest(),
        **{name: partial(route, net) for name, route in ROUTES.items()},
        layered: lambda some: isometry.measure(net, some, layers=True, progress=False),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            some = x[: 2 if quick else 4] if name in SINGLY else x
            start = time.perf_counter()
            call(some)
            times[name].append((time.perf_counter() - start) * len(x) / len(some))
    rows: list[Row] = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["isometry.measure"], strict=True)]
        row = {"part": "routes", "case": f"{described}, {count} inputs", "method": name, "seconds": statistics.median(seconds),
               "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}  # fmt: skip
        if name in ROUTES:
            found = ROUTES[name](net, x[:4]).detach().double()
            row["error"] = float((found - reference[:4]).abs().max() / reference.abs().max())
        rows.append(row)
    return rows


def footprints(quick: bool) -> list[Row]:
    """Return the growth of peak memory of every route, and of this one at four times the inputs (Linux only)."""
    if not Path("/proc/self/status").exists():
        return []
    net, images, described = resnet_56(quick)
    count = 4 if quick else 64
    rows: list[Row] = []
    for name in ROUTES if not quick else ["isometry.measure"]:
        for times in (1, 4) if ROUTES[name] is ours else (1,):
            found = memory(name, net, images[: times * count])
            rows.append(
                {"part": "memory", "case": f"{described}, {times * count} inputs", "method": name, "peak_mib": found}
            )
    return rows


def large(quick: bool) -> list[Row]:
    """Return exact against stochastic at 1,000 outputs without a narrow cut, and interval widths against budgets."""
    if quick:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 400), nn.ReLU(), nn.Linear(400, 300)).eval()
        x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        count = 2
    else:
        net = isometry.networks.build("resnet-50", 1000, seed=0, input_shape=(3, 64, 64)).eval()
        x = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        count = 4
    case = "random, 300 outputs" if quick else "resnet-50, random, 1000 outputs"
    exact = isometry.measure(net, x[:count], method="exact", progress=False)
    found = isometry.measure(net, x[:count], method="krylov", progress=False)
    assert found.brackets is not None
    lower, upper = found.brackets.lower, found.brackets.upper
    half = (upper - lower) / (upper + lower)
    inside = (lower / exact.sample_means, upper / exact.sample_means)
    rows: list[Row] = [
        {
            "part": "large",
            "case": case,
            "method": method,
            "products": report.cost.products,
            "seconds": report.cost.seconds,
        }
        for method, report in (("exact", exact), ("krylov", found))
    ]
    rows[1] |= {"half_width": float(half.max()), "low": float(inside[0].min()), "high": float(inside[1].max())}
    budgets = (600, 1200) if quick else (400, 1000, 2500)
    for budget in budgets:
        # Two exact samples are the least that give an interval.
        for method in (
            ("exact", "krylov", "auto") if budget >= 2 * exact.spectrum.values.shape[1] else ("krylov", "auto")
        ):
            rows.append(spent(net, x, case, method, budget))
    net, images, described = resnet_56(quick)
    for budget in (200, 400) if quick else (300, 1000, 3000):
        for method in ("exact", "krylov", "auto"):
            rows.append(spent(net, images, f"resnet-56, {described}", method, budget))
    return rows


def spent(net: nn.Module, x: Tensor, case: str, method: str, budget: int) -> Row:
    """Return the half-width of the interval that a budget buys."""
    row: Row = {"part": "budget", "case": case, "method": method, "budget": budget}
    report = isometry.measure(net, x, method=method, budget=budget, progress=False)
    low, high = report.interval
    half = (high - low) / 2 / report.mean_jsv
    return row | {
        "half_width": half,
        "products": report.cost.products,
        "samples": len(report.spectrum),
        "chosen": report.method,
    }


def closed_forms(quick: bool) -> list[Row]:
    """Return Kolmogorov-Smirnov distances of simulated maps to their laws, against size."""

    def square(n: int, g: torch.Generator) -> Tensor:
        return torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5

    def haar(n: int, g: torch.Generator) -> Tensor:
        q, r = torch.linalg.qr(square(n, g))
        return q * r.diagonal().sign()

    def gated(n: int, g: torch.Generator) -> Tensor:
        product = torch.eye(n, dtype=torch.float64)
        for _ in range(4):
            open_gates = torch.zeros(n, dtype=torch.float64)
            open_gates[torch.randperm(n, generator=g)[: n // 2]] = 1
            product = open_gates[:, None] * (haar(n, g) @ product) * math.sqrt(2)
        return product

    cases: dict[str, tuple[laws.Law, Callable[[int, torch.Generator], Tensor]]] = {
        "4 Gaussian layers": (
            laws.FussCatalan(4),
            lambda n, g: square(n, g) @ square(n, g) @ square(n, g) @ square(n, g),
        ),
        "4 ReLU layers, orthogonal": (laws.BernoulliOrthogonal(4, 0.5, math.sqrt(2)), gated),
        "orthogonal, 10 % pruned at random": (
            laws.RandomMask(0.9),
            lambda n, g: haar(n, g) * (torch.rand(n, n, generator=g) < 0.9),
        ),
    }
    rows: list[Row] = []
    for name, (law, draw) in cases.items():
        for n in (30, 60) if quick else (50, 100, 200, 400):
            found = Spectrum.of(torch.linalg.svdvals(draw(n, torch.Generator().manual_seed(n))))
            rows.append(
                {"part": "laws", "case": name, "method": type(law).__name__, "size": n, "distance": law.distance(found)}
            )
    return rows


def net_coverage(quick: bool) -> list[Row]:
    """Return how often intervals from few samples hold the mean over many inputs."""
    net, images, described = resnet_56(quick)
    every = isometry.measure(net, images, progress=False).sample_means
    truth = float(every.mean())
    seeds, hits, count = 400, 0, 6 if quick else 24
    for seed in range(seeds):
        index = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
        low, high = mean_with_error(every[index]).interval
        hits += low <= truth <= high
    row = {
        "part": "coverage",
        "case": f"resnet-56, {described}",
        "method": f"exact, {count} samples",
        "coverage": hits / seeds,
    }
    return [{**row, "seeds": seeds}]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw error against products, seconds as ratios, width against budget, and distances to laws."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    ax = axes[0, 0]
    for shade, (name, rows) in zip(
        PALETTE, table[table["part"] == "prescribed"].groupby("case", sort=False), strict=False
    ):
        ax.plot(rows["products"], rows["error"].clip(lower=1e-9), marker="o", color=shade, label=f"{name}: error")
        ax.plot(rows["products"], rows["half_width"].clip(lower=1e-9), linestyle=":", color=shade)
    ax.set(xscale="log", yscale="log", xlabel="products a probe", ylabel="share of the mean")
    ax.set_xticks([2, 8, 16, 32, 64], ["2", "8", "16", "32", "64"])
    ax.minorticks_off()
    ax.set_title("One probe's error (solid, median) and half-width of its bracket (dotted)", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    ax = axes[0, 1]
    rows = table[table["part"] == "routes"]
    reach = np.stack([rows["ratio"] - rows["ratio_low"], rows["ratio_high"] - rows["ratio"]]).clip(0)
    ax.barh(
        rows["method"],
        rows["ratio"],
        xerr=reach,
        color=["#bbbbbb" if m == "floor" else "#2ca02c" if m.startswith("iso") else "#1f77b4" for m in rows["method"]],
        capsize=3,
    )
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.set_xlabel("seconds over those of isometry.measure\n(median of paired runs, bars: their range)")
    ax.set_title(f"ResNet-56, {rows['case'].iloc[0]}", fontsize="medium")
    ax = axes[1, 0]
    for (case, method), rows in table[table["part"] == "budget"].groupby(["case", "method"], sort=False):
        style = {"exact": "-", "krylov": "--", "auto": ":"}[str(method)]
        shade = "#1f77b4" if "56" in str(case) else "#ff7f0e"
        ax.plot(
            rows["budget"],
            rows["half_width"],
            style,
            marker="o",
            markersize=9 if method == "auto" else 5,
            fillstyle="none" if method == "auto" else "full",
            color=shade,
            label=f"{case}: {method}",
        )
    ax.set(xscale="log", yscale="log", xlabel="budget, products", ylabel="half-width of the 95 % interval / mean")
    ax.set_title("Ten classes want all their values, a thousand want probes; auto takes the better", fontsize="medium")
    ax.legend(frameon=False, fontsize="x-small")
    ax = axes[1, 1]
    for name, rows in table[table["part"] == "laws"].groupby("case", sort=False):
        ax.plot(rows["size"], rows["distance"], marker="o", label=str(name))
    ax.set(xscale="log", yscale="log", xlabel="size of the matrices", ylabel="Kolmogorov-Smirnov distance")
    ax.set_title("Measured spectra tend to their laws", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def readme(table: pd.DataFrame) -> str:
    """Return the tables of the README."""

    def shown(part: str, columns: dict[str, str]) -> str:
        rows = table[table["part"] == part].reindex(columns=list(columns)).rename(columns=columns)
        texts = rows.map(
            lambda v: f"{v:.3g}" if isinstance(v, float) and not math.isnan(v) else "" if isinstance(v, float) else v
        )
        return markdown(texts)

    ratios = {
        "method": "route",
        "seconds": "seconds",
        "ratio": "ratio",
        "error": "largest difference",
    }
    memory_columns = {"case": "case", "method": "route", "peak_mib": "peak MiB"}
    large_columns = {
        "case": "network",
        "method": "method",
        "products": "products",
        "seconds": "seconds",
        "half_width": "half-width",
    }
    coverage = {"case": "case", "method": "method", "coverage": "coverage", "seeds": "seeds"}
    return "\n\n".join(
        [
            shown("routes", ratios),
            shown("memory", memory_columns),
            shown("large", large_columns),
            shown("coverage", coverage),
        ]
    )


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "routes": routes,
    "memory": footprints,
    "large": large,
    "prescribed": prescribed,
    "laws": closed_forms,
    "coverage": net_coverage,
}


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small versions of everything")
    parser.add_argument("--redraw", action="store_true", help="draw from the written table, without computing")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="do these parts again, keep the table's others")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where results go unless --out is given")
    parser.add_argument("--out", type=Path, help="where table and figure go; default: a folder under --runs")
    options = parser.parse_args()
    mpl.use("Agg")
    stem = (options.out or options.runs / ("estimators-quick" if options.quick else "estimators")) / "estimators"
    if not options.redraw:
        check_writable(stem.parent)
        start = time.perf_counter()
        chosen = options.only or list(PARTS)
        kept, before = None, []
        if options.only and stem.with_suffix(".csv").exists():
            kept = pd.read_csv(stem.with_suffix(".csv"))
            before = json.loads(stem.with_suffix(".json").read_text())["software"]
        rows: list[Row] = []
        for name in tqdm(chosen, desc="parts", unit="part"):
            rows += PARTS[name](options.quick)
            origin = {
                "software": [entry for entry in before if entry != software()] + [software()],
                "seeds": [0],
                "computing_seconds": round(time.perf_counter() - start, 1),
                "threads": torch.get_num_threads(),
            }
            table = pd.DataFrame(rows)
            if kept is not None:
                table = pd.concat([kept[~kept["part"].isin(table["part"].unique())], table], ignore_index=True)
            write_table(table, origin, stem)  # after every part: what is done is not lost
    elif not stem.with_suffix(".csv").exists():
        parser.error(f"--redraw found no {stem.with_suffix('.csv')}; run without it first")
    table = pd.read_csv(stem.with_suffix(".csv"))
    draw(table, stem.with_suffix(".png"))
    print(readme(table))
    print(f"\nwrote {stem}.csv, .json, .png")


if __name__ == "__main__":
    main()
