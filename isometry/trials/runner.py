"""Trial: an experiment described by data; run: many of them, in parallel, resumable, to one tidy table."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from isometry import data, networks
from isometry.files import check_writable, software, write
from isometry.measurement import measure
from isometry.networks.bounded import BOUNDED
from isometry.pruners import DivergedError, Pruner, RecedingBN, prune
from isometry.pruners.sparsifying import Sparsifying
from isometry.repairs import orthogonalize, recalibrate, recover
from isometry.surgery import Loaded, Plan, load, save
from isometry.training import train
from isometry.training.evaluation import evaluate
from isometry.training.recipe import Recipe

__all__ = ["Trial", "provenance", "run"]

_MEASURED = 64
_REPAIRS = ("oracle", "scratch", "orthp", "recalibrate")


@dataclass(frozen=True)
class Trial:
    """One experiment: train dense, prune, repair or not, fine-tune; everything that decides its outcome.

    Attributes:
        dataset: a name that `data.load` knows.
        network: a name that `networks.build` knows.
        pretrain: how the dense network is trained; or the name of weights that `networks.build` knows; None leaves it
            as it is initialized, for pruners that train from scratch.
        finetune: how the pruned network is trained; None stops after pruning.
        pruner: how units leave; None trains the dense network only. A network with ordinary BatchNorm is converted for
            RecedingBN.
        ratio: the fraction of units removed from every layer that may lose some.
        layers: name pattern of those layers; None means all that can.
        repair: None, "oracle" (`recover`), "orthp" (`orthogonalize` with a gain of sqrt(2)), "recalibrate", or "scratch"
            (the pruned MLP with fresh weights, the control that owes nothing to the dense network).
        seed: of initialization, shuffling and the pruner.
        options: further arguments of `networks.build`.
        validation: how many training images are held out.
        autocast: whether pruners that train, and evaluation, run in bfloat16; fine-tuning has its own in its recipe.
    """

    dataset: str
    network: str
    pretrain: Recipe | str | None
    finetune: Recipe | None = None
    pruner: Pruner | None = None
    ratio: float = 0.0
    layers: str | None = None
    repair: str | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    validation: int = 0
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.repair not in (None, *_REPAIRS):
            known = ", ".join(map(repr, _REPAIRS))
            raise ValueError(f"Trial() got repair={self.repair!r}; it knows None, {known}, e.g. repair='recalibrate'.")
        if self.repair == "scratch" and not self.network.startswith("mlp"):
            raise ValueError(
                f"Trial() got repair='scratch' for {self.network}; fresh weights of the pruned widths are built for MLPs only. "
                "Train another control, e.g. repair='recalibrate', or a narrower network by options=."
            )
        if self.pruner is None and (self.finetune or self.repair):
            raise ValueError(
                "Trial() got a repair or a fine-tuning with nothing before it: pass pruner=, e.g. pruner=isometry.L1()."
            )

    @property
    def pruner_name(self) -> str:
        """The pruner's name in lower case, "dense" without one."""
        return "dense" if self.pruner is None else type(self.pruner).__name__.lower()

    @property
    def key(self) -> str:
        """A readable name, e.g. mlp-7-linear/mnist/l1-0.8/oracle/lr0.001x90/s3."""
        parts = [self.network, self.dataset]
        if self.pruner is not None:
            parts.append(f"{self.pruner_name}-{self.ratio:g}")
        if self.finetune is not None or self.repair is not None:
            parts += [self.repair or "plain", _short(self.finetune)]
        return "/".join([*parts, f"s{self.seed}"])


