"""measure: the Jacobian spectrum of a network, with error bars."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, signed
from isometry.measurement.function import NetworkFunction
from isometry.measurement.inputs import Inputs, read_inputs, takes_several_inputs
from isometry.measurement.options import Options, check_model
from isometry.measurement.planner import FEW
from isometry.measurement.ranks import Ranks
from isometry.measurement.ratios import with_reference
from isometry.measurement.reference import Remembered, check_outputs, check_reference, of_reference
from isometry.measurement.report import Report
from isometry.measurement.sampling import INTERRUPTED, Manner, measure_samples
from isometry.networks.modules import unwrap
from isometry.networks.preservation import state_preserved

__all__ = ["BRACKET", "interrupts_raised", "measure", "measure_with"]

BRACKET = 0.002
"""Half-width of brackets, as a share of the mean, where networks are compared: wider ones would blur differences."""
_DRAWN, _DRAWN_TO_SAMPLE = 64, 1024
_TURN = threading.RLock()
_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@signed("measure")
def measure(
    model: nn.Module,
    inputs: Any = None,
    *,
    method: str = "auto",
    layers: bool | int | str | Sequence[str] = False,
    rtol: float | None = None,
    budget: int | None = None,
    reference: nn.Module | None = None,
    output: str | int | Callable[[Any], Tensor] | None = None,
    at: str | None = None,
    wrt: str | int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool | None = None,
    distributed: bool = True,
) -> Report:
    """Measure the singular values of a network's input-output Jacobian (JSVs), sample by sample.

    The Jacobian is that of the outputs (logits) with respect to the input, in eval mode. Nothing about the model
    changes: modes, gradients, `requires_grad`, buffers, random state, dtype and device.

    Args:
        model: maps [B, ...] to a floating point tensor [B, ...], each sample independently of the others.
        inputs: a tensor [B, ...]; or a `Split`, (x, y), a `Data` (its test part), or an iterable of batches x or
            (x, y), such as a DataLoader. Of an iterable without a length, which may have no end, the first 1024 samples
            are taken unless rtol or budget end it. None draws 64 standard normal inputs, or token ids, of a shape that the
            model is found to take (`networks.find_inputs`); the report says which. Inputs of a half-precision model are
            converted to its dtype.
        method: "exact": all r = min(outputs, inputs) singular values, by r products per sample (fewer through a
            bottleneck before the output). "krylov": the mean, estimated from two or more random probes per sample, and bounds
            of the ends, by Golub-Kahan, some tens of products per sample. `interval` allows for samples, probes and the
            brackets of what a probe says (see `Bidiagonal.narrowed`). Fewer than eight samples (iterables are read ahead to
            see that) get probes until their own mean is known to 3 % or to `rtol` (`Report.estimation_error`), for at most
            as many products as all values take (and 1,500 each where no `rtol` is given), or until `budget` is spent. "auto":
            exact up to r = 128; beyond, for eight samples or more with `rtol` or `budget`, whatever is expected to give the shorter
            interval for the same products. Most samples then get runs of a few steps only, calibrated by the first ones: see
            `isometry.measurement.calibration.Calibration`. For fewer samples "auto" takes all values where the budget
            suffices for them, or, up to r = 1,500, where two probes have told that the tolerance takes more products.
        layers: also report on the map from layers to the output: True for the network's blocks, a depth, or name
            patterns. Exact only.
        rtol: sample until the half-width of the 95 % interval is below this share of the mean, or inputs run out. Samples are
            taken in random order: those of a tensor, a list of batches, or a data set by index; a generator's order is
            taken to be random, and the report says so. The interval is looked at after 32 samples and then after numbers
            fixed in advance, so that it holds although sampling stops early.
        budget: limit on the number of products; samples, probes and steps are allocated for the shortest interval. It is
            exceeded where it does not suffice for one sample, at about 20 products.
        reference: the dense network, measured at the same inputs with the same probes: the report then has the ratio to its
            JSVs, as a whole, by sample and by layer, and a verdict in words.
        output: the part of the model's output to differentiate: key, index, attribute or function; None takes the
            tensor or its `logits`.
        at: name of a module; the Jacobian then starts at its output (an embedding, for token ids).
        wrt: key or index of the differentiated input of a model with several; batches are then tuples or dicts of all
            of them. Tensors as long as the batch are treated as one entry per sample; others are shared by all samples.
        dtype: precision of the computation; None is the model's own, float32 for half-precision models.
        seed: of drawn inputs, of the order in which samples are taken where only some may be needed, and of probes.
        progress: False silences the progress bar, None shows it on work of some seconds.
        distributed: whether the processes of an initialized `torch.distributed` group split the samples between them and
            all return the same report. All of them must then call it, with the same network and inputs; False measures
            in the calling process alone, e.g. on rank 0 during training.

    How to read it: for linear networks, and at initialization, 1 is the yardstick (dynamical isometry). For trained non-linear
    networks the dense network is, hence `reference`; see `isometry.measurement.verdict`.

    Returns:
        `Report`. A measurement that is interrupted (Ctrl-C) after two samples or more returns that of the samples seen, warns,
        and says so in a note.

    Raises:
        ValueError: the input shape cannot be inferred; a reference that takes other inputs or has another number of outputs; inputs are empty, of a shape that the model refuses, NaN or
            infinite; outputs or Jacobians that are not finite; samples that influence each other; a model that is not
            deterministic or not differentiable.
        TypeError: inputs are not floating point, or the output is not.

    Source: the estimand is that of Wang & Fu, ICLR 2023 (mean JSV over samples and values, of logits with respect to
    inputs); the brackets are Gauss and Gauss-Radau quadrature (Golub & Meurant 2010); the intervals are described in
    `isometry.spectra.intervals`.
    """
    bracket = BRACKET if reference is not None and rtol is None and budget is None else None
    report = measure_with(
        Options(method, layers, rtol, budget, dtype, seed, bracket),
        model,
        inputs,
        reference=reference,
        output=output,
        at=at,
        wrt=wrt,
        progress=progress,
        distributed=distributed,
        keeps=_KEEPS.get(),
    )
    if _was_interrupted(report):
        message = f"measure() was interrupted: its report is that of the {len(report.spectrum)} samples seen"
        warnings.warn(message, stacklevel=3)  # above the frame that signs the errors: the caller's line
    return report


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Let an interrupt end every measurement inside, for programs that would take a report of some samples for a whole one."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


def measure_with(
    options: Options,
    model: nn.Module,
    inputs: Any = None,
    *,
    reference: nn.Module | None = None,
    output: str | int | Callable[[Any], Tensor] | None = None,
    at: str | None = None,
    wrt: str | int | None = None,
    progress: bool | None = None,
    distributed: bool = True,
    keeps: bool = False,
) -> Report:
    """Measure with options that have been checked; see `measure`. Threads take turns, as settings of torch are global.

    `keeps` says whether an interrupt ends the measurement with the report of what was seen, rather than with an error.
    """
    model = unwrap(model)
    check_model(model, at)
    dense = None if reference is None else check_reference(reference, at)
    if wrt is not None and isinstance(inputs, Tensor):
        raise InvalidTypeError(
            f"got wrt={wrt!r} with a tensor; with wrt= the inputs are a tuple or dict of all of the model's, e.g. "
            "measure(model, (inputs, condition), wrt=0)."
        )
    ranks = Ranks.present(distributed)
    how = Manner(ranks, True if ranks.rank else None if progress is None else not progress, keeps and ranks.size == 1)
    with _TURN, state_preserved(model):
        ranks.check_same(model, f"{options} {getattr(output, '__name__', output)} {at} {wrt}")
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
        function = NetworkFunction(model, output, at or read.at)
        if dense is None:
            return _report(function, read, options, how)
        with state_preserved(dense):
            ranks.check_same(dense, "reference")
            return _report_ratio(function, replace(function, model=dense), read, options, how)


def _report(function: NetworkFunction, inputs: Inputs, options: Options, how: Manner) -> Report:
    """Return the report of a network whose state is preserved."""
    start = time.perf_counter()
    with function.differentiable():
        tally, subject, method = measure_samples(function, inputs, options, how)
    return tally.report(subject, method, inputs.description, how.ranks.largest(time.perf_counter() - start))


def _report_ratio(
    function: NetworkFunction, dense: NetworkFunction, inputs: Inputs, options: Options, how: Manner
) -> Report:
    """Return the report of a network with that of its reference, measured at the samples that the first one took."""
    seen = Remembered(inputs)
    check_outputs(function, dense, seen)
    report = _report(function, seen.inputs, options, how)
    if _was_interrupted(report):
        return report
    every = replace(options, method=report.method)  # few samples: as well as the network itself, with the same probes
    if report.method == "exact" or len(report.spectrum) >= FEW:
        every = replace(every, rtol=None, budget=None)
    again = seen.first(len(report.spectrum), dense.model)
    try:
        with of_reference():
            of_dense = _report(dense, again, every, replace(how, keeps=False))
    except KeyboardInterrupt:
        if not how.keeps:
            raise
        return replace(report, notes=(*report.notes, f"{INTERRUPTED} before the reference was measured"))
    return with_reference(report, of_dense)


def _was_interrupted(report: Report) -> bool:
    return any(note.startswith(INTERRUPTED) for note in report.notes)
