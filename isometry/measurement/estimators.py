"""Survey: one measurement under way, from checks at two samples to the last one taken."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isometry.measurement.checks import check, nonfinite
from isometry.measurement.folding import folded
from isometry.measurement.function import NetworkFunction
from isometry.measurement.inputs import Inputs, among, converted, moved, take, twice, width
from isometry.measurement.jacobian import Jacobian, out_of_memory
from isometry.measurement.layers import LayerOutputs, select_layers
from isometry.measurement.planner import Allocation, allocate
from isometry.measurement.report import Brackets, Cost, Report
from isometry.spectra import Bidiagonal, Spectrum, bidiagonalize, exact, probes, singular_values

__all__ = ["Survey"]

_EXACT_UP_TO = 128
_BRACKET = 0.03
_STEPS = 96
_AT_ONCE = 64  # more makes no pass faster
_BYTES = 2**29
_REFUSALS = (RuntimeError, IndexError, AttributeError, NotImplementedError)
_PILOT = (8, 2)  # samples and probes before anything is known; of a budget, half at most
_GUESS = 24  # steps of a probe, likewise


@dataclass
class Survey:
    """One measurement under way: what is measured, how, and what has been found."""

    view: NetworkFunction
    method: str
    rtol: float | None
    budget: int | None
    layers: bool | int | str | Sequence[str]
    dtype: torch.dtype | None
    seed: int
    fast: NetworkFunction | None = None
    taps: LayerOutputs | None = None
    cut: str | None = None
    rank: int = 0
    plan: Allocation | None = None
    spectra: list[Spectrum] = field(default_factory=list)
    brackets: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    residual: float = 0.0
    slope: float = 1.0
    forwards: int = 0
    products: int = 0
    pilot: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last: Any = None
    rows: int = 0
    columns: int = 0
    narrow: int = 0
    limit: int = 2**20
    available: int | None = None

    def nonfinite(self) -> str:
        """Return what to say of NaN or infinity at the samples last looked at."""
        return nonfinite(self.view, self.last)

    def run(self, given: Inputs, hidden: bool | None) -> None:
        """Measure at the inputs given until there are enough or no more; `hidden` is tqdm's `disable`."""
        shape: tuple[int, ...] | None = None
        enough = False
        generator = torch.Generator().manual_seed(self.seed)
        self.available = given.total
        with tqdm(total=given.total, unit="sample", desc="measure", disable=hidden, delay=2) as bar:
            for batch in given.batches:
                count = width(batch, self.view.wrt)
                if not count:
                    raise ValueError("measure() got an empty batch; every batch must hold at least one sample.")
                if shape is None:
                    batch = self._prepare(batch, count)
                elif self.dtype is not None:
                    batch = converted(batch, self.dtype)
                here = self._shape(take(batch, 0, 1, count))
                if here != (shape := shape or here):
                    raise ValueError(
                        f"measure() got samples of different shapes, {shape} and {here}; all must be alike. Measure each "
                        "kind by itself, or pad them to one shape."
                    )
                place = 0
                while place < count and not enough:
                    part = take(batch, place, min(place + self._at_once(), count), count)
                    done = self._one_part(part, generator)
                    place += done
                    bar.update(done)
                    enough = self._enough()
                if enough:
                    break
        if not self.spectra:
            raise ValueError(
                "measure() got no inputs: the iterable is empty. Pass at least one batch, e.g. measure(model, x)."
            )
        self._say_why_it_ended(enough)

    def _prepare(self, batch: Any, count: int) -> Any:
        """Check the model at two samples, choose precision, fast copy, layers, cut and method; return the batch."""
        self.last = take(batch, 0, 1, count)
        leaf = self._leaf(self.last)
        if self.dtype is None and leaf.dtype in (torch.float16, torch.bfloat16):
            self.dtype = torch.float32
            self.notes.append(f"computed in float32, the model is in {str(leaf.dtype).removeprefix('torch.')}")
        if not leaf.is_floating_point():
            raise TypeError(
                f"measure() got wrt={self.view.wrt!r}, an input of dtype {leaf.dtype}, which has no derivative. Name a floating "
                "point one, or start at a module behind it, e.g. measure(model, inputs, at='embedding')."
            )
        if self.view.at is None and not bool(torch.isfinite(leaf).all()):
            raise ValueError(
                "measure() got inputs with NaN or infinite entries; all must be finite, e.g. "
                "measure(model, torch.nan_to_num(inputs))."
            )
        if self.dtype is not None:
            self.view = self.view.copied(self.dtype)
            batch = converted(batch, self.dtype)
        pair = twice(batch, count)
        self.last = pair
        outputs = self._outputs(pair)
        if not bool(torch.isfinite(outputs).all()):
            raise ValueError(self.nonfinite())
        check(self.view, pair, outputs)
        self.forwards += 6
        self.products += 4
        if self.layers is not False:
            self.taps = LayerOutputs(select_layers(self.view.model, self.layers))
            with self.taps.listening(self.view.model) as caught:
                start = self.view.leaf(pair).requires_grad_(True)
                outputs = self.view.function(pair)(start)
            if left := self.taps.settle(caught, outputs, start):
                self.notes.append(f"without {', '.join(left)}: not on the way from the input to the output")
        self.fast = folded(self.view, pair, frozenset(self.taps.names if self.taps else ()))
        if self.fast is not None:
            self.notes.append("on an equivalent copy: BatchNorm folded where possible, channels last")
        leaf = self.view.leaf(pair)
        self.rows, self.columns = outputs[0].numel(), leaf[0].numel()
        self.rank = min(self.rows, self.columns)
        if self.rank > 16 and self.layers is False and self.view.at is None:
            self.cut = self._narrow_cut(pair)
        self._choose()
        return batch

    def _leaf(self, batch: Any) -> Tensor:
        try:
            return self.view.leaf(batch)
        except _REFUSALS as error:
            raise self._refused(batch, error) from error

    def _shape(self, sample: Any) -> tuple[int, ...]:
        return tuple(self._leaf(sample).shape[1:])

    def _outputs(self, batch: Any) -> Tensor:
        try:
            with torch.no_grad():
                return self.view.function(batch)(self.view.leaf(batch))
        except _REFUSALS as error:
            raise self._refused(batch, error) from error

    def _refused(self, batch: Any, error: BaseException) -> Exception:
        if out_of_memory(error):
            return RuntimeError(f"measure() ran out of memory at two samples: {error}")
        like = next((p.dtype for p in self.view.model.parameters() if p.is_floating_point()), None)
        if isinstance(batch, Tensor) and batch.is_floating_point() and like not in (None, batch.dtype):
            return ValueError(
                f"measure() got inputs of dtype {batch.dtype} for a model in {like} ({error}). Convert one of them, e.g. "
                f"measure(model, inputs.to({like}))."
            )
        told = (
            f"inputs of shape {tuple(batch.shape)}, dtype {batch.dtype}"
            if isinstance(batch, Tensor)
            else f"a batch of {type(batch).__name__}"
        )
        return ValueError(
            f"measure() got {told}, which the model does not accept ({error}). Pass inputs of the shape it was built for, "
            "e.g. measure(model, torch.randn(64, *shape))."
        )

    @torch.no_grad()
    def _narrow_cut(self, pair: Any) -> str | None:
        """Return the last module narrower than the rank that everything passes through, if there is one."""
        widths: dict[str, tuple[int, int]] = {}
        handles = []
        for name, module in self.view.model.named_modules():
            if name:

                def note(_: nn.Module, args: object, result: Any, name: str = name) -> None:
                    if (
                        isinstance(result, Tensor)
                        and result.ndim > 1
                        and len(result) == 2
                        and result.is_floating_point()
                    ):
                        widths[name] = (result[0].numel(), widths[name][1] + 1 if name in widths else 1)

                handles.append(module.register_forward_hook(note))
        try:
            self._outputs(pair)
        finally:
            for handle in handles:
                handle.remove()
        narrow = [name for name, (size, runs) in widths.items() if size <= 0.8 * self.rank and runs == 1]
        for name in sorted(narrow, key=lambda name: widths[name][0])[:3]:
            behind = NetworkFunction(self.view.model, output=self.view.output, at=name)
            # With the module's output held fixed, nothing else may carry the input to the output.
            held = behind.function(pair)(behind.leaf(pair))
            shifted = behind.function(moved(pair, self.view.wrt))(behind.leaf(pair))
            if torch.equal(held, shifted):
                self.narrow = widths[name][0]
                self.notes.append(f"through the narrow cut at {name} ({self.narrow} of {self.rank})")
                return name
        return None

    def _choose(self) -> None:
        price = self._price()
        if self.method == "auto":
            if price <= _EXACT_UP_TO or self.layers is not False:
                self.method = "exact"
            elif self.rtol is None and self.budget is None:
                self.method = "krylov"
        if self.method == "krylov":
            self.plan = Allocation("krylov", 2 if self.budget is None and self.rtol is None else _PILOT[1])

    def _price(self) -> int:
        """Return the products that one sample costs exactly."""
        if self.taps is not None:
            return self.rows
        return self.rank if self.cut is None else self.narrow + 1

    def _at_once(self) -> int:
        """Return how many samples the next part should hold."""
        if self.method == "exact":
            entries = self._price() * self.columns * 3
            if self.taps is not None:
                entries += self.rank * sum(size for size, _ in self.taps.sizes.values())
            most = _AT_ONCE if self.rtol is None else 16
        else:
            count = self.plan.probes if self.plan else _PILOT[1]
            entries = count * 2 * _GUESS * self.columns
            most = 16
            if self.plan is None or not self.plan.decided:
                most = _PILOT[0] if self.budget is None else min(_PILOT[0], max(2, self.budget // (4 * count * _GUESS)))
            elif self.budget is not None:
                most = min(most, max(1, (self.budget - self.products) // self.plan.price))
        if self.budget is not None and self.method == "exact":
            most = min(most, max(1, (self.budget - self.products) // self._price()))
        return max(1, min(most, self.limit, _BYTES // (4 * entries)))

    def _one_part(self, part: Any, generator: torch.Generator) -> int:
        """Measure one part of a batch, halved until it fits the memory; return how many samples were done."""
        while True:
            count = width(part, self.view.wrt)
            self.last = part
            try:
                if self.method == "exact":
                    self._exactly(part)
                else:
                    self._by_krylov(part, generator)
                return count
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or count == 1:
                    raise
                self.limit = count // 2
                part = take(part, 0, self.limit, count)

    def _exactly(self, part: Any) -> None:
        view = self.fast or self.view
        leaf = _arranged(view.leaf(part), self.fast is not None)
        if self.cut is not None and self._through_cut(view, part, leaf):
            return
        listening: Any = self.taps.listening(view.model) if self.taps else contextlib.nullcontext({})
        with listening as caught:
            jacobian = self._jacobian(view, part, leaf)
        if caught and jacobian.outputs.requires_grad:
            assert self.taps is not None
            spectrum = self.taps.measured(jacobian, caught)
        else:
            spectrum = exact(jacobian)
        self.spectra.append(_on_cpu(spectrum))
        self._account(len(leaf), [jacobian])

    def _jacobian(self, view: NetworkFunction, part: Any, leaf: Tensor, expected: int = 0) -> Jacobian:
        return Jacobian(
            view.function(part),
            leaf,
            expected=expected,
            among=lambda samples: view.function(among(part, samples, len(leaf))),
        )

    def _through_cut(self, view: NetworkFunction, part: Any, leaf: Tensor) -> bool:
        """Measure J = (head) (trunk) with as many rows differentiated as the cut is wide; return whether that is J.

        One product with the whole network's Jᵀ tells, for at other samples than the first another branch may be open.
        """
        assert self.cut is not None
        try:
            trunk = Jacobian(view.to_module(part, self.cut), leaf)
            behind = NetworkFunction(view.model, output=view.output, at=self.cut, wrt=view.wrt)
            head = Jacobian(behind.function(part), behind.leaf(part))
            # [B, F, m] by F products, the head being taller than wide; its R factor carries the singular values.
            rows, columns = head.dense().double(), trunk.dense().double()
            whole = self._jacobian(view, part, leaf)
        except (RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            return self._leave_cut()
        u = probes(len(leaf), 1, self.rows, torch.Generator().manual_seed(0), leaf)
        directly, composed = whole.rmatvec(u).double(), u.double() @ rows.mT @ columns
        if bool(((directly - composed).norm(dim=-1) > 1e-3 * directly.norm(dim=-1) + 1e-12).any()):
            return self._leave_cut()
        values = singular_values(torch.linalg.qr(rows.mT, mode="r").R @ columns)
        padded = values.new_zeros(len(leaf), self.rank)
        padded[:, : values.shape[1]] = values[:, : self.rank]
        self.spectra.append(_on_cpu(Spectrum.of(padded)))
        self._account(len(leaf), [trunk, head, whole])
        return True

    def _leave_cut(self) -> bool:
        self.notes.append(f"not through {self.cut} after all: something reaches the output past it")
        self.cut = None
        return False

    def _by_krylov(self, part: Any, generator: torch.Generator) -> None:
        view = self.fast or self.view
        leaf = _arranged(view.leaf(part), self.fast is not None)
        count = self.plan.probes if self.plan else _PILOT[1]
        jacobian = self._jacobian(view, part, leaf, expected=count * _GUESS)
        tolerance = _BRACKET if self.rtol is None else min(_BRACKET, 0.15 * self.rtol)
        if self.plan is not None:
            tolerance *= self.plan.length**-self.slope
        start = probes(len(leaf), count, jacobian.rank, generator, leaf)
        run = bidiagonalize(jacobian, start, steps=_STEPS, rtol=tolerance)
        lower, upper = run.bracket()
        middle = (lower + upper) / 2
        variance = middle.var(1) / count if count > 1 else torch.full_like(middle[:, 0], math.nan)
        self.brackets.append((lower.mean(1).cpu(), upper.mean(1).cpu(), variance.cpu()))
        self.spectra.append(_on_cpu(run.spectrum()))
        self.residual = max(self.residual, float(run.largest()[1].max()))
        self._account(len(leaf), [jacobian])
        guided = self.rtol is not None or self.budget is not None
        if guided and (self.plan is None or not self.plan.decided):
            self.pilot.append(part)
            self._decide(run)

    def _decide(self, run: Bidiagonal) -> None:
        """Choose method and probes from what the pilot has shown."""
        if len(self.sample_means) < 2:
            self.method = "krylov"
            return
        within = torch.cat([variance for _, _, variance in self.brackets]).nanmean()
        count = self.plan.probes if self.plan else _PILOT[1]
        probe_variance = float(within) * count if math.isfinite(float(within)) else 0.0
        total = float(self.sample_means.var())
        half, before = (
            float((b[1] - b[0]).mean()) / 2 for b in (run.bracket(), run.first(run.alpha.shape[-1] // 2).bracket())
        )
        if half > 0:
            self.slope = min(max(math.log2(before / half), 0.5), 4.0)
        self.plan = allocate(
            sample_variance=max(total - probe_variance / count, 0.0),
            probe_variance=probe_variance,
            exact_price=self._price(),
            probe_price=run.products,
            budget=None if self.budget is None else self.budget - self.products,
            allowed=("krylov",) if self.method == "krylov" else ("exact", "krylov"),
            available=self.available if self.budget is not None else None,
            pilot=(len(self.sample_means), count),
            bracket=0.0 if self.budget is None else half,
            slope=self.slope,
        )
        if self.plan.method == "exact":
            self.method = "exact"
            self.spectra, self.brackets, self.residual = [], [], 0.0
            self._again()
        else:
            self.method = "krylov"

    def _again(self) -> None:
        """Measure the pilot's samples exactly, as many as the budget allows."""
        for part in self.pilot:
            count, place = width(part, self.view.wrt), 0
            while place < count and not (self.spectra and self._enough()):
                stop = min(place + self._at_once(), count)
                self._exactly(take(part, place, stop, count))
                place = stop

    def _account(self, samples: int, used: list[Jacobian]) -> None:
        self.forwards += samples * len(used)
        self.products += sum(round(jacobian.products * samples) for jacobian in used)
        routes = sorted({route for jacobian in used for route in jacobian.routes})
        note = f"derivatives by {', '.join(routes)}" if routes else "constant in the input"
        if note not in self.notes:
            self.notes.append(note)

    @property
    def sample_means(self) -> Tensor:
        """[B]: the mean JSVs found so far."""
        if self.brackets:
            return torch.cat([(lower + upper) / 2 for lower, upper, _ in self.brackets])
        return torch.cat([s.sample_means for s in self.spectra]) if self.spectra else torch.zeros(0)

    def _enough(self) -> bool:
        if not self.spectra:
            return False
        if self.budget is not None:
            each = self._price() if self.method == "exact" else (self.plan.price if self.plan else 1)
            if self.products + each > self.budget:
                return True
        if self.rtol is None or len(self.sample_means) < 8:
            return False
        low, high = self._found("", 0.0).interval
        return high - low <= 2 * self.rtol * abs(float(self.sample_means.mean()))

    def _say_why_it_ended(self, enough: bool) -> None:
        if self.rtol is None and not (self.budget is not None and enough):
            return
        found = self._found("", 0.0)
        half = (found.interval[1] - found.interval[0]) / 2 / abs(found.mean_jsv) if found.mean_jsv else 0.0
        count = len(found.spectrum)
        if self.rtol is None:
            self.notes.append(f"budget of {self.budget} products spent after {count} samples")
        elif half <= self.rtol:
            self.notes.append(f"rtol={self.rtol:g} reached after {count} samples, half-width {half:.2%}")
        else:
            why = "the budget was spent" if enough else "the inputs ran out"
            self.notes.append(f"rtol={self.rtol:g} NOT reached: {why} after {count} samples, half-width {half:.2%}")

    def _found(self, described: str, seconds: float, layers: pd.DataFrame | None = None) -> Report:
        spectrum = Spectrum.pool(self.spectra)
        brackets = None
        if self.brackets:
            lower, upper, variance = (torch.cat(parts) for parts in zip(*self.brackets, strict=True))
            brackets = Brackets(lower, upper, variance, self.residual)
        cost = Cost(self.forwards, self.products, seconds)
        return Report(spectrum, self.method, cost, described, layers, tuple(self.notes), brackets)

    def report(self, described: str, seconds: float) -> Report:
        """Return the `Report` of what was found, at inputs so described, in so many seconds."""
        table = self.taps.table(self.view.model) if self.taps else None
        count = sum(len(spectrum) for spectrum in self.spectra)
        return self._found(f"{count} {described}", seconds, table)


def _arranged(leaf: Tensor, fast: bool) -> Tensor:
    return leaf.contiguous(memory_format=torch.channels_last) if fast and leaf.ndim == 4 else leaf


def _on_cpu(spectrum: Spectrum) -> Spectrum:
    return Spectrum(spectrum.values.cpu(), spectrum.weights.cpu(), spectrum.complete)
