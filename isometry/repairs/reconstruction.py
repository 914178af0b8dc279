"""Reconstruction: layers of a pruned network solved for again, so that they give what they gave in the dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.data import Batches, Pair, read_data
from isometry.data.nests import channels_last, concatenate, count_samples, first_samples, map_tensors
from isometry.data.reading import first_inputs
from isometry.errors import InvalidValueError, signed
from isometry.networks import placed
from isometry.networks.bounded import to_batchnorm
from isometry.networks.modules import call, clone, evaluating, hooked, unwrap
from isometry.repairs.correspondence import match_outputs, match_weights
from isometry.repairs.least_squares import NormalEquations, output_samples, patches
from isometry.repairs.readers import Reader, Sums, find_readers
from isometry.repairs.targets import Target, dense_targets

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
    with neither is solved without c. Where the output is added to another tensor of its shape, the sum is matched: t
    is corrected by what that other tensor, a shortcut for instance, has drifted. Weights that are exactly 0 stay 0, so
    that masked networks stay masked. Dropout and the like are off; nothing is random but the draw of samples and places.

    The model runs once, on all samples: memory grows with `samples` times the activations at one point of the network.

    Args:
        model: a pruned network (`prune(...).model`), or one of the same widths with weights set to 0; it is left alone.
        reference: the network before pruning, with the same layers; it is left alone.
        data: inputs [N, ...], (inputs, targets), a `Split`, a `Data` or `Folder` (its training part is used), or an iterable
            of batches, see `isometry.data.Batches`, of which the first ones are used. Targets are not used.
        samples: the largest number of samples, drawn without replacement.
        positions: places per sample (pixels of a convolution's output, tokens) that equations are written for.
        batch_size: samples per forward pass of `reference`, and per product of Gram matrices.
        ridge: the strength with which weights are held where they are; not negative. Layers that read no removed unit
            are held ten times as strongly.
        downstream: whether the hidden layers after the first of these that read no removed unit are solved for too,
            as their inputs have drifted.
        outputs: whether a layer that gives the network's output is solved for even if it reads no removed unit.
        match_sums: whether sums are matched, rather than what goes into them.
        seed: of the draws; the global generator is left alone.
        progress: False silences the progress bar; None shows it in terminals and notebooks.

    Raises:
        ValueError: a reference with other layers or narrower ones; no data; or a layer that reads removed units and
            cannot be solved for (transposed, run more than once, with a computed weight). The message names it.

    Source: He, Zhang & Sun, ICCV 2017, section 3.2 (dense targets, pruned inputs); the ridge around the present weights,
    the sums and the layers downstream are this library's.
    """
    _check_options(samples=samples, positions=positions, batch_size=batch_size, ridge=ridge)
    repaired, original = clone(unwrap(model)), unwrap(reference)
    inputs = placed(_read_samples(data, samples, seed), repaired)
    with evaluating(repaired, original):
        readers = find_readers(repaired, original, first_samples(inputs, 2), downstream=downstream, outputs=outputs)
        if not match_sums:
            readers = [replace(reader, summed=False) for reader in readers]
        batches = (batch.inputs for batch in Pair(inputs, None).split(batch_size))
        targets = dense_targets(original, readers, batches, positions, seed)
        quiet = None if progress is None else not progress
        with tqdm(total=len(readers), desc="repair", unit="layer", disable=quiet) as bar:
            _Reconstruction(repaired, original, targets, ridge, batch_size, bar.update).run(readers, inputs)
    return repaired


