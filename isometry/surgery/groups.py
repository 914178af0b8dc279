"""Groups: the units of a network that must leave together, found by tracing its dependency graph."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isometry.networks.bounded import BOUNDED
from isometry.surgery.support import check_supported

__all__ = ["Graph", "Member", "UnitGroup", "output_tensors", "trace"]


class _BoundedPruner(tp.pruner.function.BatchnormPruner):
    """How Torch-Pruning is to cut a bounded BatchNorm, which may have no shift."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> nn.Module:
        """Take channels out of a layer, in place."""
        gone = set(idxs)
        kept = [channel for channel in range(layer.num_features) if channel not in gone]
        layer.num_features = len(kept)
        if layer.running_mean is not None:
            layer.running_mean, layer.running_var = layer.running_mean[kept], layer.running_var[kept]
        for name in ("weight", "bias"):
            if isinstance(parameter := getattr(layer, name), nn.Parameter):
                setattr(layer, name, self._prune_parameter_and_grad(parameter, kept, 0))
        return layer

    prune_in_channels = prune_out_channels


_UNIT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (nn.modules.batchnorm._BatchNorm,)
# Normalisations that mix channels: taking a channel away changes the statistics of the ones that stay.
_MIXING = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Member:
    """One layer's share in a group.

    Attributes:
        layer: the layer's name in the network.
        role: "units" (its outputs leave), "inputs" (its input channels leave), "norm" (a BatchNorm's channels) or
            "other".
        indices: {unit of the group: indices of this layer that leave with it}.
    """

    layer: str
    role: str
    indices: dict[int, tuple[int, ...]]

    def take(self, units: Iterator[int] | tuple[int, ...] | list[int]) -> list[int]:
        """Return this layer's indices for `units` of the group, rising."""
        return sorted({index for unit in units for index in self.indices.get(unit, ())})


@dataclass(frozen=True)
class UnitGroup:
    """Units of one or more layers that can only leave together.

    Attributes:
        root: the name of the layer whose units number the group.
        units: how many units it has.
        members: every layer concerned.
        mixes: names of the layers in it that normalize over channels (LayerNorm, GroupNorm), so that no removal is
            exact.
    """

    root: str
    units: int
    members: tuple[Member, ...]
    mixes: tuple[str, ...] = ()

    def of(self, role: str) -> list[Member]:
        """Return the members of one role."""
        return [member for member in self.members if member.role == role]

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose units leave."""
        return [member.layer for member in self.of("units")]


@dataclass
class Graph:
    """A traced network: its groups, and Torch-Pruning's graph that cuts them.

    Attributes:
        model: the network, cut in place by `cut`.
        groups: in the network's order.
        fixed: {layer: why its units cannot leave}.
        dependencies: Torch-Pruning's graph.
        flags: {parameter: whether it is trained}, restored after every cut.
    """

    model: nn.Module
    groups: list[UnitGroup]
    fixed: dict[str, str]
    dependencies: tp.DependencyGraph = field(repr=False)

    flags: dict[str, bool] = field(default_factory=dict)

    def cut(self, group: UnitGroup, units: tuple[int, ...] | list[int]) -> None:
        """Remove `units` of a group from the traced model, in place."""
        root = self.model.get_submodule(group.root)
        pruner = self.dependencies.get_pruner_of_module(root)
        channels = next(member for member in group.members if member.layer == group.root).take(units)
        self.dependencies.get_pruning_group(root, pruner.prune_out_channels, channels).prune(record_history=False)
        for name, p in self.model.named_parameters():  # the cut ones are new
            p.requires_grad_(self.flags.get(name, True))


def trace(model: nn.Module, inputs: Tensor) -> Graph:
    """Trace `model` at `inputs` and return its groups; modes and `requires_grad` stay as they were.

    Args:
        model: any module that Torch-Pruning's autograd trace can follow.
        inputs: [B, ...], a batch that it accepts.

    Returns:
        `Graph`; `fixed` says of each layer whose units cannot leave why that is.

    Raises:
        ValueError: tied weights, weight_norm or other parametrizations, masks of torch.nn.utils.prune, by the name of
            the layer and with the call that resolves it.
    """
    check_supported(model)
    if not inputs.numel():
        raise ValueError(
            f"prune() got inputs of shape {tuple(inputs.shape)}, which hold nothing; it takes a batch that the network accepts, "
            "e.g. prune(model, pruner, 0.5, inputs=torch.randn(2, 3, 32, 32))."
        )
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph()
    with _traceable(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                model,
                inputs,
                output_transform=output_tensors,
                customized_pruners={kind: _BoundedPruner() for kind in BOUNDED},
                verbose=False,
            )
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(
                f"prune() cannot follow the forward pass at inputs of shape {tuple(inputs.shape)}, dtype {inputs.dtype} "
                f"({error}). Pass a batch that the network accepts, e.g. "
                "prune(model, pruner, 0.5, inputs=torch.randn(2, 3, 32, 32))."
            ) from error
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    layers = {names[m]: m for m in graph.module2node if isinstance(m, _UNIT_LAYERS) and m in names}
    groups: list[UnitGroup] = []
    fixed: dict[str, str] = {}
    partial: dict[str, str] = {}
    most = 10 * max([10_000, *(max(p.shape, default=1) for p in model.parameters())])
    # The widest first: behind a concatenation it holds the units of all that were joined.
    for name, module in sorted(layers.items(), key=lambda entry: (-_width(entry[1]), order[entry[0]])):
        if name in fixed or any(name in group.layers for group in groups):
            continue
        cut = graph.get_pruner_of_module(module)
        try:
            with _bounded_walk(100 * sum(len(node.dependencies) for node in graph.module2node.values()) + 1000, most):
                tp_group = graph.get_pruning_group(module, cut.prune_out_channels, list(range(_width(module))))
            group = _unit_group(tp_group, names)
            reason = _reason_fixed(tp_group, graph, names)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            fixed[name] = f"its units cannot be followed through the network ({type(error).__name__}: {error})"
            continue
        if part := [m.layer for m in group.of("units") if sum(map(len, m.indices.values())) != _width(layers[m.layer])]:
            partial[name] = f"its units are coupled with part of those of {', '.join(part)}, or several with one"
        elif reason:
            fixed |= dict.fromkeys(group.layers, reason)
        else:
            groups.append(group)
    groups.sort(key=lambda group: order[group.root])
    covered = {layer for group in groups for layer in group.layers}
    fixed |= {name: why for name, why in partial.items() if name not in covered}
    for name, module in model.named_modules():
        if isinstance(module, _UNIT_LAYERS) and module not in graph.module2node:
            fixed[name] = "the forward pass does not reach it as a module"
    return Graph(model, groups, fixed, graph, {name: p.requires_grad for name, p in model.named_parameters()})


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating point tensors of a network's output: a tensor, or containers or an object that hold some."""
    held = vars(output) if hasattr(output, "__dict__") and not isinstance(output, Tensor) else output
    found = [
        leaf for leaf in tree_leaves(dict(held) if isinstance(held, Mapping) else held) if isinstance(leaf, Tensor)
    ]
    found = [leaf for leaf in found if leaf.is_floating_point()]
    if not found:
        raise ValueError(
            f"prune() got a network that returns {type(output).__name__} without floating point tensors; it takes one that "
            "returns a tensor, or a tuple, list or dict of them."
        )
    return found


