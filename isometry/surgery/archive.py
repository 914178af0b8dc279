"""A pruned network in one safetensors file: its weights and the plan that made its shape."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isometry.surgery.plan import Plan
from isometry.surgery.removal import remove

__all__ = ["read", "write"]


def write(model: nn.Module, plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the weights of a pruned `model` and its `plan` to one safetensors file, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, partial, {"format": "isometry-1", "plan": plan.to_json()})
    os.replace(partial, path)


def read(path: str | os.PathLike[str], model: nn.Module, inputs: Tensor) -> tuple[nn.Module, Plan]:
    """Return a pruned copy of the dense `model` with the weights of the file, and the plan.

    Args:
        path: a file that `write` wrote.
        model: a network of the original architecture; its weights do not matter.
        inputs: [B, ...], a batch that it accepts, for the trace.

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
    plan = Plan.from_json(meta["plan"])
    pruned = remove(model, plan, inputs)
    expected = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))[0]
        raise ValueError(
            f"{path} belongs to another network: after its plan, {wrong} has the shape {expected.get(wrong)} here and "
            f"{found.get(wrong)} in the file. Build the network it was pruned from and load again."
        )
    pruned.load_state_dict(tensors)
    return pruned, plan
