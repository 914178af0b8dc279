"""What happens to architectures that nobody here wrote: are they measured rightly, and pruned and loaded exactly?

All 61 are measured as autograd does (largest relative difference of the mean JSV 5.6e-10). 60 are pruned exactly (largest relative
difference from the masked network 9.1e-15) and loaded with every weight bit for bit; ConvNeXtV2 is refused, as normalizations over
channels leave nothing to cut. Of 2,390 layers with units 1,897 are cut, 126 skipped and 290 left alone by name; of the other 77, 60 are
outputs and 17 are ConvNeXtV2's. The smallest shares are cut in MixNet (15 %) and OctResNet (29 %), whose code holds widths, in CBAM (36 %),
which takes means and maxima over channels, and in ConvNeXt (24 %) and PoolFormer (31 %), which normalize over channels. One draw of
weights each; training, other ratios and other pruners are not tested.

Every network has random weights. It is measured (exact spectra, two samples) and compared with autograd in float64; pruned by L1 at 0.5;
compared with itself of full width, in which what reads the removed units is 0 and the units themselves are random; saved, and loaded into a
fresh network. LayerNorm and GroupNorm take statistics over channels, so that cutting those is inexact by nature: such groups are skipped.

Run `python analyses/zoo.py --out figures`: minutes. Needs pytorchcv (`pip install --no-deps pytorchcv`) and transformers; these results are
of pytorchcv 0.0.74 and transformers 5.23.0.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry.files import markdown
from isometry.networks.units import unit_weight
from isometry.surgery import mask, to_selection, trace
from isometry.surgery.grouping import OUTPUT
from isometry.trials import script
from isometry.trials.script import Row

CIFAR = [
    "resnet_cifar.resnet20", "preresnet_cifar.preresnet20", "resnext_cifar.resnext20_16x4d", "seresnet_cifar.seresnet20",
    "sepreresnet_cifar.sepreresnet20", "densenet_cifar.densenet40_k12_bc", "xdensenet_cifar.xdensenet40_2_k24_bc",
    "pyramidnet_cifar.pyramidnet110_a48", "ror_cifar.ror3_56", "rir_cifar.rir", "shakeshakeresnet_cifar.shakeshakeresnet20_2x16d",
    "diaresnet_cifar.diaresnet20", "diapreresnet_cifar.diapreresnet20", "nin_cifar.nin", "resdropresnet_cifar.resdropresnet20",
    "shakedropresnet_cifar.shakedropresnet20",
]  # fmt: skip
IMAGENET = {
    "ImageNet, chains": ["alexnet.alexnet", "squeezenet.squeezenet_v1_1", "squeezenext.sqnxt23_w1", "hardnet.hardnet39ds", "dla.dla46c"],
    "ImageNet, shuffles": [
        "shufflenet.shufflenet_g2_w1", "shufflenetv2.shufflenetv2_wd2", "shufflenetv2b.shufflenetv2b_wd2", "menet.menet108_8x1_g3",
        "igcv3.igcv3_wd2", "ghostnet.ghostnet",
    ],
    "ImageNet, mobile": [
        "mobilenet.mobilenet_wd4", "mobilenetv2.mobilenetv2_wd4", "mobilenetv3.mobilenetv3_small_w7d20", "mnasnet.mnasnet_small",
        "efficientnet.efficientnet_b0", "mixnet.mixnet_s",
    ],
    "ImageNet, branches": ["regnet.regnetx002", "cbamresnet.cbam_resnet18", "octresnet.octresnet10_ad2", "resnesta.resnestabc14", "sknet.sknet50"],
}  # fmt: skip
_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_PATCHES = {"image_size": 32, "patch_size": 8, **_TRANSFORMER}
_STAGES = {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_TOKENS = {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0, **_TRANSFORMER}
_DECODER = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION: dict[str, dict[str, Any]] = {
    "ViT": _PATCHES, "DeiT": _PATCHES, "Dinov2": _PATCHES, "Beit": _PATCHES, "ViTMSN": _PATCHES, "Swin": _WINDOWS, "Swinv2": _WINDOWS,
    "ConvNext": _STAGES, "ConvNextV2": _STAGES, "PoolFormer": _STAGES,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "groups_width": 8},
    "Segformer": {**_STAGES, "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 16},
    "Pvt": {**_STAGES, "num_attention_heads": [1, 2, 3, 4]},
}  # fmt: skip
LANGUAGE: dict[str, dict[str, Any]] = {
    "Bert": _TOKENS, "Roberta": _TOKENS, "Electra": {**_TOKENS, "embedding_size": 32}, "Albert": {**_TOKENS, "embedding_size": 16},
    "DistilBert": {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "MPNet": _TOKENS,
    "OPT": {**_TOKENS, "ffn_dim": 48, "word_embed_proj_dim": 32}, "Llama": {**_TOKENS, "num_key_value_heads": 2},
    "GPT2": {**_DECODER, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
PARTS = {"CIFAR": CIFAR, **IMAGENET, "vision": list(VISION), "language": list(LANGUAGE)}
CATALOGUE = ["lenet-5-relu", "resnet-20"]  # with --quick, which needs no other library


def build(part: str, name: str) -> tuple[nn.Module, Tensor]:
    """Return a network in float64 and eval mode, whose statistics and biases are not those of the start, and two inputs."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 224 if part in IMAGENET else 32, 224 if part in IMAGENET else 32, dtype=torch.float64)
    if part == "catalogue":
        net = isometry.networks.build(name, input_shape=(3, 32, 32), seed=0)
    elif part in ("CIFAR", *IMAGENET):
        file, _, function = name.partition(".")
        make = importlib.import_module(f"pytorchcv.models.{file}")
        net = getattr(make, f"{function}_cifar10" if part == "CIFAR" else function)(
            num_classes=10 if part == "CIFAR" else 4
        )
    else:
        transformers = importlib.import_module("transformers")
        task = "ImageClassification" if part == "vision" else "SequenceClassification"
        config = getattr(transformers, f"{name}Config")(num_labels=5, **(VISION | LANGUAGE)[name])
        net = getattr(transformers, f"{name}For{task}")(config)
        if part == "language":
            x = torch.randint(3, 60, (2, 9))
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    for parameter in net.parameters():
        if part in ("vision", "language"):  # of a spread of 0.02 at the start
            parameter.data += torch.randn_like(parameter) * 0.1
    return net, x


