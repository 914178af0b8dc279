"""measure: the Jacobian spectrum of a network, with error bars."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.errors import InvalidTypeError, InvalidValueError, is_out_of_memory, signed
from isometry.measurement.batch import Batch
from isometry.measurement.checks import readable_errors
from isometry.measurement.estimators import BottleneckBypassedError, EstimatedBatch, Exact
from isometry.measurement.function import NetworkFunction
from isometry.measurement.independence import check_independence
from isometry.measurement.inputs import Inputs, read_inputs, takes_several_inputs
from isometry.measurement.options import Options, check_model
from isometry.measurement.planner import Plan, Planner
from isometry.measurement.preparation import Subject, prepare, sample_shape
from isometry.measurement.report import Report
from isometry.measurement.tally import Tally
from isometry.networks.modules import state_preserved, unwrap

__all__ = ["measure", "measure_with"]

_DRAWN, _DRAWN_TO_SAMPLE = 64, 1024
_TURN = threading.RLock()


@signed("measure")
def measure(
    model: nn.Module,
    inputs: Any = None,
    *,
    method: str = "auto",
    layers: bool | int | str | Sequence[str] = False,
    rtol: float | None = None,
    budget: int | None = None,
    output: str | int | Callable[[Any], Tensor] | None = None,
    at: str | None = None,
    wrt: str | int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Measure the singular values of a network's input-output Jacobian (JSVs), sample by sample.

    The Jacobian is that of the outputs (logits) with respect to the input, in eval mode. Nothing about the model
    changes: modes, gradients, `requires_grad`, buffers, random state, dtype and device.

    Args:
        model: maps [B, ...] to a floating point tensor [B, ...], each sample independently of the others.
        inputs: a tensor [B, ...]; or a `Split`, (x, y), a `Data` (its test part), or an iterable of batches x or
            (x, y), such as a DataLoader. None draws 64 standard normal inputs of the shape that the model's first
            layer takes, and the report says so.
        method: "exact": all r = min(outputs, inputs) singular values, by r products per sample (fewer through a
            bottleneck before the output). "krylov": the mean, estimated from two or more random probes per sample, and bounds
            of the ends, by Golub-Kahan, some tens of products per sample. What a probe says is bracketed for certain, the
            sample's mean is not: `interval` allows for samples, probes and brackets. "auto": exact up to r = 128; beyond,
            with `rtol` or `budget`, whatever is expected to give the shorter interval for the same products. Most samples
            then get runs of a few steps only, calibrated by the first ones: see
            `isometry.measurement.calibration.Calibration`.
        layers: also report on the map from layers to the output: True for the network's blocks, a depth, or name
            patterns. Exact only.
        rtol: sample until the half-width of the 95 % interval is below this share of the mean, or inputs run out. Samples are
            taken in random order: those of a tensor, a list of batches, or a data set by index; a generator's order is
            taken to be random, and the report says so. The interval is looked at after 32 samples and then after numbers
            fixed in advance, so that it holds although sampling stops early.
        budget: limit on the number of products; samples, probes and steps are allocated for the shortest interval.
        output: the part of the model's output to differentiate: key, index, attribute or function; None takes the
            tensor or its `logits`.
        at: name of a module; the Jacobian then starts at its output (an embedding, for token ids).
        wrt: key or index of the differentiated input of a model with several; batches are then tuples or dicts of all
            of them. Tensors as long as the batch are treated as one entry per sample; others are shared by all samples.
        dtype: precision of the computation; None is the model's own, float32 for half-precision models.
        seed: of drawn inputs, of the order in which samples are taken where only some may be needed, and of probes.
        progress: False silences the progress bar, None shows it on work of some seconds.

    Returns:
        `Report`.

    Raises:
        ValueError: the input shape cannot be inferred; inputs are empty, of a shape that the model refuses, NaN or
            infinite; outputs or Jacobians that are not finite; samples that influence each other; a model that is not
            deterministic or not differentiable.
        TypeError: inputs are not floating point, or the output is not.

    Source: the estimand is that of Wang & Fu, ICLR 2023 (mean JSV over samples and values, of logits with respect to
    inputs); the brackets are Gauss and Gauss-Radau quadrature (Golub & Meurant 2010); the intervals are described in
    `isometry.spectra.intervals`.
    """
    options = Options(method, layers, rtol, budget, dtype, seed)
    return measure_with(options, model, inputs, output=output, at=at, wrt=wrt, progress=progress)


