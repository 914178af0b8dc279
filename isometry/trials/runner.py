"""run: many trials, in parallel, resumable, to one tidy table."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm.auto import tqdm

from isometry.errors import interrupt_explained, signed
from isometry.files import check_writable, read_table
from isometry.trials.cluster import execute_on_workers
from isometry.trials.connection import check_client, check_workers
from isometry.trials.execution import Job, Outcome, execute, record_failure, was_started
from isometry.trials.manner import Manner
from isometry.trials.record import find, warn_of_damage, warn_of_versions
from isometry.trials.resumption import remove_checkpoints
from isometry.trials.stage import ROWS_FILE, Stage
from isometry.trials.stages import plan_stages
from isometry.trials.trial import Trial

__all__ = ["run", "run_tables"]

_START_ATTEMPTS = 3  # how often workers may die before they start anything


def run(
    trials: Sequence[Trial],
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    keep: str | None = None,
    client: Any = None,
) -> pd.DataFrame:
    """Run trials, each of their stages once, and return all rows.

    Stages that trials share (the dense network, the pruned network before repair) are computed once. Every stage writes
    its state after each epoch and its result when done: an interrupted run continues where it stopped, and finished
    stages are read from disk, which may be read-only then. Files that do not fit their digests are computed again, with a
    warning. Two runs may share a folder: each waits for the stages that the other computes.

    A trial that diverges or fails is recorded as such and does not stop the others. One that fails has a row with its
    phase and the `error` instead of the rows that are missing; the traceback is in error.txt in its stage's folder, a
    warning at the end names both, and the next call tries again. A stage whose worker process was killed is run once more.

    Args:
        trials: what to run.
        folder: where stages are kept, one subfolder each, named readably and with a digest of every setting.
        jobs: number of processes, one thread each; None means the number of cores, 1 on a GPU.
        device: where networks live, "cpu" or "cuda".
        progress: False silences the progress bar, None shows it in terminals and notebooks.
        keep: "weights" also keeps the fine-tuned network of every trial, model.safetensors in the folder of its last stage,
            for `isometry.load`; None keeps no more than later stages need.
        client: a `distributed.Client`, whose workers then execute the stages, each on its own device and one at a time. They need
            isometry, the data sets that are named and modules of your own (to be started again when you edit these), but no file
            system in common: only this process writes to `folder`. A stage whose worker is lost starts again on another one. Where this process
            ends early, workers still finish the stages under way, for nobody; `client.restart()` ends these.

    Returns:
        One row per (trial, phase, epoch). Phases: "dense", "sparse" (trained with a regularizer on its scales, before
        removal), "pruned" and "repaired" (epoch 0), "finetune" (from epoch 1). Columns: the trial's settings, `accuracy`
        and `loss` on the test part, JSV statistics over 64 training images, `diverged`, `parameters`; `error` where trials
        failed.

    Raises:
        ValueError: no trials, another `keep`, jobs and a client, or workers that cannot import isometry.
        TypeError: a client that is none.
        OSError: the folder cannot be written. ConnectionError: the scheduler was lost; what was finished is kept.
    """
    if not trials:
        raise ValueError(
            "run() got no trials; it takes at least one, e.g. run([Trial('digits', 'mlp-7-linear', Recipe(0.01, 9))], 'runs')."
        )
    if keep not in (None, "weights"):
        raise ValueError(
            f"run() got keep={keep!r}; it takes None or 'weights', e.g. run(trials, 'runs', keep='weights')."
        )
    with signed("run"):
        check_client(client, jobs)
    how = Manner(Path(folder), jobs, device, progress, keep == "weights", client=client)
    return pd.concat(run_tables(trials, how, "run"), ignore_index=True)


def run_tables(trials: Sequence[Trial], manner: Manner, verb: str) -> list[pd.DataFrame]:
    """Run trials, each of their stages once, and return the rows of every trial: none of those that time did not suffice for.

    Args:
        trials: what to run.
        manner: how.
        verb: the public function that the user called, for warnings.
    """
    folder, device, weights = manner.folder, manner.device, manner.weights
    with signed(verb):  # what stages raise is signed by the verb that raises it
        chains = [plan_stages(trial) for trial in trials]
        stages = {stage.folder: stage for chain in chains for stage in chain}
    found = {name: find(stage, folder, weights=weights) for name, stage in stages.items()}
    waiting = {name: stage for name, stage in stages.items() if found[name].record is None}
    warn_of_damage((finding.damage for finding in found.values() if finding.damage is not None), verb)
    records = [finding.record for finding in found.values() if finding.record is not None]
    warn_of_versions(records, folder, verb, computing=bool(waiting))
    for name in stages.keys() - waiting.keys():
        with contextlib.suppress(OSError):  # left over where a run was killed just after it had finished the stage
            remove_checkpoints(folder / name)
    if waiting:
        check_writable(folder)
    if waiting and manner.client is not None:
        with signed(verb):
            check_workers(manner.client, verb)
    jobs = manner.jobs or (os.cpu_count() if device == "cpu" else 1) or 1
    # bars of several processes would overwrite each other
    shown = manner.progress if jobs == 1 and manner.client is None else False
    ranks = _rank_stages(chains, manner.ranks)
    common = (folder, device, weights, os.getpid(), shown, manner.capture, manner.deadline)
    work = {name: Job(stage, *common, ranks[name]) for name, stage in waiting.items()}
    errors: dict[str, str] = {}
    postponed: set[str] = set()
    if manner.client is None:
        outcomes = _execute_all(work, jobs, errors, postponed)
    else:
        outcomes = execute_on_workers(manner.client, work, errors)
    kept = (
        "nothing is kept without folder='runs'"
        if manner.temporary
        else f"{folder} keeps what is finished: call it again to go on"
    )
    with interrupt_explained(f"{verb}() was interrupted; {kept}."):
        _show_stages(outcomes, manner.progress, done=len(records), number=len(stages))
    if manner.temporary:
        errors = {name: re.sub(r" \(see [^()]*\)$", "", text) for name, text in errors.items()}
    names = Counter(trial.key for trial in {chain[-1].folder: chain[-1].trial for chain in chains}.values())
    tables = [
        pd.DataFrame()
        if any(stage.folder in postponed for stage in chain)
        else _table(chain, folder, errors, unique=names[chain[-1].trial.key] == 1)
        for chain in chains
    ]
    _warn_of_failures(trials, chains, errors, verb)
    return tables


def _rank_stages(chains: Sequence[list[Stage]], ranks: Sequence[int] | None) -> dict[str, int]:
    """Return the rank of every stage, the lowest of the trials that it belongs to."""
    found: dict[str, int] = {}
    for chain, rank in zip(chains, ranks or [0] * len(chains), strict=True):
        for stage in chain:
            found[stage.folder] = min(rank, found.get(stage.folder, rank))
    return found


def _show_stages(outcomes: Generator[Outcome, None, None], progress: bool | None, *, done: int, number: int) -> None:
    """Show a progress bar while stages are executed, and their warnings."""
    hidden = None if progress is None else not progress
    bar = tqdm(total=number, initial=done, unit="stage", desc="trials", disable=hidden)
    with contextlib.closing(outcomes), bar:
        for outcome in outcomes:
            bar.update(not outcome.postponed)
            bar.set_postfix_str(outcome.folder)
            for text, category in outcome.notes:
                warnings.warn(text, category, stacklevel=4)


def _warn_of_failures(
    trials: Sequence[Trial], chains: Sequence[list[Stage]], errors: Mapping[str, str], verb: str
) -> None:
    failed = [trial for trial, chain in zip(trials, chains, strict=True) if any(s.folder in errors for s in chain)]
    if failed:
        texts = list(dict.fromkeys(errors.values()))
        warnings.warn(
            f"{verb}() finished {len(trials) - len(failed)} of {len(trials)} trials. Failed: {'; '.join(texts[:5])}"
            f"{f' and {len(texts) - 5} more' if len(texts) > 5 else ''}. Call it again to try them again.",
            stacklevel=4,
        )


def _execute_all(
    work: Mapping[str, Job], jobs: int, errors: dict[str, str], postponed: set[str]
) -> Generator[Outcome, None, None]:
    """Yield the outcomes of all stages as they end.

    Those that failed, or whose parent did, are put into `errors`, and those that time did not suffice for into `postponed`.
    """
    for ready in _generations(work):
        possible = []
        for job in ready:
            folder, parent = job.stage.folder, job.stage.parent
            if parent is not None and parent.folder in errors:
                errors[folder] = errors[parent.folder]
                yield Outcome(folder)
            elif parent is not None and parent.folder in postponed:
                postponed.add(folder)
            else:
                possible.append(job)
        for outcome in _execute_parallel(sorted(possible, key=lambda job: -job.stage.duration), jobs):
            if outcome.error is not None:
                errors[outcome.folder] = outcome.error
            if outcome.postponed:
                postponed.add(outcome.folder)
            yield outcome


def _execute_parallel(work: Sequence[Job], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of stages that need not wait for each other.

    Where a worker was killed, the stages under way run once more, each alone, so that one that takes its worker along again
    (for want of memory, for instance) is known; it has failed.
    """
    waiting = {job.stage.folder: job for job in work}
    idle = 0
    while waiting:
        try:
            yield from _run_workers(waiting, jobs)
        except BrokenExecutor:
            started = [job for job in waiting.values() if was_started(job)]
            idle = 0 if started else idle + 1
            if idle > _START_ATTEMPTS:
                raise
            for job in started:
                alone = {job.stage.folder: job}
                try:
                    yield from _run_workers(alone, max(jobs, 2))  # with 1, it would be in this process
                except BrokenExecutor as error:
                    text = "its worker process was killed twice, by the system for want of memory perhaps"
                    yield Outcome(job.stage.folder, record_failure(job, text, f"{text}\n{error}"))
                del waiting[job.stage.folder]


