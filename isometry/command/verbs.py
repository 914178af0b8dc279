"""The commands `measure`, `compare` and `prune`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isometry
from isometry.command.sources import (
    build_network,
    check_network,
    check_output,
    count_tests,
    draw_inputs,
    find_device,
    find_pruner,
    load_weights,
    read_data,
)
from isometry.data import Data, Folder
from isometry.files import software, write
from isometry.measurement.comparison import RATIO_AT
from isometry.networks import find_inputs, placed

__all__ = ["compare", "measure", "prune"]

_SAMPLES = 64
_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


def measure(options: Namespace) -> None:
    """Print the report of a network, and write and draw it where that is wished."""
    device = _check(options)
    check_network(options.network, [options.weights, options.reference])
    data = read_data(options.data, options.network, options.reference or options.weights)
    model, inputs = _prepare(options, options.weights, data, device)
    reference = None if options.reference is None else _prepare(options, options.reference, data, device)[0].to(device)
    report = isometry.measure(
        model.to(device),
        inputs,
        reference=reference,
        method=options.method,
        layers=_read_layers(options.layers),
        rtol=options.rtol,
        seed=options.seed,
    )
    print(f"{'network':<18} {options.network}, {_describe(options.weights)}\n{_describe_data(options, data)}{report}")
    if report.layers is not None:
        shown = [column for column in _LAYER_COLUMNS if column in report.layers]
        print(f"\n{report.layers[shown].to_string(index=False, float_format='{:.4g}'.format)}")
    _write_json(options, {"report": report.to_dict()})
    if options.plot is not None:
        from isometry import plots

        figure, axes = _figure(1 if report.layers is None else 2)
        plots.spectrum({options.network: report}, axes[0])
        if report.layers is not None:
            plots.layers({options.network: report}, axes[1])
        _save(figure, options.plot)


_LAYER_COLUMNS = (
    "layer",
    "kind",
    "width",
    "mean_jsv",
    "interval_low",
    "interval_high",
    "std_jsv",
    "condition_number",
    "ratio",
)


def _read_layers(words: list[str] | None) -> bool | int | list[str]:
    """Return what --layers asks for: nothing, the blocks, those of a depth, or layers by name."""
    if not words:
        return words is not None
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else words


def compare(options: Namespace) -> None:
    """Print the table of several weights of one network, and write and draw it where that is wished."""
    named: dict[str, str] = {}
    for word in options.networks:
        name, equals, weights = word.partition("=")
        if not (name and equals and weights):
            raise ValueError(f"{word}: it takes NAME=WEIGHTS, e.g. dense=dense.safetensors l1=l1.safetensors")
        if name in named:
            raise ValueError(f"{word}: there are two networks named {name}; give every one a name of its own")
        named[name] = weights
    if len(named) < 2:
        raise ValueError(
            f"got {', '.join(named)} alone; it takes at least two, e.g. dense=dense.safetensors l1=l1.safetensors"
        )
    device = _check(options)
    check_network(options.network, list(named.values()))
    data = read_data(options.data, options.network, next(iter(named.values())))
    models: dict[str, nn.Module] = {}
    inputs: Tensor | None = None
    for name, weights in named.items():
        model, inputs = _prepare(options, weights, data, device)
        models[name] = model.to(device)
    layers = _read_layers(options.layers)
    table = isometry.compare(models, inputs, method=options.method, layers=layers, seed=options.seed)
    shown = [column for column in _SHOWN if column in table]
    drawn = ""
    if inputs is None:
        drawn = f"{'inputs':<18} 64 {find_inputs(next(iter(models.values())))}, as none were given\n"
    print(f"{'network':<18} {options.network}\n{_describe_data(options, data)}{drawn}")
    print(table[shown].to_string(index=False, float_format="{:.4g}".format))
    print("\n".join(f"{name:<18} {verdict}" for name, verdict in zip(table["network"], table["verdict"], strict=True)))
    ratios = table.set_index("network").filter(regex=f"^{RATIO_AT}")
    ratios.columns = ratios.columns.str.removeprefix(RATIO_AT)
    if len(ratios.columns):
        print(
            f"\nratio to {table['network'][0]} from each layer on\n{ratios.T.to_string(float_format='{:.4g}'.format)}"
        )
    _write_json(options, {"networks": json.loads(table.to_json(orient="records"))})
    if options.plot is not None:
        from isometry import plots

        figure, axes = _figure(1)
        plots.comparison(table, axes[0])
        _save(figure, options.plot)


_SHOWN = ("network", "mean_jsv", "interval_low", "interval_high", "ratio", "ratio_low", "ratio_high", "max_jsv",
          "condition_number_median", "isometry_gap")  # fmt: skip


def prune(options: Namespace) -> None:
    """Write a pruned network and print what was removed."""
    check_output("--out", options.out, suffixes=[".safetensors"])
    if (
        options.weights
        and Path(options.weights).exists()
        and Path(options.out).resolve() == Path(options.weights).resolve()
    ):
        raise ValueError(f"--out {options.out}: that is the file of --weights, which would be lost; name another one")
    device, pruner = find_device(options.device), find_pruner(options.pruner, options.set)
    check_network(options.network, [options.weights])
    if pruner.needs_data and options.data is None:
        raise ValueError(f"--pruner {options.pruner} trains, and needs --data, e.g. --data cifar10")
    data = read_data(options.data, options.network, options.weights)
    options.samples = 2
    model, inputs = _prepare(options, options.weights, data, device)
    pruned = isometry.prune(
        model.to(device), pruner, options.ratio, flops=options.flops, data=data, inputs=inputs, layers=options.layers, skip=options.skip,
        seed=options.seed,
    )  # fmt: skip
    isometry.save(pruned, options.out)
    print(f"{pruned}\nwrote {options.out}")


def _check(options: Namespace) -> torch.device:
    """Refuse what cannot be written, and a device that is not there."""
    check_output("--json", options.json)
    check_output("--plot", options.plot, suffixes=_SUFFIXES)
    if options.samples is not None and options.data is None and not options.input_shape:
        raise ValueError(
            f"got --samples {options.samples} without --data or --input-shape, of which they are taken; e.g. --samples "
            f"{options.samples} --input-shape 3 32 32"
        )
    if options.samples is None:
        options.samples = _SAMPLES if getattr(options, "rtol", None) is None else sys.maxsize
    return find_device(options.device)


def _prepare(
    options: Namespace, weights: str | None, data: Data | Folder | None, device: torch.device
) -> tuple[nn.Module, Tensor | None]:
    """Return a network with its weights, and the inputs to measure it at."""
    if data is not None and options.input_shape:
        raise ValueError("got --data and --input-shape; the data have a shape, so leave one of them out")
    model = build_network(options.network, weights, options, data)
    inputs = draw_inputs(options, data, device)
    model = load_weights(model, options.network, weights, inputs)
    return model, None if inputs is None else placed(inputs, model)


def _describe(weights: str | None) -> str:
    return "as initialized" if weights is None else f"weights {weights}"


def _describe_data(options: Namespace, data: Data | Folder | None) -> str:
    if data is None:
        return ""
    count, most = count_tests(data), "up to " if getattr(options, "rtol", None) is not None else ""
    return f"{'data':<18} {most}{min(options.samples, count)} of the {count} test inputs of {options.data}, drawn with seed {options.seed}\n"


def _write_json(options: Namespace, result: dict[str, Any]) -> None:
    """Write a result with what it is of."""
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "plot")}
        write(Path(options.json), json.dumps({"settings": settings, "software": software(), **result}, indent=1) + "\n")
        print(f"wrote {options.json}")


def _figure(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(6.4 * count, 4.2), layout="constrained", squeeze=False)
    return figure, axes[0]


def _save(figure: Any, path: str) -> None:
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")
