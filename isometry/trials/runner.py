"""run: many trials, in parallel, resumable, to one tidy table."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from tqdm.auto import tqdm

from isometry.files import check_writable, software, write
from isometry.trials.stage import Stage
from isometry.trials.stages import plan_stages, remove_checkpoints
from isometry.trials.trial import Trial

__all__ = ["run"]


def run(
    trials: Sequence[Trial],
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run trials, each of their stages once, and return all rows.

    Stages that trials share (the dense network, the pruned network before repair) are computed once. Every stage writes
    its state after each epoch and its result when done: an interrupted run continues where it stopped, and finished
    stages are read from disk. A trial that diverges is recorded as such and does not stop the others.

    Args:
        trials: what to run.
        folder: where stages are kept, one subfolder each, named readably and with a digest of every setting.
        jobs: number of processes, one thread each; None means the number of cores, 1 on a GPU.
        device: where networks live, "cpu" or "cuda".
        progress: False silences the progress bar, None shows it in terminals and notebooks.

    Returns:
        One row per (trial, phase, epoch). Phases: "dense", "sparse" (trained with a regularizer on its scales, before
        removal), "pruned" and "repaired" (epoch 0), "finetune" (from epoch 1). Columns: the trial's settings, `accuracy`
        and `loss` on the test part, JSV statistics over 64 training images, `diverged`, `parameters`.

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
    chains = [plan_stages(trial) for trial in trials]
    stages = {stage.folder: stage for chain in chains for stage in chain}
    jobs = jobs or (os.cpu_count() if device == "cpu" else 1) or 1
    workers = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    with tqdm(
        total=len(stages), unit="stage", desc="trials", disable=None if progress is None else not progress
    ) as bar:
        for ready in _generations(stages):
            slowest_first = sorted(ready, key=lambda stage: -stage.duration)
            for name in workers(joblib.delayed(_execute)(stage, folder, device) for stage in slowest_first):
                bar.update()
                bar.set_postfix_str(name)
    names = Counter(trial.key for trial in {chain[-1].folder: chain[-1].trial for chain in chains}.values())
    tables = [_table(chain, folder, unique=names[chain[-1].trial.key] == 1) for chain in chains]
    return pd.concat(tables, ignore_index=True)


def _generations(stages: dict[str, Stage]) -> Iterator[list[Stage]]:
    """Yield the stages in groups: every group can start when those before it are done."""
    waiting = dict(stages)
    while waiting:
        ready = [stage for stage in waiting.values() if stage.parent is None or stage.parent.folder not in waiting]
        yield ready
        for stage in ready:
            del waiting[stage.folder]


def _execute(stage: Stage, runs: Path, device: str) -> str:
    """Execute one stage unless it is done; return its folder's name."""
    torch.set_num_threads(1)
    folder = runs / stage.folder
    done = folder / "done.json"
    if done.exists():
        return stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "settings.json", json.dumps(stage.settings, indent=1))
    start = time.perf_counter()
    rows = stage.execute(runs, device)
    write(folder / "rows.csv", pd.DataFrame(rows).to_csv(index=False))
    remove_checkpoints(folder)
    write(done, json.dumps({"seconds": round(time.perf_counter() - start, 1), **software()}))
    return stage.folder


def _table(chain: list[Stage], runs: Path, *, unique: bool) -> pd.DataFrame:
    """Return the rows of one trial, its settings first.

    Args:
        chain: the stages of the trial.
        runs: the folder of all stages.
        unique: whether no other trial has its key; the digest of its settings is added where one has.
    """
    rows = pd.concat([pd.read_csv(runs / stage.folder / "rows.csv") for stage in chain], ignore_index=True)
    trial = chain[-1].trial
    columns: dict[str, Any] = {
        "trial": trial.key if unique else f"{trial.key}-{chain[-1].folder[-8:]}",
        "network": trial.network,
        "dataset": trial.dataset,
        "pruner": trial.pruner_name,
        "ratio": trial.ratio,
        "repair": trial.repair or "none",
        "lr": trial.finetune.lr if trial.finetune is not None else math.nan,
        "epochs": trial.finetune.epochs if trial.finetune is not None else math.nan,
        "seed": trial.seed,
    }
    for position, (name, value) in enumerate(columns.items()):
        rows.insert(position, name, value)
    return rows