def mean_jsv(net: nn.Module, x: Tensor, at: str | None) -> float:
    """Return the mean JSV by one autograd call per output and sample, on the network as it is."""
    means = []
    for sample in x.split(1):
        start: dict[str, Tensor] = {}

        def replace(module: nn.Module, args: Any, result: Tensor, start: dict[str, Tensor] = start) -> Tensor:
            return start.setdefault("input", result.detach().requires_grad_())

        handle = net.get_submodule(at).register_forward_hook(replace) if at else None
        if not at:
            start["input"] = sample = sample.clone().requires_grad_()
        logits = _logits(net(sample)).flatten()
        rows = [torch.autograd.grad(value, start["input"], retain_graph=True)[0].flatten() for value in logits]
        means.append(float(torch.linalg.svdvals(torch.stack(rows)).mean()))
        if handle:
            handle.remove()
    return sum(means) / len(means)


def _logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _equal(net: nn.Module, other: nn.Module) -> bool:
    """Return whether all weights and buffers are equal bit for bit; outputs need not be, as kernels go by where tensors lie in memory."""
    one, two = ({**each.state_dict(), **dict(each.named_buffers())} for each in (net, other))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@torch.no_grad()
def masked(net: nn.Module, plan: isometry.Plan, x: Tensor) -> nn.Module:
    """Return the network of full width in which the removed units are random and whatever reads them is 0."""
    graph = trace(net, x)
    result = mask(net, to_selection(graph, plan))
    for name, units in plan.removed.items():
        layer = result.get_submodule(name)
        key, dim = unit_weight(layer) or ("weight", 0)
        rows = layer.get_parameter(key).transpose(0, dim)
        rows[list(units)] = torch.randn_like(rows[list(units)]) * rows.std()
    return result


