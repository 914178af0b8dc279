"""measure: the Jacobian spectrum of a network, with error bars; compare: several networks at the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from isometry.measurement.estimators import Survey
from isometry.measurement.function import NetworkFunction
from isometry.measurement.inputs import gather, several
from isometry.measurement.jacobian import explained
from isometry.measurement.report import Report
from isometry.networks.modules import state_preserved, unwrap

__all__ = ["measure"]

_METHODS = ("auto", "exact", "krylov")


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

    The Jacobian is that of the outputs (logits) with respect to the input, in eval mode. The model comes out as it
    went in: modes, gradients, `requires_grad`, buffers, random state, dtype and device.

    Args:
        model: maps [B, ...] to a floating point tensor [B, ...], each sample by itself.
        inputs: a tensor [B, ...]; or a `Split`, (x, y), a `Data` (its test part), or an iterable of batches x or
            (x, y), a DataLoader for instance. None draws 64 standard normal inputs of the shape that the model's first
            layer tells, and the report says so.
        method: "exact": all r = min(outputs, inputs) singular values, r products a sample (fewer through a narrow layer
            before the output). "krylov": the mean within a certified bracket, and bounds of the ends, by Golub-Kahan
            from random probes, some tens of products a sample. "auto": exact up to r = 128; beyond, whichever
            promises the shorter interval for the same products.
        layers: also report on the map from layers to the output: True for the network's blocks, a depth, or name
            patterns. Exact only.
        rtol: sample until the half-width of the 95 % interval is below this share of the mean, or inputs run out.
        budget: spend at most about so many products; samples and probes are allocated for the shortest interval.
        output: which part of the model's output is meant: key, index, attribute or function; None takes the tensor or
            its `logits`.
        at: name of a module; the Jacobian then starts at its output (an embedding, for token ids).
        wrt: key or index of the differentiated input of a model with several; batches are then tuples or dicts of all
            of them. A tensor as long as the batch is taken to hold an entry a sample, any other to be the same for all.
        dtype: precision of the computation; None is the model's own, float32 for half-precision models.
        seed: of drawn inputs, of the order in which part of the samples is taken, and of probes.
        progress: False silences the progress bar, None shows it on work of some seconds.

    Returns:
        `Report`.

    Raises:
        ValueError: the input shape cannot be inferred; inputs are empty, of a shape that the model refuses, NaN or
            infinite; outputs or Jacobians that are not finite; samples that influence each other; a model that is not
            deterministic or not differentiable.
        TypeError: inputs are not floating point, or the output is not.

    Source: the estimand is that of Wang & Fu, ICLR 2023 (mean JSV over samples and values, of logits with respect to
    inputs); the bracket is Gauss and Gauss-Radau quadrature (Golub & Meurant 2010).
    """
    _check_arguments(method, rtol, budget, layers, dtype)
    start = time.perf_counter()
    model = unwrap(model)
    _check_model(model)
    if wrt is not None and isinstance(inputs, Tensor):
        raise TypeError(
            f"measure() got wrt={wrt!r} with a tensor; with wrt= the inputs are a tuple or dict of all of the model's, e.g. "
            "measure(model, (inputs, condition), wrt=0)."
        )
    with state_preserved(model):
        work = Survey(NetworkFunction(model, output=output, at=at, wrt=wrt), method, rtol, budget, layers, dtype, seed)
        given = gather(
            model,
            inputs,
            whole=wrt is not None or (at is not None and several(model)),
            integers=at is not None,
            shuffle=rtol is not None or budget is not None,
            seed=seed,
            drawn=1024 if rtol is not None or budget is not None else 64,
        )
        with work.view.differentiable(), explained(work.nonfinite):
            work.run(given, None if progress is None else not progress)
        return work.report(given.described, time.perf_counter() - start)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"measure() got a {type(model).__name__} for a model; it takes a torch.nn.Module, e.g. "
            "measure(isometry.networks.build('lenet-5-relu'))."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "measure() got a TorchScript module, whose parts cannot be looked into. Pass the module it was scripted or traced "
            "from, e.g. measure(model, inputs)."
        )
    lazy = [name for name, module in model.named_modules() if getattr(module, "has_uninitialized_params", bool)()]
    if lazy:
        raise ValueError(
            f"measure() got a model whose {lazy[0] or 'parameters'} are not initialized yet; run it once first: model(inputs)."
        )


def _check_arguments(method: str, rtol: Any, budget: Any, layers: Any, dtype: Any) -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "measure() was called in torch.inference_mode(), in which nothing can be differentiated. Call it outside; "
            "torch.no_grad() is fine."
        )
    if method not in _METHODS:
        raise ValueError(
            f"measure() got method={method!r}; it knows {', '.join(map(repr, _METHODS))}, e.g. method='auto'."
        )
    if rtol is not None and not (isinstance(rtol, Real) and 0 < float(rtol) < 1):
        raise ValueError(
            f"measure() got rtol={rtol}; it is the half-width of the interval over the mean, e.g. rtol=0.05."
        )
    if budget is not None and (not isinstance(budget, Integral) or isinstance(budget, bool) or budget < 1):
        raise ValueError(f"measure() got budget={budget}; it is a number of products, e.g. budget=10_000.")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"measure() got dtype={dtype}; it takes a floating point one, e.g. dtype=torch.float64.")
    patterns = isinstance(layers, list | tuple) and all(isinstance(pattern, str) for pattern in layers)
    if not (isinstance(layers, bool | int | str) or patterns):
        raise ValueError(
            f"measure() got layers={layers!r}; it takes True for blocks, a depth, or name patterns, e.g. layers='*conv*'."
        )
    if layers is not False and method == "krylov":
        raise ValueError(
            "measure() got layers= with method='krylov'; layers need every row: method='exact' (or 'auto')."
        )