def run(
    trials: Sequence[Trial],
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run trials, each part of them once, and return all their rows.

    What trials share (the dense network, the pruned network before repair) is computed once. Every part writes its
    state after each epoch and its result when done: a run that was killed goes on where it was, and finished parts
    are read back. A trial that diverges is recorded as such and does not stop the others.

    Args:
        trials: what to run.
        folder: where parts are kept, a subfolder each, named by what they are and a digest of every setting.
        jobs: processes, one thread each; None takes the number of cores, 1 on a GPU.
        device: where networks live, "cpu" or "cuda".
        progress: False silences the progress bar, None shows it in terminals and notebooks.

    Returns:
        A row a (trial, phase, epoch). Phases: "dense", "sparse" (trained with a regularizer on its scales, before
        removal), "pruned" and "repaired" (epoch 0), "finetune" (from epoch 1). Columns: what the trial is, `accuracy` and `loss` on the test part, JSV statistics, `diverged`,
        `parameters`.

    Raises:
        ValueError: no trials.
        OSError: the folder cannot be written.
    """
    if not trials:
        raise ValueError(
            "run() got no trials; it takes at least one, e.g. run([Trial('digits', 'mlp-7-linear', Recipe(0.01, 9))], 'runs')."
        )
    folder = Path(folder)
    check_writable(folder)
    waves: list[dict[str, _Part]] = [{}, {}, {}, {}]
    chains = []
    for trial in trials:
        chain = _parts(trial)
        chains.append(chain)
        for part in chain:
            waves[part.level].setdefault(part.name, part)
    jobs = jobs or (os.cpu_count() if device == "cpu" else 1) or 1
    workers = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    total = sum(map(len, waves))
    with tqdm(total=total, unit="part", desc="trials", disable=None if progress is None else not progress) as bar:
        for wave in waves:
            slowest_first = sorted(wave.values(), key=lambda part: -part.weight)
            for name in workers(joblib.delayed(_execute)(part, folder, device) for part in slowest_first):
                bar.update()
                bar.set_postfix_str(name)
    tables = []
    names = Counter(chain[-1].trial.key for chain in {chain[-1].name: chain for chain in chains}.values())
    for trial, chain in zip(trials, chains, strict=True):
        rows = pd.concat([pd.read_csv(folder / part.name / "rows.csv") for part in chain], ignore_index=True)
        facts: dict[str, Any] = {
            # Trials that differ in a setting which the readable name leaves out are told apart by its digest.
            "trial": trial.key if names[trial.key] == 1 else f"{trial.key}-{chain[-1].name[-8:]}",
            "network": trial.network,
            "dataset": trial.dataset,
            "pruner": trial.pruner_name,
            "ratio": trial.ratio,
            "repair": trial.repair or "none",
            "lr": trial.finetune.lr if trial.finetune is not None else math.nan,
            "epochs": trial.finetune.epochs if trial.finetune is not None else math.nan,
            "seed": trial.seed,
        }
        for position, (name, value) in enumerate(facts.items()):
            rows.insert(position, name, value)
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Part:
    """A piece of work that trials may share: level 0 trains dense, 1 sparsifies, 2 prunes, 3 repairs and fine-tunes."""

    trial: Trial
    level: int
    parent: _Part | None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides this part's outcome, as JSON types."""
        t = self.trial
        settings: dict[str, Any] = {
            "network": t.network,
            "dataset": t.dataset,
            "options": t.options,
            "validation": t.validation,
            "pretrain": _told(t.pretrain),
            "seed": t.seed,
        }
        if self.level >= 1:
            settings |= {"pruner": {"name": t.pruner_name, **_told(t.pruner)}, "autocast": t.autocast}
        if self.level >= 2:
            settings |= {"ratio": t.ratio, "layers": t.layers}
        if self.level >= 3:
            settings |= {"repair": t.repair, "finetune": _told(t.finetune)}
        return json.loads(json.dumps(settings))

    @property
    def name(self) -> str:
        """The part's folder: readable, and a digest of its settings."""
        t = self.trial
        parts = [t.network, t.dataset]
        parts += [("dense", f"{t.pruner_name}-sparse", f"{t.pruner_name}-{t.ratio:g}")[min(self.level, 2)]]
        parts += [t.repair or "plain", _short(t.finetune)] if self.level == 3 else []
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return "/".join([*parts, f"s{t.seed}-{digest}"])

    @property
    def weight(self) -> float:
        """A rough measure of duration, to start long parts first."""
        return float(self.trial.pruner.trains) if self.level == 2 and self.trial.pruner else self.trial.ratio * -1.0


def _short(recipe: Recipe | None) -> str:
    return "untrained" if recipe is None else f"lr{recipe.lr:g}x{recipe.epochs}"


def _told(value: Any) -> Any:
    """Return a dataclass as what JSON can hold; regularizers and schedules by their names and numbers."""
    if value is None or isinstance(value, str):
        return value
    given = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    return {name: asdict(v) | {"name": type(v).__name__} if is_dataclass(v) else v for name, v in given.items()}  # type: ignore[arg-type]


def _parts(trial: Trial) -> list[_Part]:
    chain = [_Part(trial, 0, None)]
    if trial.pruner is None:
        return chain
    if isinstance(trial.pruner, Sparsifying) and trial.pruner.epochs:
        chain.append(_Part(trial, 1, chain[-1]))
    chain.append(_Part(trial, 2, chain[-1]))
    return [*chain, _Part(trial, 3, chain[-1])] if trial.finetune is not None or trial.repair is not None else chain


@functools.lru_cache(maxsize=1)
def _loaded(dataset: str, validation: int, network: str, weights: str | None) -> data.Data:
    known = networks.PRETRAINED.get((network, weights or ""))
    return data.load(dataset, validation=validation, normalization=known.normalization if known else None)


def _load(trial: Trial) -> data.Data:
    weights = trial.pretrain if isinstance(trial.pretrain, str) else None
    return _loaded(trial.dataset, trial.validation, trial.network, weights)


def _execute(part: _Part, folder: Path, device: str) -> str:
    """Do one part unless it is done; return its name."""
    torch.set_num_threads(1)
    place = folder / part.name
    done = place / "done.json"
    if done.exists():
        return part.name
    place.mkdir(parents=True, exist_ok=True)
    write(place / "settings.json", json.dumps(part.settings, indent=1))
    start = time.perf_counter()
    work = (_train_dense, _sparsify, _prune, _finetune)[part.level]
    rows = work(part, folder, place, device)
    write(place / "rows.csv", pd.DataFrame(rows).to_csv(index=False))
    for file in (*place.glob("training.safetensors*"), *place.glob("rows.jsonl")):
        file.unlink()
    write(done, json.dumps({"seconds": round(time.perf_counter() - start, 1), **software()}))
    return part.name


def _network(trial: Trial, classes: int, *, level: int = 0) -> nn.Module:
    """Return the architecture that a part of `level` leaves behind, before surgery."""
    model = networks.build(trial.network, classes, seed=trial.seed, **trial.options)
    bounded = any(isinstance(module, BOUNDED) for module in model.modules())
    return networks.convert(model) if level and isinstance(trial.pruner, RecedingBN) and not bounded else model


def _parent(part: _Part, folder: Path, classes: int, device: str) -> nn.Module | None:
    """Return the network that the part before left, None where that diverged."""
    assert part.parent is not None
    place = folder / part.parent.name
    if bool(pd.read_csv(place / "rows.csv")["diverged"].any()):
        return None
    model = load(place / "model.safetensors", _network(part.trial, classes, level=part.parent.level)).model
    if part.parent.level == 0 and isinstance(part.trial.pruner, RecedingBN):
        bounded = any(isinstance(module, BOUNDED) for module in model.modules())
        model = model if bounded else networks.convert(model)
    return model.to(device)


def _train_dense(part: _Part, folder: Path, place: Path, device: str) -> list[dict[str, Any]]:
    trial = part.trial
    dataset = _load(trial)
    diverged, epochs = False, 0
    if isinstance(trial.pretrain, str):
        model = (
            networks.build(trial.network, dataset.classes, weights=trial.pretrain, **trial.options).to(device).eval()
        )
    else:
        model = _network(trial, dataset.classes).to(device)
        if trial.pretrain is not None:
            epochs = trial.pretrain.epochs
            diverged = _trained(model, dataset, trial.pretrain, trial.seed, place)
    save(Loaded(model, Plan({}, {})), place / "model.safetensors")
    return [_row(trial, model, dataset, "dense", epochs, diverged)]


def _trained(model: nn.Module, dataset: data.Data, recipe: Recipe, seed: int, place: Path) -> bool:
    """Train in place, resumably; return whether training diverged."""
    last = None
    for epoch in train(model, dataset, **recipe.arguments(), seed=seed, checkpoint=place / "training.safetensors"):
        last = epoch
    return last is not None and last.diverged


def _sparsify(part: _Part, folder: Path, place: Path, device: str) -> list[dict[str, Any]]:
    trial = part.trial
    assert isinstance(trial.pruner, Sparsifying)
    dataset = _load(trial)
    if (model := _parent(part, folder, dataset.classes, device)) is None:
        return [{"phase": "sparse", "epoch": 0, "diverged": True}]
    recipe = replace(trial.pruner.recipe(), autocast=trial.autocast)
    diverged = _trained(model, dataset, recipe, trial.seed, place)
    save(Loaded(model, Plan({}, {})), place / "model.safetensors")
    return [_row(trial, model, dataset, "sparse", 0, diverged)]


def _prune(part: _Part, folder: Path, place: Path, device: str) -> list[dict[str, Any]]:
    trial = part.trial
    assert trial.pruner is not None
    dataset = _load(trial)
    if (model := _parent(part, folder, dataset.classes, device)) is None:
        return [{"phase": "pruned", "epoch": 0, "diverged": True}]
    # What a sparsifying pruner does before the choice is a part of its own, shared by all ratios.
    sparsifying = isinstance(trial.pruner, Sparsifying)
    pruner: Pruner = replace(trial.pruner, epochs=0) if sparsifying else trial.pruner  # type: ignore[call-arg]
    try:
        result = prune(
            model,
            pruner,
            trial.ratio,
            data=dataset,
            layers=trial.layers,
            autocast=trial.autocast,
            seed=trial.seed,
            progress=False,
            checkpoint=place / "training.safetensors",
        )
    except DivergedError:
        return [{"phase": "pruned", "epoch": 0, "diverged": True}]
    save(result, place / "model.safetensors")
    write(place / "history.csv", result.history.to_csv(index=False))
    row = _row(trial, result.model, dataset, "pruned", 0, False)
    return [row | {"realised_ratio": result.ratio, "flops": result.after.flops}]


def _finetune(part: _Part, folder: Path, place: Path, device: str) -> list[dict[str, Any]]:
    trial = part.trial
    dataset = _load(trial)
    if (model := _parent(part, folder, dataset.classes, device)) is None:
        return [{"phase": "finetune", "epoch": 1, "diverged": True}]
    rows = []
    if trial.repair is not None:
        model = _repaired(trial, model, dataset)
        rows = [_row(trial, model, dataset, "repaired", 0, False)]
    if trial.finetune is None:
        return rows
    log = place / "rows.jsonl"
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    recipe = trial.finetune
    checkpoint = place / "training.safetensors"
    for epoch in train(model, dataset, **recipe.arguments(), seed=trial.seed + 1, checkpoint=checkpoint):
        kept = [row for row in kept if row["epoch"] < epoch.number]
        kept.append(_row(trial, model, dataset, "finetune", epoch.number, epoch.diverged) | {"steps": epoch.steps})
        write(log, "".join(json.dumps(row) + "\n" for row in kept))
    return rows + kept


def _repaired(trial: Trial, model: nn.Module, dataset: data.Data) -> nn.Module:
    if trial.repair == "oracle":
        return recover(model)
    if trial.repair == "orthp":
        return orthogonalize(model, gain=math.sqrt(2))
    if trial.repair == "recalibrate":
        return recalibrate(model, dataset, seed=trial.seed)
    device = next(model.parameters()).device
    return _scratch(trial, model, dataset).to(device)


def _scratch(trial: Trial, pruned: nn.Module, dataset: data.Data) -> nn.Module:
    """Return a freshly initialized network of the pruned one's widths."""
    widths = [m.out_features for m in pruned.modules() if isinstance(m, nn.Linear)][:-1]
    return networks.build(
        trial.network, dataset.classes, seed=trial.seed + 1000, **{**trial.options, "widths": tuple(widths)}
    )


def _row(trial: Trial, model: nn.Module, dataset: data.Data, phase: str, epoch: int, diverged: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"phase": phase, "epoch": epoch, "diverged": diverged}
    if diverged:
        return row
    result = evaluate(model, dataset.test, autocast=trial.autocast)
    if not math.isfinite(result.loss):  # weights still finite, but too large
        return row | {"diverged": True}
    report = measure(model, dataset.train.inputs[:_MEASURED], progress=False)
    names = ("mean_jsv", "sem", "std_jsv", "max_jsv", "min_jsv", "condition_number", "isometry_gap")
    row |= {"accuracy": result.accuracy, "loss": result.loss, **{name: getattr(report, name) for name in names}}
    return row | {"parameters": sum(p.numel() for p in model.parameters())}


def provenance(trials: Sequence[Trial], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return where the numbers of `run` came from: commits, versions, seeds, seconds of computing, settings."""
    parts = {part.name: part for trial in trials for part in _parts(trial)}
    records = [json.loads((Path(folder) / name / "done.json").read_text()) for name in parts]
    seconds = sum(record.pop("seconds") for record in records)
    last = {part.name: part for trial in trials for part in _parts(trial)[-1:]}.values()
    return {
        "software": [dict(items) for items in sorted({tuple(record.items()) for record in records})],
        "seeds": sorted({trial.seed for trial in trials}),
        "trials": len(trials),
        "computing_seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, {platform.system()}",
        "settings": {part.name: part.settings for part in last},
    }
