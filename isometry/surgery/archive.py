"""A pruned network in one safetensors file: its weights and the plan that made its shape."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, join_names, signed
from isometry.files import read_tensors, write_tensors
from isometry.networks import example_inputs
from isometry.networks.modules import is_transposed, unit_weight
from isometry.surgery.adoption import fill
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import remove

__all__ = ["Loaded", "load", "save"]


class Loaded(NamedTuple):
    """What `load` returns: the pruned `model` and its `plan`."""

    model: nn.Module
    plan: Plan


@signed("save")
def save(result: Applied, path: str | os.PathLike[str]) -> None:
    """Write a pruned network to one safetensors file, weights and plan, atomically and without pickle.

    The file also holds the kinds of its modules, and a digest of everything.

    Args:
        result: what `prune` returned, or anything with a `model` and its `plan`.
        path: the file; its folder is created where it does not exist.

    Raises:
        TypeError: `result` is a network alone.
        ValueError: a layer of the network has another number of units than its plan keeps.
    """
    if not (isinstance(getattr(result, "model", None), nn.Module) and isinstance(getattr(result, "plan", None), Plan)):
        raise InvalidTypeError(
            f"got {type(result).__name__}; it takes what prune() returned, with its model and plan, e.g. "
            "isometry.save(isometry.prune(model, isometry.L1(), 0.5), 'pruned.safetensors')."
        )
    _check_widths(result)
    metadata = {"format": "isometry-2", "plan": result.plan.to_json(), "architecture": _describe(result.model)}
    write_tensors(path, result.model.state_dict(), metadata)


def _check_widths(result: Applied) -> None:
    """Raise an error unless every layer of the plan has as many units as the plan keeps of it."""
    layers = dict(result.model.named_modules())
    for name in result.plan.removed:
        layer, kept = layers.get(name), len(result.plan.kept(name))
        units, made = None, unit_weight(layer) if layer is not None else None
        if layer is not None and made is not None:
            width = layer.get_parameter(made[0]).shape[made[1]]
            units = width * getattr(layer, "groups", 1) if is_transposed(layer) else width
        if units != kept:
            raise InvalidValueError(
                f"got a plan that does not lead to its network: {name} keeps {kept} of {result.plan.widths[name]} units by "
                f"the plan and has {units} in the network. Save each network with its own plan, and one that was pruned "
                "several times with all of them, e.g. isometry.save(first.then(second), 'pruned.safetensors')."
            )


@signed("load")
def load(path: str | os.PathLike[str], model: nn.Module, *, inputs: Tensor | None = None) -> Loaded:
    """Return a pruned copy of the dense `model` with the weights of the file, and the plan; `model` is left alone.

    The copy is in eval mode and in the precision of the file.

    Args:
        path: a file that `save` wrote.
        model: a network of the original architecture; its weights do not matter.
        inputs: [B, ...], a batch that it accepts, for the trace; None takes the shape from the first layer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such archive, is damaged, holds NaN, or belongs to another architecture. Files of
            earlier versions have no digest and no kinds of modules: they are read without these two checks.
    """
    tensors, plan, architecture = _read(path)
    if inputs is None:
        inputs = example_inputs(model, 2, call="load(path, model, inputs=inputs)")
    pruned = remove(model, plan, inputs)
    expected = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != stored:
        name = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))[0]
        raise InvalidValueError(
            f"got {path}, which belongs to another network: after its plan, {name} has the shape {expected.get(name)} "
            f"here and {stored.get(name)} in the file. Build the network it was pruned from, e.g. load({str(path)!r}, "
            "isometry.networks.build('resnet-56'))."
        )
    _check_modules(path, architecture, _describe(pruned))
    fill(pruned, tensors)
    return Loaded(pruned.eval(), plan)


def _describe(model: nn.Module) -> str:
    """Return the kinds of the network and of its innermost modules by name, as JSON."""
    leaves = {name: type(module).__name__ for name, module in model.named_modules() if not list(module.children())}
    return json.dumps({"class": type(model).__name__, "modules": leaves})


def _check_modules(path: str | os.PathLike[str], stored: str | None, expected: str) -> None:
    """Raise an error that names the first module whose kind in the file is another than here, an activation for instance."""
    if stored is None:  # a file of an earlier version
        return
    theirs, ours = json.loads(stored), json.loads(expected)
    there, here = theirs["modules"], ours["modules"]
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if different:
        name = different[0]
        raise InvalidValueError(
            f"got {path}, which belongs to another network ({theirs['class']}): {name or 'the network'} is {here.get(name)} "
            f"here and {there.get(name)} in the file. Build the network it was pruned from, e.g. load({str(path)!r}, "
            "isometry.networks.build('resnet-56'))."
        )


def _has_nan(tensor: Tensor) -> bool:
    if tensor.is_complex():
        return bool(tensor.isnan().any())
    return tensor.is_floating_point() and bool(tensor.float().isnan().any())  # eight-bit types know no isnan


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Plan, str | None]:
    """Return tensors, plan, and what `_describe` returned when the file was written (None in those of earlier versions)."""
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise InvalidValueError(f"cannot read the archive: {error}; write it with isometry.save().") from error
    if "plan" not in metadata:
        raise InvalidValueError(f"got {path}, which carries no plan; it takes a file of isometry.save(result, path).")
    if broken := [name for name, tensor in tensors.items() if _has_nan(tensor)]:
        raise InvalidValueError(
            f"got {path}, which holds NaN in {join_names(broken)}; prune and save a network whose training did not diverge. "
            f"safetensors.torch.load_file({str(path)!r}) returns the tensors as they are."
        )
    try:
        return tensors, Plan.from_json(metadata["plan"]), metadata.get("architecture")
    except ValueError as error:
        raise InvalidValueError(
            f"got {path}, which carries a plan that cannot be read ({error}); write it with isometry.save()."
        ) from error
