"""Reconstruction: layers of a pruned network solved for again, so that they give what they gave in the dense network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Batches, Pair, read_data
from isometry.data.nests import channels_last, concatenate, count_samples, describe, first_samples, map_tensors, outline
from isometry.data.reading import first_inputs
from isometry.errors import InvalidValueError, join_names, signed
from isometry.limits import SEED, Number, check_number
from isometry.networks import placed
from isometry.networks.bounded import to_batchnorm
from isometry.networks.checks import check_module
from isometry.networks.masks import refresh, set_parameter
from isometry.networks.modules import clone, hooked, unwrap
from isometry.networks.precision import full_precision, no_fast_path
from isometry.networks.preservation import evaluating
from isometry.repairs.correspondence import match_outputs, match_weights
from isometry.repairs.least_squares import NormalEquations, output_samples, patches
from isometry.repairs.readers import Reader, Sums, find_readers, find_unrepaired
from isometry.repairs.resumption import Passes, Stop, find_cuts, follow
from isometry.repairs.targets import Target, collect_targets, draw_targets

__all__ = ["repair"]

_NEGLIGIBLE = 1e-6  # of the largest scale of a BatchNorm
_COMPLETE = 10  # times the ridge for layers that lost no input, whose weights are worth more


@signed("repair")
@torch.no_grad()
def repair(
    model: nn.Module,
    *,
    reference: nn.Module,
    data: Any,
    samples: int = 1024,
    positions: int = 24,
    batch_size: int = 128,
    ridge: float = 1e-3,
    downstream: bool = True,
    outputs: bool = False,
    match_sums: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """Return a copy of a pruned network whose layers give what they gave before pruning, by least squares; no training.

    For every layer that reads removed units, in the order of the forward pass, with u [D] what it reads at one place
    in the pruned and so far repaired network, and t what it gives there in `reference`:

        minimize over W, c: mean |W u + c - t|² + lambda |W - W0|²,   lambda = ridge x mean diagonal of the Gram matrix of u.

    t is taken behind the BatchNorm that follows, if any, whose running mean then takes c; otherwise the bias does; a layer
    with neither is solved without c. Where the output is added to another tensor of its shape, the sum is matched: t is
    corrected by what that other tensor, a shortcut for instance, has drifted. Weights that are exactly 0 stay 0, so that
    masked networks stay masked. A warning names modules that read removed units and are neither linear layers nor
    convolutions that run as modules; they stay as they are. Dropout and the like are off; nothing is random but the draw of
    samples and places.

    Equations are sums over batches, so that memory does not grow with `samples`, but for the inputs, what the dense network
    gives at the places of the layers being solved for, and the activations at one point of both networks, which go to
    temporary files above 1 GiB. From that point, a module that everything passes through (a residual block for instance), the
    networks run on; where there is no such module, every layer costs a forward pass from the beginning.

    Args:
        model: a pruned network (`prune(...).model`), or one of the same widths with weights set to 0; it is left alone.
        reference: the network before pruning, with the same layers; it is left alone.
        data: inputs [N, ...], (inputs, targets), a `Split`, a `Data` or `Folder` (its training part is used), or an iterable
            of batches, see `isometry.data.Batches`, of which the first ones are used. Targets are not used.
        samples: the largest number of samples, drawn without replacement.
        positions: places per sample (pixels of a convolution's output, tokens) that equations are written for.
        batch_size: samples per forward pass, and per product of Gram matrices.
        ridge: the strength with which weights are held where they are; not negative. Layers that read no removed unit
            are held ten times as strongly.
        downstream: whether the hidden layers after the first of these that read no removed unit are solved for too,
            as their inputs have drifted.
        outputs: whether a layer that gives the network's output is solved for even if it reads no removed unit.
        match_sums: whether sums are matched, rather than what goes into them.
        seed: of the draws; the global generator is left alone.
        progress: False silences the progress bar; None shows it in terminals and notebooks.

    Raises:
        ValueError: a reference with other layers or narrower ones; no data; NaN or infinite values; or a layer that reads
            removed units and cannot be solved for (transposed, run more than once, with a computed weight). The message names it.

    Source: He, Zhang & Sun, ICCV 2017, section 3.2 (dense targets, pruned inputs); the ridge around the present weights,
    the sums and the layers downstream are this library's.
    """
    for network in (model, reference):
        check_module(network, "repair(pruned.model, reference=dense, data=data)")
    for name, value in (("samples", samples), ("positions", positions), ("batch_size", batch_size)):
        check_number(name, value, Number(1, whole=True), "repair(pruned, reference=dense, data=x)")
    check_number("ridge", ridge, Number(0), "ridge=1e-3")
    check_number("seed", seed, SEED, "seed=0")
    repaired, original = clone(unwrap(model)), unwrap(reference)
    refresh(repaired)
    inputs = placed(_read_samples(data, samples, seed), repaired)
    with evaluating(repaired, original), full_precision(), no_fast_path():
        readers = find_readers(repaired, original, first_samples(inputs, 2), downstream=downstream, outputs=outputs)
        if unrepaired := find_unrepaired(repaired, original, readers):
            # Above the frames that sign the errors and turn gradients off: the caller's line.
            warnings.warn(
                f"repair() leaves {join_names(unrepaired)} as they are: they read removed units, or may, and are no layers that it "
                "solves for (linear layers and convolutions that run as modules).",
                stacklevel=4,
            )
        if not match_sums:
            readers = [replace(reader, summed=False) for reader in readers]
        passes = _passes(repaired, inputs, batch_size), _passes(original, inputs, batch_size)
        targets = draw_targets(passes[1], readers, positions, seed)
        cuts = find_cuts(repaired, passes[0].course, first_samples(inputs, 2), [reader.layer for reader in readers])
        quiet = None if progress is None else not progress
        with tqdm(total=len(readers), desc="repair", unit="layer", disable=quiet) as bar:
            _Reconstruction(*passes, targets, ridge, bar.update).run(readers, cuts)
    return repaired


def _passes(model: nn.Module, inputs: Any, batch_size: int) -> Passes:
    """Return passes of a network over batches of the inputs; its course is followed at another input, mostly zeros."""
    inputs = placed(inputs, model)
    batches = [batch.inputs for batch in Pair(inputs, None).split(batch_size)]
    try:
        course = follow(model, map_tensors(first_samples(inputs, 1), torch.zeros_like))
    except Exception:  # whatever a network raises that takes no zeros
        course = follow(model, next(Pair(inputs, None).split(1, torch.tensor([count_samples(inputs) - 1]))).inputs)
    return Passes(model, course, batches)


def _read_samples(data: Any, samples: int, seed: int) -> Any:
    """Return at most `samples` inputs [N, ...] of what a user calls data."""
    split = read_data(torch.empty(0) if data is None else data)
    inputs = _joined(list(first_inputs(split, samples))) if isinstance(split, Batches) else split.inputs
    count = count_samples(inputs)
    if not count:
        raise InvalidValueError(
            "got no data; it takes inputs to compare the two networks at, training images for instance, e.g. "
            "repair(pruned, reference=dense, data=isometry.data.load('digits'))."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples]
    return channels_last(map_tensors(inputs, lambda tensor: tensor[order.to(tensor.device)]))


def _joined(parts: Sequence[Any]) -> Any:
    """Return the inputs of batches as those of one batch."""
    first = outline(parts[0])
    for part in parts:
        if outline(part).shapes != first.shapes:
            raise InvalidValueError(
                f"got batches whose shapes change: the first one has {first.text}, a later one {describe(part)}. Crop or pad the "
                "samples to one shape, e.g. in the loader's collate_fn."
            )
    return concatenate(parts)


@dataclass(frozen=True)
class _Reconstruction:
    """Passes over the pruned network, in which its layers are solved for one after the other.

    Attributes:
        passes: of the pruned network, which is changed.
        dense: passes of the dense network over the same batches.
        targets: {layer: what it gives in the dense network}; the values come with the passes.
        ridge: see `repair`.
        done: called after every layer.
    """

    passes: Passes
    dense: Passes
    targets: Mapping[str, Target]
    ridge: float
    done: Callable[[], object]

    def run(self, readers: Sequence[Reader], cuts: Sequence[str | None]) -> None:
        """Solve for `readers`, each with passes that begin at its cut."""
        parts = [list(part) for _, part in groupby(zip(cuts, readers, strict=True), key=itemgetter(0))]
        starts = [part[0][0] for part in parts]
        if not parts:
            return
        if starts[0] is not None:
            self.passes.advance(starts[0])
            self.dense.advance(starts[0])
        for part, following in zip(parts, [*starts[1:], None], strict=True):
            chosen = [reader for _, reader in part]
            collect_targets(self.dense, chosen, self.targets, following)
            for reader in chosen:
                self._solve(reader)
            if following is not None:
                self.passes.advance(following)

    def _solve(self, reader: Reader) -> None:
        """Solve for a layer, with sums over all batches."""
        layer: Any = self.passes.model.get_submodule(reader.layer)
        problem = _Problem(self, reader, layer)
        read: list[Tensor] = []

        def at_sum(name: str, output: Tensor, other: Tensor) -> None:
            problem.add(read.pop(), other)
            raise Stop

        sums = Sums(at_sum)

        def before(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            inputs = args[0] if args else named["input"]
            if not reader.summed:
                problem.add(inputs, None)
                raise Stop
            read.append(inputs)

        def after(_: nn.Module, args: object, output: Tensor) -> None:
            if reader.summed:
                sums.expect(reader.layer, output)

        last = self.passes.model.get_submodule(reader.last)
        handles = layer.register_forward_pre_hook(before, with_kwargs=True), last.register_forward_hook(after)
        with hooked(*handles), sums:
            for _ in self.passes.run():
                pass
        target = self.targets[reader.layer]
        target.values.clear()
        if found := problem.equations.nonfinite:
            where = (
                f"reads in {type(self.passes.model).__name__}"
                if found == "inputs"
                else "is to give, as in the reference"
            )
            raise InvalidValueError(
                f"found NaN or infinite values in what {reader.layer} {where}. Check the data and the weights of both networks; "
                "of finite ones e.g. repair(pruned, reference=dense, data=torch.nan_to_num(x))."
            )
        centered = reader.norm is not None or layer.bias is not None
        ridge = self.ridge if reader.cut else _COMPLETE * self.ridge
        self._set(reader, *problem.equations.solve(_rows(layer), ridge, centered=centered))
        self.done()

    def _set(self, reader: Reader, weight: Tensor, constant: Tensor) -> None:
        """Set a layer's weight, and its bias or the mean of its BatchNorm so that constant [units] is added."""
        layer: Any = self.passes.model.get_submodule(reader.layer)
        set_parameter(layer, "weight", weight.reshape(layer.weight.shape))
        if reader.norm is not None:
            bias = 0.0 if layer.bias is None else layer.bias.double()
            self.passes.model.get_submodule(reader.norm).get_buffer("running_mean").copy_(bias - constant)
        elif layer.bias is not None:
            set_parameter(layer, "bias", constant)


class _Problem:
    """The least-squares problem of one layer, written batch by batch.

    Args:
        parent: which networks and targets.
        reader, layer: which layer.
    """

    def __init__(self, parent: _Reconstruction, reader: Reader, layer: Any) -> None:
        norm: Any = to_batchnorm(parent.passes.model.get_submodule(reader.norm)) if reader.norm else None
        self.layer, self.target, self.equations = layer, parent.targets[reader.layer], NormalEquations()
        self.scale, self.shift = _scale_and_shift(norm, layer)
        # A channel of a negligible scale gives its shift, whatever it reads: its target is then 0.
        self.inverse = (1 / self.scale).where(self.scale.abs() > _NEGLIGIBLE * self.scale.abs().max(), 0)
        self.kept = match_weights(layer, parent.dense.model.get_submodule(reader.layer))
        self.number = 0

    def add(self, inputs: Tensor, other: Tensor | None) -> None:
        """Add the next batch: what the layer reads, and what its output is added to, [B, ...] each."""
        positions, values = self.target.positions[self.number], self.target.values[self.number].to(inputs.device)
        self.number += 1
        read = patches(self.layer, inputs, self.target.shape, positions)
        drawn = 0.0 if other is None else output_samples(self.layer, other, positions).double()
        if self.kept is None:  # trained since it was pruned
            given = read.double() @ _rows(self.layer).double().mT
            self.kept = match_outputs(given.transpose(0, 1).flatten(1) * self.scale + drawn, values)
        self.equations.add(read, (values[:, self.kept].double() - drawn - self.shift) * self.inverse)


def _rows(layer: Any) -> Tensor:
    """Return the weight of a layer as [groups, units of a group, D]."""
    return layer.weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))


def _scale_and_shift(norm: Any, layer: Any) -> tuple[Tensor, Tensor]:
    """Return [units] each: what a BatchNorm multiplies its centered inputs by, and then adds; 1 and 0 without one."""
    scale = torch.ones(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
    if norm is None:
        return scale, torch.zeros_like(scale)
    scale = (1 if norm.weight is None else norm.weight.double()) / (norm.running_var.double() + norm.eps).sqrt()
    return scale, torch.zeros_like(scale) if norm.bias is None else norm.bias.double()