def _run_workers(waiting: dict[str, Job], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of stages, which are removed from `waiting`."""
    workers = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", backend="loky")
    for outcome in workers(joblib.delayed(execute)(job) for job in list(waiting.values())):
        del waiting[outcome.folder]
        yield outcome


def _generations(work: Mapping[str, Job]) -> Iterator[list[Job]]:
    """Yield the stages in groups: every group can start when those before it are done, and none has a lower rank than those."""
    for rank in sorted({job.rank for job in work.values()}):
        waiting = {name: job for name, job in work.items() if job.rank == rank}
        while waiting:
            parents = {name: job.stage.parent for name, job in waiting.items()}
            ready = [name for name, parent in parents.items() if parent is None or parent.folder not in waiting]
            yield [waiting.pop(name) for name in ready]


def _table(chain: list[Stage], runs: Path, errors: Mapping[str, str], *, unique: bool) -> pd.DataFrame:
    """Return the rows of one trial, its settings first.

    Args:
        chain: the stages of the trial.
        runs: the folder of all stages.
        errors: {folder: why that stage failed}.
        unique: whether no other trial has its key; the digest of its settings is added where one has.
    """
    parts = [read_table(runs / stage.folder / ROWS_FILE) for stage in chain if stage.folder not in errors]
    if failed := next((stage for stage in chain if stage.folder in errors), None):
        row = {"phase": failed.phase, "epoch": 0, "diverged": False, "error": errors[failed.folder]}
        parts.append(pd.DataFrame([row]))
    rows = pd.concat(parts, ignore_index=True)
    trial = chain[-1].trial
    columns: dict[str, Any] = {
        "trial": trial.key if unique else f"{trial.key}-{chain[-1].folder[-8:]}",
        "network": trial.network_name,
        "dataset": trial.dataset_name,
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
