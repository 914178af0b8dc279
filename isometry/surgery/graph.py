"""The dependency graph of a network: Torch-Pruning behind one door."""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isometry.data.nests import describe, tensors_in
from isometry.errors import InvalidValueError, join_names
from isometry.networks.bounded import BOUNDED
from isometry.networks.modules import UNIT_LAYERS, call, modes_preserved, requires_grad_preserved, restoring
from isometry.surgery.groups import Coupling, UnitGroup, group_units, unit_count
from isometry.surgery.support import check_supported, reason_fixed

__all__ = ["Graph", "output_tensors", "trace"]

_LONGEST = 200
_ADD_DEP = tp.dependency.Group.add_dep  # replaced during a walk


@dataclass
class Graph:
    """A traced network: its groups, and Torch-Pruning's graph that cuts them.

    Training changes the weights and not the graph: a network that is trained in place need not be traced again.

    Attributes:
        model: the network, changed in place by `cut`.
        groups: in the network's order.
        fixed: {layer: why its units cannot be removed}.
        dependencies: Torch-Pruning's graph.
    """

    model: nn.Module
    groups: list[UnitGroup]
    fixed: dict[str, str]
    dependencies: tp.DependencyGraph = field(repr=False)

    def cut(self, group: UnitGroup, units: Sequence[int]) -> None:
        """Remove `units` of a group from the traced model, in place."""
        trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        root = self.model.get_submodule(group.root)
        pruner = self.dependencies.get_pruner_of_module(root)
        channels = next(member for member in group.members if member.layer == group.root).take(units)
        self.dependencies.get_pruning_group(root, pruner.prune_out_channels, channels).prune(record_history=False)
        for name, parameter in self.model.named_parameters():  # those that were cut are new
            parameter.requires_grad_(trainable[name])


class _BoundedPruner(tp.pruner.function.BatchnormPruner):
    """How Torch-Pruning is to cut a bounded BatchNorm, which may have no shift."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> nn.Module:
        """Remove channels of a layer, in place."""
        removed = set(idxs)
        kept = [channel for channel in range(layer.num_features) if channel not in removed]
        layer.num_features = len(kept)
        if layer.running_mean is not None:
            layer.running_mean, layer.running_var = layer.running_mean[kept], layer.running_var[kept]
        for name in ("weight", "bias"):
            if isinstance(parameter := getattr(layer, name), nn.Parameter):
                setattr(layer, name, self._prune_parameter_and_grad(parameter, kept, 0))
        return layer

    prune_in_channels = prune_out_channels


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Trace `model` at `inputs` and return its groups; modes and `requires_grad` stay as they were.

    Args:
        model: any module that Torch-Pruning's autograd trace can follow.
        inputs: [B, ...], a batch that it accepts, or a tuple or dict of its arguments.

    Returns:
        `Graph`; `fixed` says of each layer whose units cannot be removed why that is.

    Raises:
        ValueError: inputs that are empty or that the network does not accept; tied weights, weight_norm or other
            parametrizations, masks of torch.nn.utils.prune, by the name of the layer and with the call that resolves
            it.
    """
    check_supported(model)
    if not all(tensor.numel() for tensor in tensors_in(inputs)):
        raise InvalidValueError(
            f"got inputs of {describe(inputs)}, which hold nothing; it takes a batch that the network "
            "accepts, e.g. inputs=torch.randn(2, 3, 32, 32)."
        )
    dependencies = _build_dependencies(model, inputs)
    groups, fixed = _find_groups(model, dependencies)
    return Graph(model, groups, fixed, dependencies)


