"""Unstructured pruning: single weights masked, no unit removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError, join_names
from isometry.networks import example_inputs, placed, size
from isometry.networks.checks import check_module
from isometry.networks.masks import computed_weight, mask_of, refresh, set_masks
from isometry.networks.modules import UNIT_LAYERS, call, clone, hooked, unwrap
from isometry.networks.preservation import evaluating
from isometry.pruners.preparation import samples_of
from isometry.pruners.pruner import Pruner, PruningContext
from isometry.pruners.result import Pruned
from isometry.pruners.selection import check_request, listed
from isometry.surgery import Plan, UnitGroup
from isometry.training.objective import Loss

__all__ = ["Masking", "mask_weights"]


@dataclass(frozen=True)
class Masking(Pruner):
    """The interface of unstructured pruners: a score for every weight, the lowest of which are masked.

    `prune` puts the masks of torch.nn.utils.prune on the layers: `weight` is then `weight_orig * weight_mask`. So the zeros
    stay zero in every training loop, with any optimizer, weight decay and momentum, in copies and in state dicts, and
    `torch.nn.utils.prune.remove` makes them permanent. Nothing is removed: parameters and FLOPs stay. Biases are never
    masked.

    Attributes:
        scope: "layer" masks the same fraction of every layer, "global" ranks the weights of all layers together.
        floor: how many weights are kept in every layer at least, whatever the ratio.
    """

    def scores(self, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a score for every weight of the layers: {name: of the shape of its weight}.

        Args:
            context: with a copy of the network, which may be changed, and the data.
            layers: {name: layer} of that copy.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no scores(context, layers)")

    def importance(self, context: PruningContext, group: UnitGroup) -> Tensor:
        """Raise an error: there are no units to score."""
        name = type(self).__name__
        raise InvalidValueError(
            f"got {name}, which masks weights, at once, and removes no units. Mask them and train the result in your own "
            f"loop, which keeps the zeros: isometry.prune(model, isometry.{name}(), 0.9)."
        )


def mask_weights(
    model: nn.Module,
    pruner: Masking,
    ratio: float | Mapping[str, float] | None,
    *,
    flops: float | None,
    round_to: int,
    data: Any,
    inputs: Any,
    loss: Loss | None,
    layers: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
    seed: int,
) -> Pruned:
    """Return a copy of `model` with masked weights; see `prune` for the arguments.

    ceil(ratio x weights) of every layer are masked (of all layers together where the scope is global), those among them
    that have been masked before. Where the floor binds, fewer are. Layers whose weights are computed from other
    parameters, or that do not run as modules in a forward pass, are left alone.
    """
    from pandas import DataFrame  # takes long to import

    check_module(model, "prune(isometry.networks.build('lenet-5-relu'), isometry.Magnitude(), 0.9)")
    layers, skip = listed(layers), listed(skip)
    check_request(ratio=ratio, flops=flops, round_to=round_to, layers=layers, skip=skip, seed=seed, masks=True)
    if ratio is None or flops is not None or round_to != 1:
        raise InvalidValueError(
            f"got ratio={ratio}, flops={flops}, round_to={round_to} for {type(pruner).__name__}, which masks weights and "
            "removes neither units nor FLOPs; it takes a ratio alone, e.g. prune(model, isometry.Magnitude(), 0.9)."
        )
    if pruner.needs_data and data is None:
        name = type(pruner).__name__
        raise InvalidValueError(
            f"got no data for {name}, which scores weights on some. Pass them, e.g. prune(model, isometry.{name}(), 0.9, "
            "data=isometry.data.load('digits'))."
        )
    if inputs is None:
        call = "prune(model, pruner, ratio, inputs=inputs)"
        inputs = example_inputs(model, 2, call=call) if data is None else samples_of(data)
    masked = clone(unwrap(model))
    refresh(masked)
    inputs = placed(inputs, masked)
    fixed = _find_fixed(masked, inputs)
    maskable = {n: m for n, m in masked.named_modules() if isinstance(m, UNIT_LAYERS) and n not in fixed}
    requested = _requested_ratios(list(maskable), fixed, ratio, layers, skip)
    ratios = {name: value for name, value in requested.items() if value}  # a mask that masks nothing is none
    chosen = {name: maskable[name] for name in ratios}
    context = PruningContext(clone(masked), [], data, seed, False, None, inputs=inputs, loss=loss)
    scores = _scores(pruner, context, chosen)
    set_masks(masked, {f"{name}.weight": mask for name, mask in _select(scores, ratios, pruner).items()})
    left_alone = fixed | {name: "not requested" for name in maskable if name not in ratios}
    before, after = size(model, inputs), size(masked, inputs)
    return Pruned(masked.eval(), Plan({}, {}), DataFrame(), before, after, left_alone)


def _find_fixed(model: nn.Module, inputs: Any) -> dict[str, str]:
    """Return {layer: why it cannot be masked}."""
    ran: set[str] = set()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, UNIT_LAYERS)}
    with (
        hooked(*(m.register_forward_hook(lambda *_, name=n: ran.add(name)) for n, m in layers.items())),
        evaluating(model),
        torch.no_grad(),
    ):
        call(model, inputs)
    # A mask is a hook: where a network reads a weight without running its layer (attention does), it would do nothing.
    fixed = {name: "it does not run as a module of its own" for name in layers if name not in ran}
    return fixed | {n: "its weight is computed from other parameters" for n, m in layers.items() if computed_weight(m)}


def _requested_ratios(
    names: Sequence[str],
    fixed: Mapping[str, str],
    ratio: float | Mapping[str, float],
    layers: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
) -> dict[str, float]:
    """Return {layer: ratio} of those that are to be masked."""
    patterns = dict(ratio) if isinstance(ratio, Mapping) else {"*": ratio}
    included, excluded = (
        [value] if isinstance(value, str) else list(value) for value in ("*" if layers is None else layers, skip or ())
    )
    for pattern in (*patterns, *included, *excluded):
        if not any(fnmatchcase(name, pattern) for name in names):
            reasons = [f" {name} matches, but {why}." for name, why in fixed.items() if fnmatchcase(name, pattern)]
            raise InvalidValueError(
                f"got the layer pattern {pattern!r}, which matches none of the layers whose weights can be masked: "
                f"{join_names(names) or 'there are none'}.{reasons[0] if reasons else ''} E.g. prune(model, "
                f"isometry.Magnitude(), {{{names[0] if names else 'net.0'!r}: 0.9}})."
            )
    requested: dict[str, float] = {}
    for name in names:
        matches = [value for pattern, value in patterns.items() if fnmatchcase(name, pattern)]
        wanted = any(fnmatchcase(name, pattern) for pattern in included)
        if matches and wanted and not any(fnmatchcase(name, pattern) for pattern in excluded):
            requested[name] = matches[-1]
    if not requested:
        raise InvalidValueError(
            f"got ratio={ratio}, layers={layers}, skip={skip}, which leave no layer to mask of {join_names(names)}. Request at "
            "least one, e.g. layers='*', skip=None."
        )
    return requested


def _scores(pruner: Masking, context: PruningContext, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what the pruner scores on the CPU, with weights that have been masked before below all others."""
    inner = {name: context.model.get_submodule(name) for name in layers}
    scores = {}
    for name, values in pruner.scores(context, inner).items():
        values = values.detach().double().cpu()
        if not bool(torch.isfinite(values).all()):
            raise InvalidValueError(
                f"got scores of weights of {name} that are not finite: its weights, or gradients, are not. Prune a network "
                "whose weights are, e.g. isometry.networks.build('resnet-20')."
            )
        mask = mask_of(layers[name])
        scores[name] = values if mask is None else values.masked_fill(mask.cpu() == 0, -math.inf)
    return scores


def _select(scores: Mapping[str, Tensor], ratios: Mapping[str, float], pruner: Masking) -> dict[str, Tensor]:
    """Return {layer: 1 where a weight is kept, 0 where it is masked}: the lowest scores, ties by order."""
    masks = {}
    peers = [[name] for name in scores]
    if pruner.scope == "global":
        peers = [[name for name in scores if ratios[name] == ratio] for ratio in sorted(set(ratios.values()))]
    for names in peers:
        joined = torch.cat([scores[name].flatten() for name in names])
        lowest = joined.argsort(stable=True)[: math.ceil(ratios[names[0]] * len(joined) - 1e-9)]
        keep = torch.ones(len(joined)).index_fill(0, lowest, 0.0)
        for name, part in zip(names, keep.split([scores[name].numel() for name in names]), strict=True):
            best = scores[name].flatten().argsort(stable=True, descending=True)[: pruner.floor]
            masks[name] = part.index_fill(0, best, 1.0).view_as(scores[name])
    return masks