@contextlib.contextmanager
def _bounded_walk(steps: int, width: int) -> Iterator[None]:
    """Raise a RuntimeError where Torch-Pruning's walk through the graph goes round in circles, with ever more indices.

    Args:
        steps: at most so many.
        width: at most so many indices in one of them.
    """
    kind = tp.dependency.Group
    plain, taken = kind.add_dep, 0

    def counted(group: Any, dep: Any, idxs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps or len(idxs) > width:
            raise RuntimeError("the walk through the dependency graph does not end")
        return plain(group, dep, idxs)

    kind.add_dep = counted
    try:
        yield
    finally:
        kind.add_dep = plain


@contextlib.contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Let the autograd trace see every layer: parameters require gradients, eval mode; both are put back."""
    modes = {module: module.training for module in model.modules()}
    flags = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in flags:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _unit_group(tp_group: Any, names: dict[nn.Module, str]) -> UnitGroup:
    members, mixes = [], []
    channels = len(tp_group[0].idxs)
    # The groups of a convolution must stay of one size: what has the same place in each of them leaves together.
    share = math.lcm(*(_groups(item.dep.target.module) for item in tp_group))
    units = channels // share if channels % share == 0 else channels
    for item in tp_group:
        module, handler = item.dep.target.module, item.dep.handler
        if not isinstance(module, nn.Module) or module not in names:
            continue
        indices: dict[int, list[int]] = {}
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            indices.setdefault(root % units, []).append(index)
        members.append(Member(names[module], _role(module, handler), {u: tuple(i) for u, i in indices.items()}))
        if isinstance(module, _MIXING):
            mixes.append(names[module])
    root = tp_group[0].dep.target.module
    return UnitGroup(names[root], units, tuple(members), tuple(mixes))


def _width(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _groups(module: Any) -> int:
    """Return the number of groups of a convolution, 1 for depthwise ones and all other modules."""
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == module.in_channels == module.out_channels:
        return 1
    return module.groups


def _role(module: nn.Module, handler: Any) -> str:
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, _UNIT_LAYERS):
        return "units" if "out_channels" in handler.__name__ else "inputs"
    return "other"


def _reason_fixed(tp_group: Any, graph: tp.DependencyGraph, names: dict[nn.Module, str]) -> str | None:
    """Return why the units of a group cannot leave, None where they can."""
    for item in tp_group:
        node = item.dep.target
        if node.type == tp.ops.OPTYPE.OUTPUT:
            return "its units are outputs of the network"
        if isinstance(node.module, nn.Parameter):
            return f"its units meet {graph._param_to_name.get(node.module, 'a parameter')} outside any layer"
        if isinstance(node.module, nn.LSTM | nn.MultiheadAttention):
            return f"its units meet {names.get(node.module, 'a layer')} ({type(node.module).__name__})"
        module = node.module
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            return f"{names.get(module, 'a layer')} is a transposed convolution in groups"
        if _pads_channels(node.grad_fn, tp_group):
            return "its units pass through a shortcut that pads channels with zeros"
    if not any(_role(i.dep.target.module, i.dep.handler) == "inputs" for i in tp_group if i.dep.target.module in names):
        return "its units are outputs of the network"
    return None


def _pads_channels(grad_fn: Any, tp_group: Any) -> bool:
    """Whether an operation pads the channels behind convolutions; other paddings are left to the self-check."""
    pad = getattr(grad_fn, "_saved_pad", None)
    ranks = [
        i.dep.target.module.weight.ndim - 2
        for i in tp_group
        if isinstance(i.dep.target.module, nn.modules.conv._ConvNd)
    ]
    return pad is not None and bool(ranks) and any(pad[2 * ranks[0] : 2 * ranks[0] + 2])