def _build_dependencies(model: nn.Module, inputs: Any) -> tp.DependencyGraph:
    graph = tp.DependencyGraph()
    # The autograd trace sees the layers whose parameters take a gradient. Torch-Pruning sets eval mode.
    with (
        modes_preserved(model),
        requires_grad_preserved(model, True),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            return graph.build_dependency(
                model,
                inputs,
                forward_fn=call,
                output_transform=output_tensors,
                customized_pruners={kind: _BoundedPruner() for kind in BOUNDED},
                verbose=False,
            )
        except (RuntimeError, TypeError, IndexError) as error:
            raise InvalidValueError(
                f"cannot follow the forward pass at inputs of {describe(inputs)} "
                f"({textwrap.shorten(str(error), _LONGEST)}). Pass a batch that the network accepts, e.g. "
                "inputs=torch.randn(2, 3, 32, 32)."
            ) from error


def _find_groups(model: nn.Module, graph: tp.DependencyGraph) -> tuple[list[UnitGroup], dict[str, str]]:
    """Return the groups in the network's order, and {layer: why its units cannot be removed} of the others."""
    names = {module: name for name, module in model.named_modules()}
    order = {name: index for index, name in enumerate(names.values())}
    layers = {names[m]: m for m in graph.module2node if isinstance(m, UNIT_LAYERS) and m in names}
    steps = 100 * sum(len(node.dependencies) for node in graph.module2node.values()) + 1000
    width = 10 * max([10_000, *(max(p.shape, default=1) for p in model.parameters())])
    groups: list[UnitGroup] = []
    covered: set[str] = set()
    fixed: dict[str, str] = {}
    partial: dict[str, str] = {}
    # The widest first: behind a concatenation it holds the units of all that were joined.
    for name, layer in sorted(layers.items(), key=lambda entry: (-unit_count(entry[1]), order[entry[0]])):
        if name in fixed or name in covered:
            continue
        try:
            with _bounded_walk(steps, width):
                couplings = _walk(graph, layer, names)
            group = group_units(couplings)
            reason = reason_fixed(couplings)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            text = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST)
            fixed[name] = f"its units cannot be followed through the network ({text})"
            continue
        if part := [member.layer for member in group.of("units") if member.width != unit_count(layers[member.layer])]:
            partial[name] = f"its units are coupled with part of those of {join_names(part)}, or several with one"
        elif reason:
            fixed |= dict.fromkeys(group.layers, reason)
        else:
            groups.append(group)
            covered |= set(group.layers)
    fixed |= {name: why for name, why in partial.items() if name not in covered}
    for name, module in model.named_modules():
        if isinstance(module, UNIT_LAYERS) and module not in graph.module2node:
            fixed[name] = "the forward pass does not reach it as a module"
    return sorted(groups, key=lambda group: order[group.root]), fixed


def _walk(graph: tp.DependencyGraph, layer: nn.Module, names: Mapping[nn.Module, str]) -> list[Coupling]:
    """Return everything that is cut with all units of a layer, the layer itself first."""
    cut = graph.get_pruner_of_module(layer).prune_out_channels
    couplings = []
    for item in graph.get_pruning_group(layer, cut, list(range(unit_count(layer)))):
        node = item.dep.target
        parameter = isinstance(node.module, nn.Parameter)
        couplings.append(
            Coupling(
                node.module,
                graph._param_to_name.get(node.module) if parameter else names.get(node.module),
                "out_channels" in item.dep.handler.__name__,
                node.type == tp.ops.OPTYPE.OUTPUT,
                item.idxs,
                item.root_idxs,
                node.grad_fn,
            )
        )
    return couplings


def _bounded_walk(steps: int, width: int) -> contextlib.AbstractContextManager[None]:
    """Raise a RuntimeError where Torch-Pruning's walk through the graph goes in circles, with ever more indices.

    Args:
        steps: the most that a walk may take.
        width: the most indices that one of them may have.
    """
    taken = 0

    def counted(group: Any, dep: Any, idxs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps or len(idxs) > width:
            raise RuntimeError("the walk through the dependency graph does not end")
        return _ADD_DEP(group, dep, idxs)

    tp.dependency.Group.add_dep = counted
    return restoring(lambda: setattr(tp.dependency.Group, "add_dep", _ADD_DEP))


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating point tensors of a network's output: a tensor, or containers or an object that hold some."""
    content = vars(output) if hasattr(output, "__dict__") and not isinstance(output, Tensor) else output
    leaves = tree_leaves(dict(content) if isinstance(content, Mapping) else content)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise InvalidValueError(
            f"got a network that returns {type(output).__name__} without floating point tensors; it takes one that "
            "returns a tensor, or a tuple, list or dict of them, e.g. model=torch.nn.Linear(4, 2)."
        )
    return tensors
