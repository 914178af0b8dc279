"""The objective of a training: its loss, the metric beside it, and what both refuse."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data.nests import describe, map_tensors
from isometry.errors import InvalidTypeError, InvalidValueError, is_out_of_memory

__all__ = ["Objective", "Totals", "describe_callable"]

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]

_ALIKE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_IGNORED = -100  # the class that F.cross_entropy leaves out
_LISTED = 10_000  # entries of a loss's weights of classes that its description lists
_OWN_LOSS = (
    "For a regression pass loss=torch.nn.functional.mse_loss, for yes or no "
    "loss=torch.nn.functional.binary_cross_entropy_with_logits."
)


class Objective:
    """A loss and a metric of (outputs, targets), by default cross-entropy and accuracy.

    Args:
        loss: any callable (outputs, targets) -> scalar, a mean over the batch; None means cross-entropy of logits [B, K] or
            [B, K, ...] and classes [B] or [B, ...].
        metric: any callable (outputs, targets) -> number, a mean over the batch, or None.

    Raises:
        TypeError: one of them cannot be called.
    """

    def __init__(self, loss: Loss | None, metric: Metric | None) -> None:
        for name, given in (("loss", loss), ("metric", metric)):
            if given is not None and not callable(given):
                raise InvalidTypeError(
                    f"got {name}={type(given).__name__}(...), which cannot be called; it takes a function of (outputs, targets), "
                    f"e.g. {name}=torch.nn.functional.mse_loss."
                )
        self.loss, self.metric = loss, metric

    def __call__(self, outputs: Any, targets: Any, *, differentiable: bool = True, reduction: str = "mean") -> Tensor:
        """Return the loss, a scalar; cross-entropy may be the sum over the targets.

        Raises:
            TypeError, ValueError: cross-entropy of what is no classification; a loss of the user's that fails, is no scalar,
                or, where it has to be, not differentiable.
        """
        if self.loss is None:
            logits, classes = _classification(outputs, targets)
            return F.cross_entropy(logits, classes, reduction=reduction)
        _check_alike(self.loss, outputs, targets)
        value = _called("loss", self.loss, outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise InvalidTypeError(
                f"got a loss that returns a value of {found}; it takes one that returns a scalar tensor, e.g. "
                "loss=torch.nn.functional.mse_loss or loss=torch.nn.MSELoss()."
            )
        if differentiable and not value.requires_grad:
            raise InvalidValueError(
                "got a loss that is not differentiable: its value does not depend on the parameters by way of autograd, as after "
                "argmax(), item() or detach(). Compute it from the outputs, e.g. loss=torch.nn.functional.mse_loss; what is "
                "only to be looked at is a metric=."
            )
        return value.reshape(())


class Totals:
    """Sums over batches: of the loss, the correct predictions and the metric.

    Args:
        objective: what is summed.
        device: of the sums.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective, self.samples = objective, 0
        self.loss, self.metric = (torch.zeros((), device=device) for _ in range(2))
        self.correct, self.classified = (torch.zeros((), device=device, dtype=torch.int64) for _ in range(2))

    @torch.no_grad()
    def add(self, outputs: Any, targets: Any, loss: Tensor, samples: int) -> None:
        """Count a batch: its outputs and targets, the mean loss, the number of samples."""
        self.samples += samples
        self.loss += loss * samples
        self.count(outputs, targets, samples)

    @torch.no_grad()
    def count(self, outputs: Any, targets: Any, samples: int) -> None:
        """Count the correct predictions of a batch, where the targets are classes, and its metric."""
        objective = self.objective
        if (found := _classes(outputs, targets)) is not None:
            logits, classes = found
            self.correct += (logits.argmax(1) == classes).sum()
            self.classified += (classes != _IGNORED).sum()
        if objective.metric is not None:
            value = _called("metric", objective.metric, map_tensors(outputs, Tensor.detach), targets)
            try:  # without waiting for the device
                self.metric += (value.reshape(()) if isinstance(value, Tensor) else float(value)) * samples
            except (TypeError, ValueError, RuntimeError) as error:
                kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
                raise InvalidTypeError(
                    f"got a metric that returns a value of {kind}; it takes one that returns a number, e.g. "
                    "metric=lambda outputs, targets: (outputs - targets).abs().mean()."
                ) from error

    @property
    def mean_accuracy(self) -> float:
        """The fraction of the targets predicted correctly; nan where they are no classes."""
        return float(self.correct) / float(self.classified) if self.classified else float("nan")

    @property
    def mean_metric(self) -> float:
        """The mean of the metric over samples; nan where there is none."""
        return float(self.metric) / self.samples if self.objective.metric is not None else float("nan")


