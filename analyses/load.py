"""How do memory and time grow with samples, outputs, inputs, depth, network and number of trials?

At most about linearly, in CPU seconds of one run per size (one thread; a factor of 4, or of 100 for outputs and inputs, between the smallest
and the largest size): per unit the largest takes 0.46 to 1.21 times as long as the smallest. Memory grows 1.0 to 4.8 times for four times the
size, 47 and 60 times for a hundred times the outputs and inputs.

- 50,000 samples of an MLP take 1.8 s and 55 MiB more than before; 100,000 outputs at eight samples 1.7 s and 318 MiB, a million inputs 1.2 s and
  664 MiB; a linear network of 1,000 layers 0.43 s to measure and 0.40 s to recover; pruning 300 convolutions 2.6 s.
- The trained ResNet-56 takes 204 CPU seconds for 10,000 images, 0.020 s each, and as much memory as for 2,500: 1.3 GiB, reading CIFAR-10
  included.
- A ResNet-50 at 224 x 224 with 1,000 outputs takes 11 to 13 s per image by brackets, and 468 MiB for one, 863 MiB for four.
- A ViT-B/16 at 224 x 224 takes 131 to 228 s per image by brackets and 2.1 GiB for four images, a transformer of GPT-2's size 78 to 169 s per
  sequence of 16 tokens (804,112 outputs) and 5.9 GiB for four sequences.
- A sweep costs 0.07 s per trial of a network that is pruned in almost no time, whether it has 500 or 2,000 trials.

Run `python analyses/load.py --out figures`, with $ISOMETRY_DATA naming the folder with CIFAR-10 and the pretrained
weights; an hour of one core. Every row is one process of its own; seconds are CPU seconds of one run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn

import isometry
from isometry.trials import Trial, script
from isometry.trials.resources import use
from isometry.trials.script import Row
from isometry.trials.subjects import resnet_56


def measure_samples(samples: int) -> None:
    """An MLP of seven layers at so many samples."""
    net = isometry.networks.build("mlp-7-relu", input_shape=(1, 8, 8), seed=0)
    isometry.measure(net, torch.randn(samples, 1, 8, 8), progress=False)


def measure_images(samples: int) -> None:
    """The trained ResNet-56 at so many images."""
    net, images, _ = resnet_56(samples < 100)
    isometry.measure(net, images.repeat(-(-samples // len(images)), 1, 1, 1)[:samples], progress=False)


def measure_outputs(outputs: int) -> None:
    """An MLP with so many outputs at eight samples."""
    net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, outputs))
    isometry.measure(net, torch.randn(8, 512), progress=False)


def measure_inputs(inputs: int) -> None:
    """An MLP with so many inputs at eight samples."""
    net = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 10))
    isometry.measure(net, torch.randn(8, inputs), progress=False)


def _deep(layers: int) -> nn.Module:
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(layers)), nn.Linear(64, 10))
    for layer in net:
        nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
    return net


def measure_depth(layers: int) -> None:
    """A linear network of so many layers."""
    isometry.measure(_deep(layers), torch.randn(64, 64), progress=False)


def recover_depth(layers: int) -> None:
    """The oracle of a linear network of so many layers."""
    isometry.recover(_deep(layers))


def measure_resnet_50(samples: int) -> None:
    """A ResNet-50 with random weights at 224 x 224, 1,000 outputs."""
    net = isometry.networks.build("resnet-50", classes=1000, seed=0)
    isometry.measure(net, torch.randn(samples, 3, 224, 224), method="krylov", progress=False)


def _transformer(layers: int = 12, width: int = 768) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


class ViT(nn.Module):
    """ViT-B/16: 12 layers of width 768 over 196 patches, 1,000 outputs of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 196, 768))
        self.encoder = _transformer()
        self.head = nn.Linear(768, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 1000] of images [B, 3, 224, 224]."""
        return self.head(self.encoder(self.patches(x).flatten(2).mT + self.positions).mean(1))


class GPT(nn.Module):
    """A causal transformer of the size of GPT-2 small; logits [B, T, 50257] of tokens [B, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50257, 768)
        self.positions = nn.Parameter(0.02 * torch.randn(1024, 768))
        self.decoder = _transformer()
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token at every place."""
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        x = self.decoder(self.embedding(tokens) + self.positions[:length], mask=mask)
        return x @ self.embedding.weight.mT


def measure_vit(samples: int) -> None:
    """A ViT-B/16 with random weights at 224 x 224, 1,000 outputs."""
    isometry.measure(ViT(), torch.randn(samples, 3, 224, 224), method="krylov", progress=False)


def measure_gpt(samples: int) -> None:
    """A transformer of GPT-2's size from its embedding, at 16 tokens: 804,112 outputs."""
    tokens = torch.randint(0, 50257, (samples, 16))
    isometry.measure(GPT(), tokens, at="embedding", method="krylov", progress=False)