def examine(part: str, name: str) -> Row:
    """Measure, prune, save and load one architecture."""
    net, x = build(part, name)
    at = None
    if part == "language":
        embeddings = cast(Any, net).get_input_embeddings()
        at = next(key for key, module in net.named_modules() if module is embeddings)
    row: Row = {"architecture": name.rpartition(".")[2], "layers": sum(bool(unit_weight(m)) for m in net.modules())}
    reference = mean_jsv(net, x, at)
    found = isometry.measure(net, x, method="exact", at=at, progress=False).mean_jsv
    row |= {"mean_jsv": found, "measured": abs(float(found) / reference - 1)}
    try:
        graph = trace(net, x)
        mixing = [layer for group in graph.groups if group.mixes for layer in group.layers]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = isometry.prune(net, isometry.L1(), 0.5, inputs=x, skip=mixing)
    except ValueError as error:
        return row | {"refused": str(error)[:160]}
    cut = {layer for layer, units in pruned.plan.removed.items() if units}
    left = {layer: why for layer, why in pruned.left_alone.items() if layer not in mixing and why != OUTPUT}
    with torch.no_grad():
        outputs, expected = _logits(pruned.model(x)), _logits(masked(net, pruned.plan, x)(x))
    assert not torch.equal(expected, _logits(net(x)))
    with tempfile.TemporaryDirectory() as folder:
        isometry.save(pruned, Path(folder) / "net.safetensors")
        loaded = isometry.load(Path(folder) / "net.safetensors", build(part, name)[0], inputs=x).model
    return row | {
        "pruned": len(cut),
        "heads": sum(group.heads and group.root in cut for group in graph.groups),
        "normalized": len(mixing),
        "left_alone": len(left),
        "reasons": "; ".join(sorted({why.split(" (")[0] for why in left.values()})),
        "parameters": pruned.after.parameters / pruned.before.parameters,
        "flops": pruned.after.flops / pruned.before.flops,
        "exact": float((outputs - expected).abs().max() / expected.abs().max()),
        "loaded": _equal(loaded, pruned.model) and bool(torch.allclose(_logits(loaded(x)), outputs, 1e-12, 1e-12)),
    }


def rows_of(part: str) -> Callable[[bool], list[Row]]:
    """Return the function that examines the architectures of a part; with --quick one, where its library is installed."""
    library = "transformers" if part in ("vision", "language") else "pytorchcv"

    def examine_all(quick: bool) -> list[Row]:
        if importlib.util.find_spec(library) is None:
            if quick:
                return []
            raise SystemExit(f"{part} needs {library}, which is not installed: pip install --no-deps {library}")
        return [examine(part, name) for name in PARTS[part][: 1 if quick else None]]

    return examine_all


def catalogue(quick: bool) -> list[Row]:
    """Examine networks of this library, with --quick only."""
    return [examine("catalogue", name) for name in CATALOGUE] if quick else []


def tables(table: pd.DataFrame) -> str:
    """Return what happened to every architecture as markdown."""
    table = table.reindex(columns=[*table.columns, *({"refused", "reasons"} - set(table.columns))])
    shown = table.assign(
        loaded=table["loaded"].map({True: "yes", False: "no"}).fillna(""),
        **{
            name: table[name].astype("Int64").astype("string").fillna("")
            for name in ("pruned", "heads", "normalized", "left_alone")
        },
        why=table["refused"].astype("object").fillna(table["reasons"].astype("object")).fillna(""),
    )
    columns = {
        "part": "kind",
        "architecture": "architecture",
        "layers": "layers",
        "measured": "mean JSV, relative to autograd's",
        "pruned": "layers cut",
        "heads": "attentions cut",
        "normalized": "skipped",
        "left_alone": "left alone",
        "parameters": "parameters kept",
        "exact": "pruned against masked",
        "loaded": "loaded bit for bit",
        "why": "why left alone or refused",
    }
    return script.format_columns(shown, columns)


def short(table: pd.DataFrame) -> str:
    """Return the counts by kind as markdown."""
    rows = [
        {
            "kind": kind,
            "architectures": len(rows),
            "measured to 1e-4": int((rows["measured"] < 1e-4).sum()),
            "pruned exactly (1e-9)": int((rows["exact"] < 1e-9).sum()),
            "refused": int(rows["exact"].isna().sum()),
            "loaded bit for bit": int((rows["loaded"] == True).sum()),  # noqa: E712
            "layers": int(rows["layers"].sum()),
            "cut": int(rows["pruned"].sum()),
            "skipped": int(rows["normalized"].sum()),
            "left alone": int(rows["left_alone"].sum()),
        }
        for kind, rows in table.groupby("part", sort=False)
    ]
    return markdown(pd.DataFrame(rows))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the shares of layers that were cut, skipped and left alone."""
    figure, ax = plt.subplots(figsize=(7, 11), layout="constrained")
    start = pd.Series(0.0, index=table.index)
    for column, label in (
        ("pruned", "cut"),
        ("normalized", "normalized over channels, skipped"),
        ("left_alone", "left alone"),
    ):
        share = table[column].fillna(0) / table["layers"]
        ax.barh(table["architecture"], share, left=start, label=label)
        start += share
    ax.margins(y=0.01)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="share of the layers with units (the rest: outputs; nothing: refused)", xlim=(0, 1))
    ax.set_title("Most layers of architectures written elsewhere can be cut exactly", fontsize="medium")
    ax.legend(frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    script.run_measurement(
        "zoo", __doc__, {"catalogue": catalogue, **{part: rows_of(part) for part in PARTS}}, draw, tables
    )
