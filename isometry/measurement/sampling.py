"""Sampling: a prepared network's batches, measured until that is enough or they run out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from isometry.errors import InvalidValueError, is_out_of_memory
from isometry.measurement.batch import Batch
from isometry.measurement.checks import readable_errors
from isometry.measurement.estimators import BottleneckBypassedError, EstimatedBatch, Estimator, Exact
from isometry.measurement.function import NetworkFunction
from isometry.measurement.independence import check_independence
from isometry.measurement.inputs import Inputs
from isometry.measurement.options import Options
from isometry.measurement.planner import FEW, Plan, Planner
from isometry.measurement.preparation import Subject, prepare, sample_shape
from isometry.measurement.ranks import Ranks
from isometry.measurement.tally import Tally

__all__ = ["INTERRUPTED", "measure_samples"]

INTERRUPTED = "INTERRUPTED"
"""How the note of a measurement begins that was interrupted."""


@dataclass(frozen=True)
class Manner:
    """Who measures, and how that goes on.

    Attributes:
        ranks: the processes that share the samples.
        hidden: whether no progress bar is shown; None shows it on work of some seconds.
        keeps: whether an interrupt ends it like inputs that run out, once two samples were seen.
    """

    ranks: Ranks
    hidden: bool | None
    keeps: bool


def measure_samples(
    function: NetworkFunction, inputs: Inputs, options: Options, how: Manner
) -> tuple[Tally, Subject, str]:
    """Measure until that is enough or the inputs run out; return the results, what was measured, and by which method.

    Args:
        function: of the network, its state preserved.
        inputs: read once.
        options: of the measurement.
        how: who measures, and how that goes on.
    """
    ranks = how.ranks
    most = None if options.sampled else inputs.most
    every = ranks.alike(inputs.batches)
    batches = every if most is None else _first_samples(every, most)
    ahead, following, total = _read_ahead(batches, inputs.total)
    if not ahead:
        raise InvalidValueError(
            "got no inputs: the iterable is empty. Pass at least one batch, e.g. measure(model, x)."
        )
    subject = ranks.together(lambda: prepare(function, ahead[0], options))
    notes = subject.notes if ranks.size == 1 else (*subject.notes, f"samples split over {ranks.size} ranks")
    tally = Tally(options, notes, inputs.is_stream and options.sampled)
    planner = Planner(subject, options, total, torch.Generator().manual_seed(options.seed), ranks)
    method, enough, interrupted = "exact", False, False
    with tqdm(total=total, unit="sample", desc="measure", disable=how.hidden, delay=2) as bar:
        try:
            method, enough = _run(planner, tally, itertools.chain(ahead, following), bar)
        except KeyboardInterrupt:
            if not how.keeps or len(tally) < 2:
                raise
            method, interrupted = "exact" if tally.brackets is None else "krylov", True
    tally.note_ending(enough, interrupted)
    if interrupted:
        tally.note(f"{INTERRUPTED} after {len(tally)} samples")
    elif most is not None and len(tally) == most:
        tally.note(
            f"the first {most} of inputs without a length, which may have no end; rtol=0.05 goes on until that is reached, a "
            "list of batches is measured whole"
        )
    for note in inputs.notes:
        tally.note(note)
    if tally.suspect is not None:
        ranks.together(partial(check_independence, subject.fast, *tally.suspect))
    return tally, subject, method


def _first_samples(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Yield batches up to the given number of samples."""
    for batch in batches:
        yield batch if len(batch) <= most else batch.part(0, most)
        most -= len(batch)
        if most <= 0:
            return


def _read_ahead(batches: Iterator[Batch], total: int | None) -> tuple[list[Batch], Iterator[Batch], int | None]:
    """Return the first batches, the others, and the number of all samples: where there are fewer than `FEW`, it becomes known."""
    ahead = list(itertools.islice(batches, 1))
    if total is not None:
        return ahead, batches, total
    while ahead and (count := sum(map(len, ahead))) < FEW:
        ahead[-1] = ahead[-1].map(_kept)  # the source may use its memory again
        try:
            following = next(batches, None)
        except KeyboardInterrupt as interrupt:
            return ahead, _interrupted(interrupt), None
        if following is None:
            return ahead, batches, count
        ahead.append(following)
    return ahead, batches, None


def _interrupted(interrupt: KeyboardInterrupt) -> Iterator[Batch]:
    """Raise, once what was read is measured."""
    raise interrupt
    yield


def _kept(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _run(planner: Planner, tally: Tally, batches: Iterable[Batch], bar: tqdm[Any]) -> tuple[str, bool]:
    """Measure batches into the tally; return the method that was used last, and whether that was enough before they ended."""
    subject, ranks = planner.subject, planner.ranks
    plan, enough = planner.first(), False
    for batch in _alike(subject, batches):
        start = 0
        while start < len(batch) and not enough:
            plan, size = planner.next_part(plan, tally)
            plan, part, estimated = _estimate(plan, batch.part(start, start + size), tally, ranks)
            if len(tally) == len(part) and estimated.outputs is not None:
                ranks.together(partial(check_independence, subject.fast, part, estimated.outputs))
            enough = tally.is_enough(plan.estimator.price)
            if plan.is_open and not enough:
                plan = planner.after(plan, tally)
                enough = tally.is_enough(plan.estimator.price)
            start += len(part)
            bar.update(len(part))
        if enough:
            break
    return "exact" if tally.brackets is None else "krylov", enough


def _alike(subject: Subject, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches in the precision of the computation; refuse samples of different shapes."""
    shape: tuple[int, ...] | None = None
    for batch in map(subject.converted, batches):
        other = sample_shape(subject.function, batch)
        shape = shape or other
        if other != shape:
            raise InvalidValueError(
                f"got samples of different shapes, {shape} and {other}; all must be alike. Measure each kind separately, or "
                "pad them to one shape."
            )
        yield batch


def _estimate(plan: Plan, part: Batch, tally: Tally, ranks: Ranks) -> tuple[Plan, Batch, EstimatedBatch]:
    """Estimate a part of a batch, every rank a share of it, halved until it fits into memory, and add it to the tally.

    Returns:
        The plan to go on with (without the bottleneck where that is bypassed), the samples that were measured, and what
        was found.
    """
    while True:
        estimator = plan.estimator
        try:
            shares = ranks.gather(partial(_estimate_share, estimator, part, ranks), len(part))
        except BottleneckBypassedError as bypassed:
            tally.note(f"not through {bypassed} after all: something reaches the output past it")
            plan = replace(plan, estimator=Exact(estimator.subject))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            tally.limit = len(part) // 2
            part = part.part(0, tally.limit)
        else:
            estimated = EstimatedBatch.join(shares)
            tally.add(estimated, part)
            return plan, part, estimated


def _estimate_share(estimator: Estimator, part: Batch, ranks: Ranks) -> EstimatedBatch:
    if ranks.size == 1:
        with readable_errors(estimator.subject.function, part):
            return estimator.estimate(part)
    share = ranks.share(part)
    with readable_errors(estimator.subject.function, share):
        return estimator.estimate(share).on_cpu()
