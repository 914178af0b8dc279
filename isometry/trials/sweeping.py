"""sweep: several pruners at several ratios on a network and data of the user's."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, signed
from isometry.files import check_writable
from isometry.networks import placed
from isometry.networks.preservation import evaluating
from isometry.pruners import Pruner
from isometry.repairs import REPAIRS
from isometry.training.objective import Loss, Metric
from isometry.training.recipe import Recipe
from isometry.trials.architecture import Given, read_architecture
from isometry.trials.connection import check_client
from isometry.trials.dataset import Own, read_data
from isometry.trials.manner import Manner
from isometry.trials.runner import run_tables
from isometry.trials.trial import Trial

__all__ = ["sweep"]

_CALL = "e.g. sweep(model, {'L1': isometry.L1()}, [0.5, 0.7], data, finetune=isometry.Recipe(lr=0.01, epochs=5))"
_VERBS = {"recover": "oracle", "orthogonalize": "orthp", "recalibrate": "recalibrate", "repair": "reconstruct"}
"""{public function: its name in `REPAIRS`}."""


class Method(NamedTuple):
    """One of the compared methods: its label, its pruner, and the name of its repair."""

    label: str
    pruner: Pruner
    repair: str | None


def sweep(
    network: nn.Module | Callable[[], nn.Module] | str,
    pruners: Mapping[str, Pruner],
    ratios: Sequence[float],
    data: Any,
    *,
    test: Any = None,
    pretrain: Recipe | str | None = None,
    finetune: Recipe | None = None,
    seeds: int | Sequence[int] = 3,
    layers: str | None = None,
    options: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    device: str | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    autocast: bool = False,
    progress: bool | None = None,
    keep: str | None = None,
    client: Any = None,
) -> pd.DataFrame:
    """Prune a network by several methods at several ratios, fine-tune it, and return one table of how that went.

        table = isometry.sweep(model, {"L1": isometry.L1(), "L1 + recalibrate": isometry.L1()}, [0.5, 0.7], data,
                               finetune=isometry.Recipe(lr=0.01, epochs=5), folder="runs")
        isometry.plots.sweep(table)                        # mean JSV just after pruning, against the ratio
        isometry.plots.sweep(table, y="accuracy")          # after fine-tuning
        isometry.plots.trajectory(table, y="accuracy")     # over fine-tuning

    Every (method, ratio, seed) is a `Trial`; see `isometry.trials.run` for what they share, and what a kill cannot undo. A method
    that fails has a row with its `error`; the others go on.

    Args:
        network: a network, trained or not, of which every trial gets a copy; a function without arguments that returns one,
            called for every seed, with which the generators of torch, numpy and Python are seeded; "package.module:function"; or
            a name that `networks.build` knows.
        pruners: {label: pruner}. A label that ends in " + " and a repair (recover, orthogonalize, recalibrate, repair, or their
            names in `isometry.repairs.REPAIRS`) repairs the pruned network by it: {"L1 + repair": isometry.L1()}.
        ratios: fractions of units removed, each in (0, 1).
        data: what is trained on: a `Data`, (inputs [N, ...], targets [N]), a DataLoader or a list of batches, a `Folder`, or a name
            that `data.load` knows, without a validation part. Edited tensors make other trials; of a loader its length, its kind
            and 64 samples are compared. Loaders begin every training in the same state.
        test: likewise, for accuracy and loss; None takes the test part of a `Data` or `Folder`, else the training data
            themselves, as the column `evaluated_on` says.
        pretrain: how the network is trained before pruning; None takes it as it is. Or the name of weights of the catalogue.
        finetune: how the pruned network is trained; None stops after pruning.
        seeds: how many, from 0, or which: of a function's initialization, of shuffling and of pruners that draw.
        layers: name pattern of the layers to prune; None means all that can be.
        options: arguments of the function, or of `networks.build`.
        folder: where trials keep their state, so that an interrupted call goes on where it was, and a longer one computes what
            is new; None forgets everything. What makes another trial: see `Trial`.
        jobs: processes, one thread each. More than 1 needs a network, pruners and data that can be pickled; what a notebook
            defines can be, unless it holds open files, locks, or generators.
        device: where networks live; None: where `network` is, else the CPU.
        loss: of evaluation, and of trainings whose recipe has none; any callable (outputs, targets) -> scalar. None means
            cross-entropy.
        metric: any callable (outputs, targets) -> number, for the column `metric`.
        autocast: whether pruners that train, and evaluation, run in bfloat16.
        progress: False silences the bars (of trials and, with one job, of their training steps); None shows them in terminals
            and notebooks.
        keep: "weights" keeps every fine-tuned network in the folder.
        client: a `distributed.Client`, whose workers execute the trials; see `isometry.trials.run`. What cannot be pickled is refused,
            as with several jobs.

    Returns:
        One row per (trial, phase, epoch), as `isometry.trials.run` returns it, with the columns `method` (the label), `error` and
        `evaluated_on`. The rows of the dense network stand once per seed, as the method "dense" at ratio 0.

    Raises:
        ValueError, TypeError: an argument that makes no sense, before anything is trained; a factory that returns no network.
    """
    with contextlib.ExitStack() as stack:
        with signed("sweep"):
            methods = [_read_method(label, pruner) for label, pruner in _checked_pruners(pruners)]
            _check_ratios(ratios)
            numbers = _read_seeds(seeds)
            _check_settings(finetune=finetune, pretrain=pretrain, jobs=jobs, keep=keep)
            check_client(client, None if jobs == 1 else jobs)
            runs = stack.enter_context(_folder(folder, keep))
            architecture, given = read_architecture(network), read_data(data, test)
            dataset = given if isinstance(given, str) else Own(given, runs if jobs > 1 else None)
            if isinstance(dataset, Own):
                stack.callback(dataset.release)
            trials = [
                Trial(
                    dataset, architecture, pretrain, finetune, method.pruner, float(ratio), layers, method.repair, seed,
                    dict(options or {}), autocast=autocast, loss=loss, metric=metric,
                )
                for seed in numbers for ratio in ratios for method in methods
            ]  # fmt: skip
            _check_accepted(trials[0])
            if jobs > 1 or client is not None:
                _check_sendable(trials[0], methods)
        if device is None:
            device = _device_of(network) if isinstance(architecture, Given) else "cpu"
            device = device if client is None else device.split(":")[0]  # workers number their devices themselves
        manner = Manner(runs, jobs, device, progress, keep == "weights", folder is None, client)
        tables = run_tables(trials, manner, "sweep")
    labels = [method.label for _ in numbers for _ in ratios for method in methods]
    held_out = isinstance(given, str) or given.test is not given.train
    return _joined(tables, labels).assign(evaluated_on="test part" if held_out else "training data")


def _joined(tables: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    """Return the rows of all trials with their methods, those of the dense network once per seed."""
    named = []
    for table, label in zip(tables, labels, strict=True):
        table = table if "error" in table else table.assign(error=None)
        table.insert(1, "method", label)
        dense = (table["phase"] == "dense") & table["error"].isna()
        table.loc[dense, "trial"] = table["network"] + "/" + table["dataset"] + f"/dense/s{table['seed'].iloc[0]}"
        table.loc[dense, ["method", "pruner", "repair"]] = ["dense", "dense", "none"]
        table.loc[dense, ["ratio", "lr", "epochs"]] = [0.0, math.nan, math.nan]
        named.append(table)
    whole = pd.concat([table.astype({"error": object}) for table in named], ignore_index=True)
    again = (whole["method"] == "dense") & whole.duplicated(["trial", "phase", "epoch"])
    return whole[~again].reset_index(drop=True)


def _checked_pruners(pruners: Any) -> list[tuple[str, Pruner]]:
    if not isinstance(pruners, Mapping) or not pruners:
        arrived = "no pruners" if isinstance(pruners, Mapping) else f"pruners of type {type(pruners).__name__}"
        raise InvalidTypeError(f"got {arrived}; it takes {{label: pruner}}, {_CALL}.")
    for label, pruner in pruners.items():
        if not isinstance(label, str) or not label.strip() or label == "dense":
            raise InvalidValueError(f"got the label {label!r}; it takes a text other than 'dense', {_CALL}.")
        if isinstance(pruner, type) and issubclass(pruner, Pruner):
            raise InvalidTypeError(
                f"got the class {pruner.__name__} as {label!r}; it takes an instance, e.g. {{{label!r}: isometry.{pruner.__name__}()}}."
            )
        if not isinstance(pruner, Pruner):
            raise InvalidTypeError(f"got {type(pruner).__name__} as {label!r}; it takes a pruner, {_CALL}.")
    return list(pruners.items())


def _read_method(label: str, pruner: Pruner) -> Method:
    """Return a method, with the repair that its label names after a plus sign."""
    _, plus, name = label.rpartition(" + ")
    if not plus:
        return Method(label, pruner, None)
    repair = _VERBS.get(name.strip().lower(), name.strip().lower())
    if repair not in REPAIRS:
        raise InvalidValueError(
            f"got the label {label!r}, whose end names no repair; it takes {', '.join(map(repr, dict.fromkeys([*_VERBS, *REPAIRS])))} after the "
            f"plus sign, e.g. {{'{label.split(' + ')[0]} + repair': isometry.L1()}}, or a label without one."
        )
    return Method(label, pruner, repair)


def _check_ratios(ratios: Any) -> None:
    listed = (
        list(ratios) if isinstance(ratios, Sequence | Tensor | np.ndarray) and not isinstance(ratios, str) else None
    )
    if not listed or not all(_is_number(ratio) and 0 < ratio < 1 for ratio in listed):
        raise InvalidValueError(f"got ratios={ratios!r}; it takes fractions of units removed in (0, 1), {_CALL}.")
    if len({float(ratio) for ratio in listed}) < len(listed):
        raise InvalidValueError(f"got ratios={ratios!r}, of which some are equal; it takes each once, {_CALL}.")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _read_seeds(seeds: Any) -> list[int]:
    with contextlib.suppress(TypeError):
        counted = isinstance(seeds, Integral) and not isinstance(seeds, bool)
        listed = [operator.index(seed) for seed in (range(operator.index(seeds)) if counted else seeds)]
        if listed and len(set(listed)) == len(listed) and min(listed) >= 0:
            return listed
    raise InvalidValueError(
        f"got seeds={seeds!r}; it takes how many, at least 1, or different seeds, e.g. seeds=3 or seeds=[0, 7]."
    )


def _check_settings(*, finetune: Any, pretrain: Any, jobs: Any, keep: Any) -> None:
    for name, value, kinds in (("finetune", finetune, Recipe), ("pretrain", pretrain, Recipe | str)):
        if value is not None and not isinstance(value, kinds):
            raise InvalidTypeError(f"got {name}={value!r}; it takes a Recipe or None, {_CALL}.")
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InvalidValueError(f"got jobs={jobs!r}; it takes a number of processes of at least 1, e.g. jobs=2.")
    if keep not in (None, "weights"):
        raise InvalidValueError(f"got keep={keep!r}; it takes None or 'weights', e.g. keep='weights'.")


def _device_of(network: Any) -> str:
    return str(next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu")))


def _check_accepted(trial: Trial) -> None:
    """Raise an error unless the network takes the data."""
    data, x = trial.load_data(), trial.example_inputs(2)
    if not isinstance(x, Tensor):
        raise InvalidTypeError(
            f"got data whose inputs are of type {type(x).__name__}; it takes one tensor per batch, with respect to which networks are "
            f"measured, {_CALL}."
        )
    name = trial.pretrain if isinstance(trial.pretrain, str) else None
    model = trial.architecture.build(data.classes, trial.seed, trial.options, weights=name)
    x = placed(x, model)
    try:
        with evaluating(model), torch.no_grad():
            outputs = model(x)
    except Exception as error:  # whatever the user's network raises
        raise InvalidValueError(
            f"got data whose inputs have the shape {tuple(x.shape[1:])} and the type {str(x.dtype).removeprefix('torch.')}, which the "
            f"network refuses ({type(error).__name__}: {error}); it takes those that it was made for, {_CALL}."
        ) from error
    if not isinstance(outputs, Tensor) or len(outputs) != len(x):
        kind = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InvalidTypeError(
            f"got a network that returned {kind} for {len(x)} inputs; it takes one that returns a tensor with an entry for each, e.g. "
            "sweep(lambda: Wrapper(model), ...) with a Wrapper that returns the logits."
        )


def _check_sendable(trial: Trial, methods: Sequence[Method]) -> None:
    """Raise an error that names what cannot be sent to a worker process."""
    from joblib.externals.loky.backend.reduction import dumps

    parts = [("the network", trial.architecture), ("the data", trial.dataset)]
    for name, part in parts + [(f"the pruner of {method.label!r}", method.pruner) for method in methods]:
        try:
            dumps(part)
        except Exception as error:  # whatever the user's objects raise
            raise InvalidTypeError(
                f"got {name}, which cannot be sent to other processes ({type(error).__name__}: {error}); other processes need "
                "a network, pruners and data that can be pickled, without open files, locks or generators. Define it in a module, "
                "or pass jobs=1."
            ) from error


@contextlib.contextmanager
def _folder(folder: str | os.PathLike[str] | None, keep: str | None) -> Iterator[Path]:
    """Give the folder of all trials; a temporary one where none is named."""
    if folder is not None:
        check_writable(Path(folder))
        yield Path(folder)
        return
    if keep is not None:
        raise InvalidValueError(f"got keep={keep!r} without a folder to keep them in; e.g. folder='runs'.")
    with tempfile.TemporaryDirectory(prefix="isometry-") as temporary:
        yield Path(temporary)
