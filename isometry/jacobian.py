"""Jacobian: a network at B inputs, seen as B linear maps from input to output."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isometry.spectra import Operator

__all__ = ["Jacobian", "check_independence", "chunk_size", "forward", "frozen"]


class Jacobian(Operator):
    """The Jacobians d output / d input of `model` at every sample of a batch, one forward pass for all of them.

    Outputs and inputs are flattened: m output entries, n input entries a sample. The model must be `frozen`.

    Args:
        model: maps [B, ...] to a tensor [B, ...].
        inputs: [B, ...], floating point.

    Raises:
        TypeError: the output is no floating point tensor.
        ValueError: the output's first dimension is not B; samples of the batch influence each other (the message
            names the module that mixes them); an output or a gradient is NaN or infinite (the message names the
            first module to produce one).
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model = model
        self.inputs = inputs.detach().requires_grad_(True)
        with torch.enable_grad():
            self.outputs = forward(model, self.inputs)
        if not bool(torch.isfinite(self.outputs).all()):
            raise ValueError(_first_nonfinite(model, self.inputs))
        self.batch = len(inputs)
        self.rows, self.columns = self.outputs[0].numel(), inputs[0].numel()
        self.dtype, self.device = inputs.dtype, inputs.device
        self.products = 0.0

    def rmatvec(self, u: Tensor) -> Tensor:
        """Apply Jᵀ, one backward pass for each of k vectors: u [B, k, m] -> [B, k, n]."""
        out = torch.empty(self.batch, u.shape[1], self.columns, dtype=self.dtype, device=self.device)
        for k in range(u.shape[1]):
            out[:, k] = self._pull(u[:, k].reshape(self.outputs.shape)).flatten(1)
        self.products += u.shape[1]
        return out

    def _pull(self, cotangent: Tensor) -> Tensor:
        if not self.outputs.requires_grad:  # the output does not depend on the input
            return torch.zeros_like(self.inputs)
        (gradient,) = torch.autograd.grad(
            self.outputs, self.inputs, cotangent.to(self.outputs), retain_graph=True, materialize_grads=True
        )
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                "measure() found a Jacobian with NaN or infinite entries although the outputs are finite: an operation "
                "of the network has no derivative at these inputs (sqrt or norm at 0, for instance). Shift the inputs "
                "a little: measure(model, inputs + 1e-6 * torch.randn_like(inputs))."
            )
        return gradient

    def matvec(self, v: Tensor) -> Tensor:
        """Apply J by differentiating u -> Jᵀu, which is linear: v [B, k, n] -> [B, k, m]."""
        dummy = torch.zeros_like(self.outputs, requires_grad=True)
        out = torch.zeros(self.batch, v.shape[1], self.rows, dtype=self.dtype, device=self.device)
        self.products += v.shape[1]
        if not self.outputs.requires_grad:
            return out
        (pulled,) = torch.autograd.grad(self.outputs, self.inputs, dummy, create_graph=True, materialize_grads=True)
        if pulled.requires_grad:
            for k in range(v.shape[1]):
                (pushed,) = torch.autograd.grad(
                    pulled, dummy, v[:, k].reshape(pulled.shape), retain_graph=True, materialize_grads=True
                )
                out[:, k] = pushed.flatten(1)
        return out


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` in eval mode with parameters that take no gradient, and put everything back afterwards.

    Every module's own mode, every `requires_grad`, the values of the buffers and the global random state come out as
    they went in, whatever happens meanwhile.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = {buffer: (buffer._version, buffer.clone()) for buffer in model.buffers()}
    devices = {p.device for p in (*flags, *buffers) if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            model.eval()
            for parameter in flags:
                parameter.requires_grad_(False)
            yield model
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, (version, value) in buffers.items():
                if buffer._version != version:
                    buffer.copy_(value)


def check_independence(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a `frozen` model whose output for one sample depends on the other samples of the batch.

    Two samples are enough: the gradient of the first one's output must vanish at the second one's input.

    Raises:
        ValueError: names the module that mixes samples.
    """
    pair = (inputs if len(inputs) > 1 else inputs.repeat_interleave(2, 0))[:2].detach().requires_grad_(True)
    with torch.enable_grad():
        outputs = forward(model, pair)
        if not outputs.requires_grad:
            return
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.zeros_like(outputs)
        cotangent[0] = torch.randn(outputs[0].shape, generator=generator).to(outputs)
        (gradient,) = torch.autograd.grad(outputs, pair, cotangent, materialize_grads=True)
    if bool((gradient[1].nan_to_num(0.0) != 0).any()):  # NaN is the Jacobian's own trouble, told elsewhere
        raise ValueError(
            f"measure() found that {_mixer(model, pair.detach())} mixes the samples of a batch, so there is no "
            "per-sample Jacobian. Make it independent of the batch (running statistics for a BatchNorm, batch_first="
            "True for a recurrent layer) or measure one sample at a time: measure(model, inputs[:1])."
        )


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs [B, ...] of a model at a batch, or say what is wrong with model or inputs."""
    try:
        outputs = model(inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"measure() got inputs of shape {tuple(inputs.shape)}, dtype {inputs.dtype}, which the model does not accept "
            f"({error}). Pass inputs of the shape it was built for, e.g. measure(model, torch.randn(64, *shape))."
        ) from error
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(
            f"measure() got a model whose output is {kind}; it takes one that returns a floating point tensor [B, ...]."
        )
    if outputs.ndim == 0 or len(outputs) != len(inputs):
        raise ValueError(
            f"measure() got outputs of shape {tuple(outputs.shape)} for {len(inputs)} inputs; the first dimension of "
            "inputs and outputs must be the batch, e.g. logits [B, classes]."
        )
    return outputs


@torch.no_grad()
def _leafforward(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return {name: first tensor output} of every leaf module, in the order of the forward pass."""
    seen: dict[str, Tensor] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen.setdefault(f"{name or 'the model'} ({type(module).__name__})", first.clone())

        return record

    leaves = [(name, m) for name, m in model.named_modules() if not any(True for _ in m.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _first_nonfinite(model: nn.Module, inputs: Tensor) -> str:
    for name, output in _leafforward(model, inputs.detach()).items():
        if not bool(torch.isfinite(output).all()):
            return (
                f"measure() found NaN or infinite values in the output of {name}, the first module to produce them. "
                "Check its weights and the scale of the inputs: measure(model, inputs) needs a finite forward pass."
            )
    return (
        "measure() found NaN or infinite values in the output of the model, computed outside its submodules. "
        "measure(model, inputs) needs a finite forward pass."
    )


def _mixer(model: nn.Module, pair: Tensor) -> str:
    """Return the name of the first leaf module whose output for sample 0 changes with sample 1."""
    other = torch.stack([pair[0], pair[1] + 1 + pair[1].abs()])
    changed = _leafforward(model, other)
    for name, output in _leafforward(model, pair).items():
        same = changed.get(name)
        if same is not None and output.ndim and (len(output) != 2 or not torch.equal(output[0], same[0])):
            return name
    return "an operation outside its submodules"


def chunk_size(sample_bytes: int, batch: int, budget: int = 2**30) -> int:
    """Return how many samples fit `budget` bytes, at least 1 and at most `batch`."""
    return max(1, min(batch, math.floor(budget / max(sample_bytes, 1))))