def run_trials(count: int) -> None:
    """A sweep of so many ratios of one tiny network."""
    net: dict[str, Any] = {"dataset": "digits", "network": "mlp-7-relu", "options": {"input_shape": (1, 8, 8)}}
    recipe = isometry.Recipe(1e-2, 1)
    ratios = np.linspace(0.1, 0.9, count).tolist()
    with tempfile.TemporaryDirectory() as folder:
        trials = [Trial(**net, pretrain=recipe, pruner=isometry.L1(), ratio=ratio) for ratio in ratios]
        isometry.trials.run(trials, folder, jobs=1, progress=False)


def prune_depth(layers: int) -> None:
    """L1 pruning of a network of so many convolutions with BatchNorm."""
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(layers)]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    isometry.prune(net, isometry.L1(), 0.5, inputs=torch.randn(2, 3, 16, 16), progress=False)


# case: (what is counted, three sizes, a size for --quick; None leaves it out)
CASES: dict[Callable[[int], None], tuple[str, list[int], int | None]] = {
    measure_samples: ("samples", [12_500, 25_000, 50_000], 200),
    measure_images: ("images", [2_500, 5_000, 10_000], None),
    measure_outputs: ("outputs", [1_000, 10_000, 100_000], 300),
    measure_inputs: ("inputs", [10_000, 100_000, 1_000_000], 1_000),
    measure_depth: ("layers", [250, 500, 1_000], 20),
    recover_depth: ("layers", [250, 500, 1_000], 20),
    measure_resnet_50: ("images", [1, 2, 4], None),
    measure_vit: ("images", [1, 2, 4], None),
    measure_gpt: ("sequences", [1, 2, 4], None),
    run_trials: ("trials", [500, 1_000, 2_000], 4),
    prune_depth: ("layers", [75, 150, 300], 5),
}


def warm_up(size: int) -> None:
    """Load what the first measurement and the first surgery load."""
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    isometry.measure(isometry.prune(net, isometry.L1(), 0.4, inputs=torch.randn(2, 4)).model, torch.randn(4, 4))


def part(case: Callable[[int], None], quick: bool) -> list[Row]:
    """Return one row per size: CPU seconds and growth of the peak memory of a fresh process."""
    unit, sizes, small = CASES[case]
    rows: list[Row] = []
    for size in sizes if not quick else [small] if small else []:
        mib, seconds = use(case, warm_up, size)
        rows.append(
            {"case": (case.__doc__ or "").rstrip("."), "size": size, "unit": unit, "seconds": seconds, "peak_mib": mib}
        )
    return rows


def tables(table: pd.DataFrame) -> str:
    """Return all rows; "per unit" are the seconds per unit over those of the smallest size: 1 is linear growth."""
    base = table.groupby("part")[["seconds", "size"]].transform("first")
    rows = table.assign(growth=table["seconds"] / base["seconds"] / (table["size"] / base["size"]))
    columns = {
        "case": "case",
        "size": "size",
        "unit": "of",
        "seconds": "CPU seconds",
        "growth": "per unit",
        "peak_mib": "peak MiB",
    }
    return script.format_columns(rows, columns)


def short(table: pd.DataFrame) -> str:
    """Return the largest size of the eight cases that take longest."""
    columns = {"case": "case", "size": "size", "unit": "of", "seconds": "CPU seconds", "peak_mib": "peak MiB"}
    largest = table.groupby("part", sort=False).tail(1)
    return script.format_columns(largest.nlargest(8, "seconds"), columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds and peak memory against the size, relative to the smallest."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", sharex=True)
    for index, (_, rows) in enumerate(table.groupby("part", sort=False)):
        last = rows.iloc[-1]
        style: dict[str, Any] = {"color": plt.get_cmap("tab20")(index), "marker": "o"}
        name = str(last["case"]).replace("so many", f"up to {last['size']:,}")
        name = name if "up to" in name else f"{name}, up to {last['size']:,} {last['unit']}"
        for ax, column in zip(axes, ("seconds", "peak_mib"), strict=True):
            ax.loglog(rows["size"] / rows["size"].iloc[0], rows[column].clip(lower=1e-3), label=name, **style)
    reach = (table["size"] / table.groupby("part")["size"].transform("first")).max()
    start = table.groupby("part")["seconds"].first().median()
    axes[0].loglog([1, reach], [start, start * reach], "k:", label="linear growth")
    axes[0].set_ylabel("CPU seconds")
    axes[1].set_ylabel("growth of the peak memory, MiB")
    for ax in axes:
        ax.set_xlabel("size over the smallest one")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize="small", loc="outside lower center", ncols=2)
    first = table.groupby("part").first()
    growth = table.groupby("part").last()[["seconds", "size"]] / first[["seconds", "size"]]
    per_unit = growth["seconds"] / growth["size"]
    figure.suptitle(
        f"Per unit the largest size takes {per_unit.min():.2f} to {per_unit.max():.2f} times as long as the smallest (one run each)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    parts = {case.__name__: partial(part, case) for case in CASES}
    script.run_measurement("load", __doc__, parts, draw, tables)