def measure_with(
    options: Options,
    model: nn.Module,
    inputs: Any = None,
    *,
    output: str | int | Callable[[Any], Tensor] | None = None,
    at: str | None = None,
    wrt: str | int | None = None,
    progress: bool | None = None,
) -> Report:
    """Measure with options that have been checked; see `measure`. Threads take turns, as settings of torch are global."""
    start = time.perf_counter()
    model = unwrap(model)
    check_model(model, at)
    if torch.is_inference_mode_enabled():
        raise InvalidValueError(
            "was called in torch.inference_mode(), in which nothing can be differentiated. Call it outside; "
            "torch.no_grad() is fine."
        )
    if wrt is not None and isinstance(inputs, Tensor):
        raise InvalidTypeError(
            f"got wrt={wrt!r} with a tensor; with wrt= the inputs are a tuple or dict of all of the model's, e.g. "
            "measure(model, (inputs, condition), wrt=0)."
        )
    with _TURN, state_preserved(model):
        function = NetworkFunction(model, output, at)
        read = read_inputs(
            model,
            inputs,
            key=wrt,
            whole=wrt is not None or (at is not None and takes_several_inputs(model)),
            integers=at is not None,
            shuffle=options.sampled,
            seed=options.seed,
            count=_DRAWN_TO_SAMPLE if options.sampled else _DRAWN,
        )
        with function.differentiable():
            tally, subject, method = _run(function, read, options, None if progress is None else not progress)
        return tally.report(subject, method, read.description, time.perf_counter() - start)


def _run(
    function: NetworkFunction, inputs: Inputs, options: Options, hidden: bool | None
) -> tuple[Tally, Subject, str]:
    """Measure until that is enough or the inputs run out; return the results, what was measured, and by which method."""
    batches = iter(inputs.batches)
    first = next(batches, None)
    if first is None:
        raise InvalidValueError(
            "got no inputs: the iterable is empty. Pass at least one batch, e.g. measure(model, x)."
        )
    subject = prepare(function, first, options)
    tally = Tally(options, subject.notes, inputs.is_stream and options.sampled)
    planner = Planner(subject, options, inputs.total, torch.Generator().manual_seed(options.seed))
    plan, enough = planner.first(), False
    with tqdm(total=inputs.total, unit="sample", desc="measure", disable=hidden, delay=2) as bar:
        for batch in _alike(subject, itertools.chain([first], batches)):
            start = 0
            while start < len(batch) and not enough:
                plan, size = planner.next_part(plan, tally)
                plan, part, estimated = _estimate(plan, batch.part(start, start + size), tally)
                if len(tally) == len(part) and estimated.outputs is not None:
                    check_independence(subject.fast, part, estimated.outputs)
                enough = tally.is_enough(plan.estimator.price)
                if plan.is_open and not enough:
                    plan = planner.after(plan, tally)
                    enough = tally.is_enough(plan.estimator.price)
                start += len(part)
                bar.update(len(part))
            if enough:
                break
    tally.note_ending(enough)
    if tally.suspect is not None:
        check_independence(subject.fast, *tally.suspect)
    return tally, subject, plan.estimator.method if tally.brackets is None else "krylov"


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


def _estimate(plan: Plan, part: Batch, tally: Tally) -> tuple[Plan, Batch, EstimatedBatch]:
    """Estimate a part of a batch, halved until it fits into memory, and add it to the tally.

    Returns:
        The plan to go on with (without the bottleneck where that is bypassed), the samples that were measured, and what
        was found.
    """
    while True:
        estimator = plan.estimator
        try:
            with readable_errors(estimator.subject.function, part):
                estimated = estimator.estimate(part)
        except BottleneckBypassedError as bypassed:
            tally.note(f"not through {bypassed} after all: something reaches the output past it")
            plan = replace(plan, estimator=Exact(estimator.subject))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            tally.limit = len(part) // 2
            part = part.part(0, tally.limit)
        else:
            tally.add(estimated, part)
            return plan, part, estimated
