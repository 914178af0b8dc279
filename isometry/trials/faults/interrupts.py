"""Verbs that are interrupted, and what it comes to when they are called again."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import isometry
from isometry.data import Split
from isometry.trials.faults.modes import mixed
from isometry.trials.faults.restarts import CRASHED, SAME, WRONG
from isometry.trials.faults.specimens import SPECIMENS
from isometry.trials.faults.surroundings import changes, record

__all__ = ["PLACES", "VERBS", "interrupt"]

_PACKAGE, _HERE = str(Path(isometry.__file__).parent), str(Path(__file__).parent)
_TRIES = 50
_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"method": "krylov"}, {"layers": True}, {"rtol": 0.5}, {"budget": 40})


class Subject(NamedTuple):
    """A call, and what an interrupt of it must leave alone.

    Attributes:
        call: makes the call on what the last one left behind; returns its result: tensors, texts and numbers.
        models: the networks that must come out as they went in.
    """

    call: Callable[[], tuple[Any, ...]]
    models: tuple[nn.Module, ...] = ()


def _measurement(index: int, folder: Path) -> Subject:
    """Return a measurement of one of the specimens, some modules in train mode, some parameters frozen."""
    specimen = list(SPECIMENS.values())[index % len(SPECIMENS)]
    model, inputs = specimen.make()
    options = _OPTIONS[index % len(_OPTIONS)] | specimen.options

    def call() -> tuple[Any, ...]:
        try:
            return (isometry.measure(model, inputs, progress=False, **options).mean_jsv,)
        except ValueError as error:
            return (str(error),)

    with mixed(model):
        return Subject(call, (model,))


def _pruning(index: int, folder: Path) -> Subject:
    """Return L1, GReg or TPP on an MLP or a ConvNet; the latter two train."""
    name, widths = [("conv-4", (4, 4, 6, 6)), ("mlp-7-relu", (12, 12, 12))][index % 2]
    model = isometry.networks.build(name, seed=0, input_shape=(1, 8, 8), widths=widths)
    schedule: dict[str, Any] = {"delta": 0.1, "interval": 1, "ceiling": 1.0, "stabilize": 10}
    pruner = (isometry.L1(), isometry.GReg(**schedule), isometry.TPP(**schedule, zero_out=2))[index % 3]

    def call() -> tuple[Any, ...]:
        result = isometry.prune(model, pruner, 0.5, data=_samples(), progress=False)
        return result.plan.to_json(), *result.model.state_dict().values()

    return Subject(call, (model,))


def _training(index: int, folder: Path) -> Subject:
    """Return six epochs with dropout; each call takes a new network and goes on from the last one's checkpoint."""

    def call() -> tuple[Any, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 10))
        path = folder / "training.safetensors"
        for _ in isometry.train(model, _samples(), lr=0.01, epochs=6, batch_size=32, checkpoint=path):
            pass
        return tuple(model.state_dict().values())

    return Subject(call)


def _samples() -> Split:
    """Return 96 random images with classes."""
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(96, 1, 8, 8, generator=generator), torch.randint(10, (96,), generator=generator))


VERBS: dict[str, Callable[[int, Path], Subject]] = {
    "measure": _measurement,
    "prune": _pruning,
    "train": _training,
}


def _after_a_time(subject: Subject, chance: random.Random) -> contextlib.AbstractContextManager[None]:
    start = time.perf_counter()
    subject.call()
    return _alarmed(chance.uniform(0, time.perf_counter() - start))


@contextlib.contextmanager
def _alarmed(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-4))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _at_a_line(subject: Subject, chance: random.Random) -> contextlib.AbstractContextManager[None]:
    """Interrupt where a line is about to run: every line of the package that runs is as likely, and every time that it does."""
    seen: Counter[tuple[str, int]] = Counter()
    with _traced(seen):
        subject.call()
    line = chance.choice(sorted(seen))
    return _traced(Counter(), line, chance.randint(1, seen[line]))


@contextlib.contextmanager
def _traced(seen: Counter[tuple[str, int]], line: tuple[str, int] = ("", 0), time: int = 0) -> Iterator[None]:
    """Count how often each line of the package runs; send SIGINT when `line` does for the given time."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) or name.startswith(_HERE):
            return None
        if event == "line":
            place = (name, frame.f_lineno)
            seen[place] += 1
            if place == line and seen[place] == time:
                signal.raise_signal(signal.SIGINT)
        return trace

    before, handler = sys.gettrace(), signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        signal.signal(signal.SIGINT, handler)


def _in_a_forward_pass(subject: Subject, chance: random.Random) -> contextlib.AbstractContextManager[None]:
    """Raise in a module: KeyboardInterrupt or RuntimeError."""
    calls = itertools.count(1)
    with _hooked(lambda *_: next(calls)):
        subject.call()
    last, error = chance.randrange(1, next(calls)), chance.choice((KeyboardInterrupt, RuntimeError))
    calls = itertools.count(1)

    def stop(*_: object) -> None:
        if next(calls) == last:
            raise error("on purpose")

    return _hooked(stop)


@contextlib.contextmanager
def _hooked(hook: Callable[..., Any]) -> Iterator[None]:
    handle = register_module_forward_pre_hook(lambda *_: hook() and None)
    try:
        yield
    finally:
        handle.remove()


PLACES: dict[str, Callable[[Subject, random.Random], contextlib.AbstractContextManager[None]]] = {
    "after a random time": _after_a_time,
    "at a random line": _at_a_line,
    "in a random forward pass": _in_a_forward_pass,
}


def interrupt(verb: str, place: str, index: int) -> str:
    """Interrupt a call, call again, and return what came of it.

    Args:
        verb: one of `VERBS`.
        place: where it is interrupted, one of `PLACES`.
        index: which of its variants; also seeds the choice of the moment.

    Returns:
        Wrong also where the interrupt has changed something.
    """
    chance = random.Random(index)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        folders = (Path(scratch) / str(number) for number in itertools.count())
        expected = VERBS[verb](index, next(folders)).call()
        for _ in range(_TRIES):
            interruption = PLACES[place](VERBS[verb](index, next(folders)), chance)
            subject = VERBS[verb](index, next(folders))
            before = record(*subject.models)
            try:
                with interruption:
                    subject.call()
            except (KeyboardInterrupt, RuntimeError, ValueError):
                break
        else:
            raise RuntimeError(f"{verb} ended {_TRIES} times before it was interrupted {place}")
        changed = changes(before, record(*subject.models))
        try:
            again = subject.call()
        except Exception:
            return CRASHED
        return SAME if not changed and len(again) == len(expected) and all(map(_same, again, expected)) else WRONG


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)
