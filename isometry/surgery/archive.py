"""A pruned network in one safetensors file: its weights and the plan that made its shape."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, join_names, signed
from isometry.files import read_tensors, write_tensors
from isometry.networks import InputSpec, find_inputs
from isometry.networks.checks import check_module
from isometry.networks.masks import refresh, set_masks
from isometry.networks.modules import clone, is_transposed, unwrap
from isometry.networks.units import unit_weight
from isometry.surgery.adoption import fill, unsaved_buffers
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import remove

__all__ = ["Loaded", "load", "save"]

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


class Loaded(NamedTuple):
    """What `load` returns: the pruned `model` and its `plan`."""

    model: nn.Module
    plan: Plan


@signed("save")
def save(result: Applied, path: str | os.PathLike[str]) -> None:
    """Write a pruned network to one safetensors file, weights and plan, atomically and without pickle.

    Masked weights are written as they are, the masks beside the weights behind them. The file also holds the kinds of
    its modules, the shape of its inputs, and a digest of everything.

    Args:
        result: what `prune` returned, or anything with a `model` and its `plan`.
        path: the file; its folder is created where it does not exist.

    Raises:
        TypeError: `result` is a network alone.
        ValueError: a layer of the network has another number of units than its plan keeps; a state that holds more than
            tensors; a suffix of pickles, e.g. ".pth".
    """
    if not (isinstance(getattr(result, "model", None), nn.Module) and isinstance(getattr(result, "plan", None), Plan)):
        raise InvalidTypeError(
            f"got {type(result).__name__}; it takes what prune() returned, with its model and plan, e.g. "
            "isometry.save(isometry.prune(model, isometry.L1(), 0.5), 'pruned.safetensors'). Of a network alone write the "
            "weights: torch.save(model.state_dict(), 'weights.pt')."
        )
    _check_path(path, "isometry.save(result, 'pruned.safetensors')")
    if Path(path).is_dir():
        raise InvalidValueError(
            f"got the path {os.fspath(path)}, which is a folder; it takes a file, e.g. "
            f"isometry.save(result, {str(Path(path) / 'pruned.safetensors')!r})."
        )
    if Path(path).suffix in _PICKLES:
        raise InvalidValueError(
            f"got the path {os.fspath(path)}, whose suffix promises a pickle; it writes safetensors, e.g. "
            f"isometry.save(result, {str(Path(path).with_suffix('.safetensors'))!r})."
        )
    _check_widths(result)
    metadata = {"format": "isometry-2", "plan": result.plan.to_json(), "architecture": _describe(result.model)}
    if (stored := _to_json(_input_spec(result))) is not None:
        metadata["inputs"] = stored
    kinds = {name: str(buffer.dtype).removeprefix("torch.") for name, buffer in unsaved_buffers(result.model).items()}
    if kinds:
        metadata["unsaved"] = json.dumps(kinds)
    state = result.model.state_dict()
    if strange := [
        f"{name} ({type(entry).__name__})" for name, entry in state.items() if not isinstance(entry, Tensor)
    ]:
        raise InvalidValueError(
            f"got a network whose state holds more than tensors, which safetensors cannot: {join_names(strange)}. Let its "
            "get_extra_state() return a tensor, or keep the rest beside it, e.g. torch.save(result.model.state_dict(), 'state.pt')."
        )
    write_tensors(path, state, metadata)


def _check_path(path: object, example: str) -> None:
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(
            f"got a path of type {type(path).__name__}; it takes the name of a file, e.g. {example}."
        )


def _input_spec(result: Applied) -> Any:
    """Return the inputs that the network was pruned with; else those it is found to take, if any."""
    known = getattr(result, "input_spec", None)
    if known is not None:
        return known
    try:
        return find_inputs(result.model)
    except ValueError:
        return None


def _to_json(spec: Any) -> str | None:
    """Return the description of inputs as JSON; None where it holds what JSON does not know."""

    def encoded(part: InputSpec) -> dict[str, Any]:
        return {"shape": part.shape, "vocabulary": part.vocabulary}

    try:
        return None if spec is None else json.dumps(spec, default=encoded)
    except (TypeError, AttributeError):
        return None


def _from_json(text: str) -> Any:
    """Return the description of inputs that `_to_json` wrote."""

    def decoded(content: dict[str, Any]) -> Any:
        is_spec = set(content) == {"shape", "vocabulary"}
        return InputSpec(tuple(content["shape"]), content["vocabulary"]) if is_spec else content

    spec = json.loads(text, object_hook=decoded)
    return tuple(spec) if isinstance(spec, list) else spec


def _draw(spec: Any, model: nn.Module) -> Any:
    """Return two inputs as described."""
    if isinstance(spec, InputSpec):
        return spec.draw(model, 2)
    if isinstance(spec, dict):
        return {key: _draw(part, model) for key, part in spec.items()}
    return tuple(_draw(part, model) for part in spec) if isinstance(spec, tuple) else spec


def _check_widths(result: Applied) -> None:
    """Raise an error unless every layer of the plan has as many units as the plan keeps of it."""
    layers = dict(result.model.named_modules())
    for name in result.plan.removed:
        layer, kept = layers.get(name), len(result.plan.kept(name))
        units, made = None, unit_weight(layer) if layer is not None else None
        if layer is not None and made is not None:
            width = getattr(layer, made[0]).shape[made[1]]
            units = width * getattr(layer, "groups", 1) if is_transposed(layer) else width
        if units != kept:
            raise InvalidValueError(
                f"got a plan that does not lead to its network: {name} keeps {kept} of {result.plan.widths[name]} units by "
                f"the plan and has {units} in the network. Save each network with its own plan, and one that was pruned "
                "several times with all of them, e.g. isometry.save(first.then(second), 'pruned.safetensors')."
            )


@signed("load")
def load(path: str | os.PathLike[str], model: nn.Module, *, inputs: Any = None) -> Loaded:
    """Return a pruned copy of the dense `model` with the weights of the file, and the plan; `model` is left alone.

    The copy is in eval mode and in the precision of the file.

    Args:
        path: a file that `save` wrote.
        model: a network of the original architecture; its weights do not matter.
        inputs: [B, ...], a batch that it accepts, for the trace; None draws one of the shape in the file, or, for a file of
            an earlier version, of a shape that the model is found to take.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such archive, is damaged, holds NaN, or belongs to another architecture. Files of
            earlier versions have no digest and no kinds of modules: they are read without these two checks.
    """
    _check_path(path, "isometry.load('pruned.safetensors', model)")
    check_module(model, "isometry.load('pruned.safetensors', isometry.networks.build('resnet-56'))")
    model = unwrap(model)
    tensors, plan, architecture, spec, unsaved = _read(path)
    if any(plan.removed.values()):
        if inputs is None:
            inputs = _draw(spec or find_inputs(model, "load(path, model, inputs=inputs)"), model)
        pruned = remove(model, plan, inputs, check=False)
    else:
        pruned = clone(model)
    set_masks(pruned, _missing_masks(pruned, tensors))
    expected = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != stored:
        name = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))[0]
        raise InvalidValueError(
            f"got {path}, which belongs to another network: after its plan, {name} {_shape(expected, name)} here and "
            f"{_shape(stored, name)} in the file. Build the network it was pruned from, e.g. load({str(path)!r}, "
            "isometry.networks.build('resnet-56'))."
        )
    _check_modules(path, architecture, _describe(pruned))
    fill(pruned, tensors, unsaved)
    refresh(pruned)
    return Loaded(pruned.eval(), plan)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    """Say which shape a tensor has among `shapes`, or that it is missing."""
    return f"has the shape {shapes[name]}" if name in shapes else "is missing"


def _missing_masks(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return {parameter: its mask} of the masks of a file, as torch.nn.utils.prune names them, that a network lacks."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: mask
        for name, mask in (
            (key.removesuffix("_mask"), tensor) for key, tensor in tensors.items() if key.endswith("_mask")
        )
        if f"{name}_orig" in tensors and name in parameters and parameters[name].shape == mask.shape
    }


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


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Plan, str | None, Any, dict[str, str] | None]:
    """Return tensors, plan, what `_describe` returned when the file was written, the inputs, and {unsaved buffer: dtype}.

    The last three are None in files of earlier versions.
    """
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        text = f"load() found no file {os.fspath(path)}; it takes one that isometry.save wrote, e.g. load('pruned.safetensors', model)."
        raise FileNotFoundError(text) from None
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
        spec = _from_json(metadata["inputs"]) if "inputs" in metadata else None
        unsaved = json.loads(metadata["unsaved"]) if "unsaved" in metadata else None
        return tensors, Plan.from_json(metadata["plan"]), metadata.get("architecture"), spec, unsaved
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"got {path}, which carries a plan that cannot be read ({error}); write it with isometry.save()."
        ) from error
