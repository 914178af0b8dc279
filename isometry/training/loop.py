"""One training loop, as a generator of epochs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data, Split
from isometry.networks.bounded import BOUNDED
from isometry.training.recipe import PUBLISHED, Penalty, Recipe, Regularizer, Schedule

__all__ = ["Epoch", "parameter_groups", "train"]

_SCALE_RATE = 10.0


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to.

    Attributes:
        number: from 1.
        loss: mean cross-entropy over the epoch's batches, in train mode; nan or inf where training diverged.
        accuracy: share of the epoch's training samples classified correctly, in train mode.
        lr: learning rate.
        steps: optimizer steps since the start of training.
        seconds: wall-clock time of the epoch.
        diverged: whether the loss left the finite numbers; training ends with this epoch.
    """

    number: int
    loss: float
    accuracy: float
    lr: float
    steps: int
    seconds: float
    diverged: bool = False


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: all trainable parameters once, the scales of bounded BatchNorms apart.

    Those have ten times the rate, for a sigmoid's slope is at most 1/4, and no weight decay, which would pull
    importances to 1/2.

    Source: Suteu & Guo 2022, the optimizer of its reference code.
    """
    bounded = {id(module.weight) for module in model.modules() if isinstance(module, BOUNDED)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    scales = [p for p in trainable if id(p) in bounded]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) not in bounded], "lr": lr, "weight_decay": weight_decay}
    ]
    return groups + ([{"params": scales, "lr": _SCALE_RATE * lr, "weight_decay": 0.0}] if scales else [])


def train(
    model: nn.Module,
    data: Data | Split | tuple[Tensor, Tensor],
    *,
    lr: float,
    epochs: int,
    batch_size: int = 100,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Schedule | None = PUBLISHED,
    nesterov: bool = False,
    epoch_steps: int | None = None,
    autocast: bool = False,
    regularizer: Regularizer | None = None,
    penalty: Penalty | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place by SGD on cross-entropy, yielding an `Epoch` after each epoch.

    The data stay in memory and move to the model's device and dtype once; a `Data` with an `augment` has it applied to every
    batch. Convolutions run channels-last. The shuffling and whatever is drawn at random (dropout, crops) follow `seed`
    and leave the global generator alone. The model is in train mode while an epoch runs and in eval mode between
    epochs; it ends in eval mode. Training that leaves the finite numbers ends with an epoch of `diverged=True`, not
    with an error. Scales of bounded BatchNorms are trained as `parameter_groups` says.

    Args:
        model: returns logits [B, K].
        data: a `Data` (its training part is used), a `Split`, or (inputs [N, ...], targets [N]).
        lr: initial learning rate.
        epochs: at most so many passes over the data; a `penalty` may finish earlier.
        batch_size: samples a step; the last incomplete batch of an epoch is used too.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter but those scales.
        schedule: multiplier of the rate by epoch, `Steps` or `Cosine`; None keeps it constant.
        nesterov: whether SGD corrects its momentum by Nesterov's rule.
        epoch_steps: end every epoch after so many steps, for schedules shorter than a pass over the data.
        autocast: run the network in bfloat16 where torch holds that to be safe; weights and loss stay float32.
        regularizer: a `Regularizer`, for instance `isometry.KernOrth()`.
        penalty: what a pruner adds to the loss and its gradients.
        optimizer: an optimizer of this model's parameters (see `isometry.surgery.transfer_optimizer_state`), in place of a new SGD; its
            own rates are multiplied by the schedule while it trains, and lr, momentum and weight_decay are not used.
        seed: of the shuffling and of whatever is drawn at random.
        checkpoint: a file that is written after every epoch and from which an interrupted training goes on: only the
            epochs not yet done are yielded. An epoch is written when the next one is asked for, so that what the
            caller does with an epoch is done before it counts as done.

    Yields:
        `Epoch`.

    Raises:
        ValueError: empty data, inputs and targets of different length, no trainable parameter, non-positive numbers,
            an optimizer of other parameters, or a checkpoint of another training.
    """
    split = data.train if isinstance(data, Data) else Split(*data)
    augment = data.augment if isinstance(data, Data) else None
    _check(
        model, split, lr=lr, epochs=epochs, batch_size=batch_size, epoch_steps=1 if epoch_steps is None else epoch_steps
    )
    recipe = Recipe(
        lr, epochs, batch_size, momentum, weight_decay, schedule, nesterov, epoch_steps, autocast, regularizer
    )
    if optimizer is not None:
        _check_optimizer(model, optimizer)
    loop = _Loop(model, split, recipe, penalty, optimizer, augment, seed)
    return loop.run(None if checkpoint is None else Path(checkpoint))


