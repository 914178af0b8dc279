"""A pruned network in one safetensors file: its weights and the plan that made its shape."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isometry.networks import example_inputs
from isometry.surgery.adoption import fill
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import remove

__all__ = ["Loaded", "load", "save"]


class Loaded(NamedTuple):
    """What `load` returns: the pruned `model` and its `plan`."""

    model: nn.Module
    plan: Plan


def save(result: Applied, path: str | os.PathLike[str]) -> None:
    """Write a pruned network to one safetensors file, weights and plan, atomically and without pickle.

    Args:
        result: what `prune` returned, or anything with a `model` and its `plan`.
        path: the file; its folder is made where absent.

    Raises:
        TypeError: `result` is a network alone.
    """
    if not (isinstance(getattr(result, "model", None), nn.Module) and isinstance(getattr(result, "plan", None), Plan)):
        raise TypeError(
            f"save() got {type(result).__name__}; it takes what prune() returned, with its model and plan, e.g. "
            "isometry.save(isometry.prune(model, isometry.L1(), 0.5), 'pruned.safetensors')."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in result.model.state_dict().items()}
    save_file(tensors, partial, {"format": "isometry-1", "plan": result.plan.to_json()})
    os.replace(partial, path)


def load(path: str | os.PathLike[str], model: nn.Module, *, inputs: Tensor | None = None) -> Loaded:
    """Return a pruned copy of the dense `model` with the weights of the file, and the plan; `model` is left alone.

    The copy is in eval mode and in the precision of the file.

    Args:
        path: a file that `save` wrote.
        model: a network of the original architecture; its weights do not matter.
        inputs: [B, ...], a batch that it accepts, for the trace; None asks the first layer for the shape.

    Raises:
        ValueError: the file is no such archive, is truncated, or belongs to another architecture.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); write it with isometry.save().") from error
    if "plan" not in meta:
        raise ValueError(f"{path} carries no plan; it takes a file that isometry.save(result, path) wrote.")
    try:
        plan = Plan.from_json(meta["plan"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} carries a plan that cannot be read ({error}); write it with isometry.save()."
        ) from error
    if inputs is None:
        inputs = example_inputs(model, 2, call="load(path, model, inputs=inputs)")
    pruned = remove(model, plan, inputs)
    expected = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))[0]
        raise ValueError(
            f"{path} belongs to another network: after its plan, {wrong} has the shape {expected.get(wrong)} here and "
            f"{found.get(wrong)} in the file. Build the network it was pruned from and load again."
        )
    fill(pruned, tensors)
    return Loaded(pruned.eval(), plan)
