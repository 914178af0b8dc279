"""A moment at which trainings that keep a checkpoint end, to go on another time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["OutOfTimeError", "is_over", "stop_at"]

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class OutOfTimeError(Exception):
    """The time was up before the last epoch of a training; its checkpoint holds the epochs done."""


@contextlib.contextmanager
def stop_at(moment: float | None) -> Iterator[None]:
    """Let trainings inside raise `OutOfTimeError` after the first epoch that ends at `moment` or later and is not their last.

    Trainings without a checkpoint go on, as their epochs would be lost.

    Args:
        moment: in seconds, as `time.time` counts them; None for no limit.
    """
    token = _deadline.set(moment)
    try:
        yield
    finally:
        _deadline.reset(token)


def is_over(moment: float | None = None) -> bool:
    """Whether a moment has come; of None, that of `stop_at`."""
    moment = _deadline.get() if moment is None else moment
    return moment is not None and time.time() >= moment
