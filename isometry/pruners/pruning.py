"""prune: from a network and a pruner to a physically smaller network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from isometry.errors import join_names, signed
from isometry.pruners.masking import Masking, mask_weights
from isometry.pruners.preparation import prepare
from isometry.pruners.pruner import Pruner
from isometry.pruners.result import Pruned
from isometry.training.objective import Loss, Metric

__all__ = ["prune"]


@signed("prune")
def prune(
    model: nn.Module,
    pruner: Pruner,
    ratio: float | Mapping[str, float] | None = None,
    *,
    flops: float | None = None,
    data: Any = None,
    inputs: Any = None,
    layers: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    round_to: int = 1,
    loss: Loss | None = None,
    metric: Metric | None = None,
    autocast: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Pruned:
    """Return a physically smaller copy of `model`, pruned by `pruner`; `model` is left alone.

    From every layer that may lose units, ceil(ratio x units) are removed (from all layers together where the pruner's
    scope is global); at least the pruner's floor is kept. Layers that can only lose units together count as one, and so
    do those joined by a concatenation in front of a depthwise convolution: requesting one requests all. Of an attention,
    units are its heads: whole heads are removed, with their queries, keys and values. The output layer always keeps its
    units. Before any training, `prune` tries whether the layers can be cut exactly; those that cannot are left alone,
    with a warning. Afterwards the pruned network's outputs are compared with those of the masked network.

    Unstructured pruners (`isometry.Magnitude`, `RandomWeights`, `SNIP`) mask single weights instead, those of the output
    layer included: the copy has the masks of torch.nn.utils.prune, which every training keeps, and its original shape.

    Args:
        model: any network; for structured pruners, its units are followed through one forward pass.
        pruner: for instance `isometry.L1()`.
        ratio: the fraction of units removed, or of weights masked, in [0, 1); or {layer name pattern: fraction}, in which later patterns
            win and layers that match none keep their units.
        flops: in place of a ratio, the fraction of FLOPs removed, in (0, 1): the smallest ratio that removes as much is
            found by bisection.
        data: what a pruner that trains is to train on, as `isometry.train` takes it: a `Data` or `Folder` (its training part),
            a `Split`, (inputs, targets), a DataLoader or another iterable of batches, which is read once per epoch.
        inputs: [B, ...], a batch for tracing, or a tuple or dict of the arguments of a network of several inputs; taken from
            `data`, or drawn in a shape that the model is found to take, when None.
        layers: name patterns (fnmatch) of the layers that may lose units; None means all that can.
        skip: name patterns of layers that keep their units, and so do all that are coupled with them.
        round_to: the units kept in a layer are rounded up to a multiple of it (8 for instance, for speed).
        loss: of pruners that train, as `isometry.train` takes it: a callable (outputs, targets) -> scalar.
        metric: likewise; its column of the history is `metric`.
        autocast: whether pruners that train do so in bfloat16.
        seed: of everything random.
        progress: False silences the progress bar; None shows it in terminals and notebooks.
        checkpoint: a file that lets an interrupted training go on where it was.

    Returns:
        `Pruned`: model, plan, history, before, after.

    Raises:
        ValueError: a ratio outside [0, 1) or so high that a layer would be empty, FLOPs that cannot be removed, a
            pattern that matches nothing, two ratios in one group, a pruner that needs data without data, a model in
            which nothing can be pruned, and whatever the trace refuses (tied weights, masks, parametrizations).
        DivergedError: the pruner's training diverged.
    """
    if isinstance(pruner, Masking):
        return mask_weights(
            model,
            pruner,
            ratio,
            flops=flops,
            round_to=round_to,
            data=data,
            inputs=inputs,
            loss=loss,
            layers=layers,
            skip=skip,
            seed=seed,
        )
    preparation = prepare(
        model,
        pruner,
        ratio,
        flops=flops,
        data=data,
        inputs=inputs,
        layers=layers,
        skip=skip,
        round_to=round_to,
        loss=loss,
        metric=metric,
        autocast=autocast,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )
    if uncuttable := list(preparation.uncuttable.values()):
        message = f"prune() leaves alone what cannot be cut exactly: {join_names(uncuttable)}"
        warnings.warn(message, stacklevel=3)  # above the frame that signs the errors: the caller's line
    pruner.train_before_selection(preparation.context)
    selection = preparation.select()
    pruner.train_after_selection(preparation.context, selection)
    return preparation.describe(selection, preparation.remove(selection))