def _check_options(*, ridge: float, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InvalidValueError(
                f"got {name}={value}; it takes at least 1, e.g. repair(pruned, reference=dense, data=x)."
            )
    if not ridge >= 0:
        raise InvalidValueError(f"got ridge={ridge}; it takes a number of at least 0, e.g. ridge=1e-3.")


def _read_samples(data: Any, samples: int, seed: int) -> Any:
    """Return at most `samples` inputs [N, ...] of what a user calls data."""
    split = read_data(torch.empty(0) if data is None else data)
    inputs = concatenate(list(first_inputs(split, samples))) if isinstance(split, Batches) else split.inputs
    count = count_samples(inputs)
    if not count:
        raise InvalidValueError(
            "got no data; it takes inputs to compare the two networks at, training images for instance, e.g. "
            "repair(pruned, reference=dense, data=isometry.data.load('digits'))."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples]
    return channels_last(map_tensors(inputs, lambda tensor: tensor[order.to(tensor.device)]))


@dataclass(frozen=True)
class _Reconstruction:
    """A pass over the pruned network, all samples at once, in which layers are solved for as they are reached.

    Attributes:
        model: the pruned network, which is changed.
        reference: the dense network.
        targets: {layer: what it gives in the dense network}.
        ridge, batch_size: see `repair`.
        done: called after every layer.
    """

    model: nn.Module
    reference: nn.Module
    targets: Mapping[str, Target]
    ridge: float
    batch_size: int
    done: Callable[[], object]

    def run(self, readers: Sequence[Reader], inputs: Any) -> None:
        """Solve for `readers`, with inputs [N, ...] of the network."""
        waiting: dict[str, tuple[Reader, Tensor]] = {}

        def solve_at_sum(name: str, output: Tensor, other: Tensor) -> None:
            reader, read = waiting.pop(name)
            self._solve(reader, read, other)
            self._run_again(reader, read, output)

        sums = Sums(solve_at_sum)

        def before(reader: Reader) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
                read = args[0] if args else named["input"]
                if not reader.summed:
                    self._solve(reader, read, None)
                elif reader.layer in unsolved:
                    waiting[reader.layer] = (reader, read)

            return hook

        def after(reader: Reader) -> Callable[..., None]:
            def hook(_: nn.Module, args: object, output: Tensor) -> None:
                if reader.layer in unsolved:
                    unsolved.remove(reader.layer)
                    sums.expect(reader.layer, output)

            return hook

        unsolved = {reader.layer for reader in readers}
        module = self.model.get_submodule
        handles = [module(r.layer).register_forward_pre_hook(before(r), with_kwargs=True) for r in readers]
        handles += [module(r.last).register_forward_hook(after(r)) for r in readers if r.summed]
        with hooked(*handles), sums:
            call(self.model, inputs)

    def _solve(self, reader: Reader, inputs: Tensor, other: Tensor | None) -> None:
        """Solve for a layer, with its inputs and what its output is added to, [N, ...] each."""
        layer: Any = self.model.get_submodule(reader.layer)
        norm: Any = to_batchnorm(self.model.get_submodule(reader.norm)) if reader.norm else None
        scale, shift = _scale_and_shift(norm, layer)
        # A channel of a negligible scale gives its shift, whatever it reads: its target is then 0.
        inverse = (1 / scale).where(scale.abs() > _NEGLIGIBLE * scale.abs().max(), 0)
        target, kept = self.targets[reader.layer], match_weights(layer, self.reference.get_submodule(reader.layer))
        equations, first = NormalEquations(), 0
        for x, positions in zip(inputs.split(self.batch_size), target.positions.split(self.batch_size), strict=True):
            part = slice(first, first + len(x))
            rows = slice(first * positions.shape[1], (first + len(x)) * positions.shape[1])
            first += len(x)
            read = patches(layer, x, target.shape, positions)
            values = target.values[rows].to(x.device)
            drawn = 0.0 if other is None else output_samples(layer, other[part], positions).double()
            if kept is None:  # trained since it was pruned
                given = read.double() @ _rows(layer).double().mT
                kept = match_outputs(given.transpose(0, 1).flatten(1) * scale + drawn, values)
            equations.add(read, (values[:, kept].double() - drawn - shift) * inverse)
        centered = reader.norm is not None or layer.bias is not None
        ridge = self.ridge if reader.cut else _COMPLETE * self.ridge
        weight, constant = equations.solve(_rows(layer), ridge, centered=centered)
        self._set(reader, weight, constant)
        self.done()

    def _set(self, reader: Reader, weight: Tensor, constant: Tensor) -> None:
        """Set a layer's weight, and its bias or the mean of its BatchNorm so that constant [units] is added."""
        layer: Any = self.model.get_submodule(reader.layer)
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if reader.norm is not None:
            bias = 0.0 if layer.bias is None else layer.bias.double()
            self.model.get_submodule(reader.norm).get_buffer("running_mean").copy_(bias - constant)
        elif layer.bias is not None:
            layer.bias.copy_(constant)

    def _run_again(self, reader: Reader, inputs: Tensor, output: Tensor) -> None:
        """Write what a layer gives with its new weight over its output."""
        layer = self.model.get_submodule(reader.layer)
        norm = self.model.get_submodule(reader.norm) if reader.norm else nn.Identity()
        for x, y in zip(inputs.split(self.batch_size), output.split(self.batch_size), strict=True):
            y.copy_(norm(layer(x)))


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