def _called(name: str, function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> Any:
    """Return function(outputs, targets); an error says what it was called with."""
    try:
        return function(outputs, targets)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        if targets is None:
            raise InvalidValueError(
                f"got data without targets, with which the {name} failed ({type(error).__name__}: {error}). Pass pairs, e.g. "
                f"data=(inputs, targets), or a {name} of the outputs alone, e.g. {name}=lambda outputs, targets: outputs.square().mean()."
            ) from error
        raise InvalidValueError(
            f"got a {name} that failed ({type(error).__name__}: {error}) at outputs of {describe(outputs)} and targets of "
            f"{describe(targets)}. It is called with what the network returns and the targets of the batch, e.g. "
            f"{name}=lambda outputs, targets: torch.nn.functional.mse_loss(outputs, targets)."
        ) from error


def _check_alike(loss: Loss, outputs: Any, targets: Any) -> None:
    """Refuse shapes that a loss of torch would broadcast: of [B, 1] and [B] it compares every output with every target."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.shape == targets.shape:
        return
    try:
        torch.broadcast_shapes(outputs.shape, targets.shape)
    except RuntimeError:
        return  # which the loss refuses itself
    plain = loss.func if isinstance(loss, functools.partial) else loss
    if plain in _ALIKE or type(plain) in _ALIKE:
        raise InvalidValueError(
            f"got outputs of {describe(outputs)} and targets of {describe(targets)}, which this loss would broadcast; it takes "
            "targets of the outputs' shape, e.g. targets.unsqueeze(1) for one output per sample."
        )


def _logits(outputs: Any) -> Any:
    """Return the outputs, or their `logits`, as networks for language return them."""
    return getattr(outputs, "logits", outputs)


def _classes(outputs: Any, targets: Any) -> tuple[Tensor, Tensor] | None:
    """Return logits [B, K, ...] and classes [B, ...] where that is what outputs and targets are, else None."""
    logits = _logits(outputs)
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        return None
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[1] < 2:
        return None
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return None
    if targets.shape != logits.shape[:1] + logits.shape[2:]:
        return None
    return logits, targets.long()


def _classification(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Return logits [B, K, ...] and classes [B, ...]; raise an error that says why cross-entropy means nothing here."""
    found = _classes(outputs, targets)
    if found is None:
        raise _no_classification(_logits(outputs), targets)
    logits, classes = found
    # On another device than the CPU the look at the values would wait for all that is computed there.
    if classes.device.type == "cpu" and classes.numel():
        counted = classes if int(classes.min()) >= 0 else classes[classes != _IGNORED]
        low, high = (int(bound) for bound in counted.aminmax()) if counted.numel() else (0, 0)
        if low < 0 or high >= logits.shape[1]:
            raise InvalidValueError(
                f"got targets from {low} to {high} for a network with {logits.shape[1]} outputs; cross-entropy takes classes "
                f"from 0 to {logits.shape[1] - 1}. Give the network more outputs, e.g. networks.build(name, classes={high + 1}), or "
                "number the classes from 0."
            )
    return logits, classes


def _no_classification(outputs: Any, targets: Any) -> Exception:
    """Return the error for outputs or targets that are not those of a classification."""
    if targets is None:
        return InvalidValueError(
            "got data without targets, which cross-entropy needs. Pass pairs, e.g. data=(inputs, targets); for an autoencoder "
            "data=(inputs, inputs), loss=torch.nn.functional.mse_loss."
        )
    if not isinstance(outputs, Tensor):
        names = f" ({', '.join(map(str, outputs))})" if isinstance(outputs, dict) else ""
        return InvalidTypeError(
            f"got a network that returns {type(outputs).__name__}{names}; cross-entropy takes logits [B, K]. Say what the loss "
            "of these outputs is, e.g. loss=lambda outputs, targets: torch.nn.functional.cross_entropy(outputs[0], targets)."
        )
    shapes = f"outputs of {describe(outputs)} and targets of {describe(targets)}"
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        return InvalidValueError(
            f"got {shapes}; cross-entropy takes logits [B, K] of K classes, at least 2: of one it is 0 whatever the network "
            f"does. {_OWN_LOSS}"
        )
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        return InvalidTypeError(
            f"got {shapes}; cross-entropy takes classes, int64 [B] from 0 to {outputs.shape[1] - 1}. {_OWN_LOSS} For "
            "probabilities of classes pass loss=torch.nn.functional.cross_entropy."
        )
    return InvalidValueError(
        f"got {shapes}; cross-entropy takes one class per sample, {tuple(outputs.shape[:1] + outputs.shape[2:])}, e.g. "
        f"targets.squeeze(1) or targets.argmax(1) of what is one-hot. {_OWN_LOSS}"
    )


def describe_callable(function: Callable[..., Any]) -> str:
    """Return the name of a loss, the same in another process: a checkpoint and a trial know it by this.

    That is the module and name of a function, with the names and constants of its code where it is not torch's; the
    function and the arguments of a partial; the repr of another object.
    """
    if isinstance(function, functools.partial):
        arguments = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())]
        return f"partial({', '.join([describe_callable(function.func), *arguments])})"
    code = getattr(function, "__code__", None)
    if isinstance(function, nn.Module):
        plain = {key: value for key, value in vars(function).items() if isinstance(value, int | float | str)}
        tensors = {key: tensor.tolist() for key, tensor in function.state_dict().items() if tensor.numel() <= _LISTED}
        return f"{function!r}{plain | tensors}"
    if code is None:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(function))
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__module__.split(".")[0] == "torch":
        return name
    constants = [value for value in code.co_consts if isinstance(value, int | float | str | None)]
    return f"{name}{code.co_varnames}{code.co_names}{constants}"