def _check(model: nn.Module, split: Split, **positive: float) -> None:
    if not len(split.inputs) or len(split.inputs) != len(split.targets):
        raise ValueError(
            f"train() got {len(split.inputs)} inputs and {len(split.targets)} targets; it takes as many of one as of "
            "the other and at least one, e.g. train(model, isometry.data.load('digits'), lr=0.01, epochs=10)."
        )
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"train() got {name}={value}; it takes a positive number, e.g. lr=0.01, epochs=10.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("train() got a model without trainable parameters; call model.requires_grad_(True) first.")


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if wanted - held:
        raise ValueError(
            f"train() got an optimizer that holds {len(wanted & held)} of the model's {len(wanted)} trainable parameters: "
            "it was made for another network, or for this one before surgery. Carry its state over: "
            "isometry.surgery.transfer_optimizer_state(optimizer, model, pruned), or leave optimizer out."
        )


class _Loop:
    """The state of one training: model, optimizer, place in the data."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        recipe: Recipe,
        penalty: Penalty | None,
        optimizer: torch.optim.Optimizer | None,
        augment: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        device = parameters[0].device
        self.model, self.recipe, self.penalty, self.augment = model, recipe, penalty, augment
        dtype = parameters[0].dtype if split.inputs.is_floating_point() else None
        self.inputs, self.targets = split.inputs.to(device, dtype), split.targets.to(device)
        self.flat = any(isinstance(module, nn.Conv2d) for module in model.modules())
        if self.flat:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The fused kernel is one pass over the parameters; where it does not exist torch's default does.
        fused = device.type in ("cpu", "cuda") and all(p.dtype == torch.float32 for p in parameters)
        self.optimizer = optimizer or torch.optim.SGD(
            parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            fused=fused or None,
        )
        # Fused kernels read parameters and state in the order of memory, which must be the same.
        for p, state in self.optimizer.state.items():
            state |= {key: _laid_out(value, p) for key, value in state.items()}
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.order = torch.Generator().manual_seed(seed)
        self.noise = _Noise(seed, device)
        self.step = self.done = 0
        self.seed = seed

    def identity(self) -> str:
        """Return what this training is: settings, starting weights, data, optimizer and penalty, as JSON."""
        settings = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        if self.recipe.regularizer is not None:
            settings["regularizer"] = repr(self.recipe.regularizer)
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        return json.dumps(
            {
                **settings,
                "seed": self.seed,
                "samples": len(self.inputs),
                "data": _digest([self.targets, self.inputs[:: max(1, len(self.inputs) // 4096)]]),
                "augment": None if self.augment is None else _told(self.augment),
                "weights": _digest(self.model.state_dict().values()),
                "optimizer": [type(self.optimizer).__name__, self.rates, groups],
                "penalty": None if self.penalty is None else self.penalty.identity(),
            },
            default=repr,
        )

    def run(self, checkpoint: Path | None) -> Iterator[Epoch]:
        identity = ""
        if checkpoint is not None:
            identity = self.identity()
            if checkpoint.exists():
                self.resume(checkpoint, identity)
        diverged = False
        try:
            while self.done < self.recipe.epochs and not diverged:
                if self.penalty is not None and self.penalty.finished(self.step):
                    break
                epoch = self.epoch(self.done + 1)
                diverged = epoch.diverged
                yield epoch
                self.done += 1
                if checkpoint is not None and not diverged:
                    self.save(checkpoint, identity)
        finally:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            self.model.eval()

    def epoch(self, number: int) -> Epoch:
        start = time.perf_counter()
        recipe = self.recipe
        multiplier = recipe.schedule(number, recipe.epochs) if recipe.schedule else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier
        order = torch.randperm(len(self.inputs), generator=self.order).to(self.inputs.device)
        loss_sum, correct = (torch.zeros((), device=self.inputs.device) for _ in range(2))
        seen, diverged = 0, False
        self.model.train()
        with self.noise:
            for batch in order.split(recipe.batch_size)[: recipe.epoch_steps]:
                if self.penalty is not None and self.penalty.finished(self.step):
                    break
                logits, loss = self.update(batch)
                loss_sum += loss * len(batch)
                correct += (logits.argmax(1) == self.targets[batch]).sum()
                seen += len(batch)
                self.step += 1
                if self.step % 200 == 0 and not math.isfinite(float(loss_sum)):
                    break
        self.model.eval()
        # The last step's damage shows in the weights only.
        whole = all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad)
        diverged = not math.isfinite(float(loss_sum)) or not whole
        return Epoch(
            number,
            float(loss_sum) / seen,
            float(correct) / seen,
            self.rates[0] * multiplier,
            self.step,
            time.perf_counter() - start,
            diverged,
        )

    def update(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[batch]
        if self.augment is not None:
            inputs = self.augment(inputs)
        if self.flat and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.recipe.autocast):
            logits = self.model(inputs)
        loss = total = F.cross_entropy(logits.float() if self.recipe.autocast else logits, self.targets[batch])
        if self.recipe.regularizer is not None:
            total = total + self.recipe.regularizer.loss(self.model)
        if self.penalty is not None and (extra := self.penalty.loss(self.step)) is not None:
            total = total + extra
        self.optimizer.zero_grad()
        total.backward()
        if self.penalty is not None:
            self.penalty.gradients(self.step)
        self.optimizer.step()
        if self.penalty is not None:
            self.penalty.project(self.step)
        if self.recipe.regularizer is not None:
            self.recipe.regularizer.project(self.model)
        return logits.detach(), loss.detach()

    def save(self, path: Path, identity: str) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        tensors["order"] = self.order.get_state()
        tensors |= {f"noise.{name}": state for name, state in self.noise.states.items()}
        if self.penalty is not None:
            tensors |= {f"penalty.{name}": tensor for name, tensor in self.penalty.state().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # Tied parameters share memory, which the format does not allow: each name gets a copy of its own.
        save_file(
            {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
            partial,
            {"training": identity, "done": str(self.done), "step": str(self.step)},
        )
        os.replace(partial, path)

    def resume(self, path: Path, identity: str) -> None:
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise ValueError(
                f"train() found a checkpoint {path} that is no whole safetensors file ({error}). Delete it or name another: "
                "train(..., checkpoint='other.safetensors')."
            ) from error
        if meta.get("training") != identity:
            theirs, ours = json.loads(meta.get("training", "{}")), json.loads(identity)
            other = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
            raise ValueError(
                f"train() found the checkpoint {path} of another training: it differs in {', '.join(other)}. Delete it or name "
                "another: train(..., checkpoint='other.safetensors')."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        state = self.optimizer.state_dict()
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        state["state"] = {}
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            state["state"].setdefault(int(index), {})[key] = _laid_out(value, held[int(index)])
        self.optimizer.load_state_dict(state)
        self.order.set_state(tensors["order"])
        self.noise.states = part("noise.")
        if self.penalty is not None:
            self.penalty.restore(part("penalty."))
        self.done, self.step = int(meta["done"]), int(meta["step"])


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """Return a state tensor of a parameter's shape in that parameter's order of memory; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _told(change: object) -> str:
    """Return a description that is the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(change))


def _digest(tensors: Iterable[Tensor]) -> str:
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
    return f"{found:08x}"


class _Noise(contextlib.AbstractContextManager["_Noise"]):
    """The global generators' states of this training, swapped in while it runs and out again afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else None
        with self._fork():
            torch.default_generator.manual_seed(seed)
            if self.device:
                torch.cuda.manual_seed(seed)
            self.states = self._read()

    def _fork(self) -> contextlib.AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device] if self.device else [])

    def _read(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device else {})

    def __enter__(self) -> _Noise:
        self.outside = self._fork()
        self.outside.__enter__()
        torch.set_rng_state(self.states["cpu"])
        if self.device:
            torch.cuda.set_rng_state(self.states["cuda"], self.device)
        return self

    def __exit__(self, *error: object) -> None:
        self.states = self._read()
        self.outside.__exit__(None, None, None)
