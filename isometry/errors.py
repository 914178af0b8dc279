"""Errors without a verb, raised in the lower rooms; the verb that the user called signs them at the front door.

A lower room does not know who called it. It raises `InvalidValueError("got inputs of shape ...")`, and `signed("measure")` around
the user's call turns that into `ValueError("measure() got inputs of shape ...")`, a built-in type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch

__all__ = [
    "AdjointError",
    "InvalidTypeError",
    "InvalidValueError",
    "NonFiniteError",
    "interrupt_explained",
    "is_out_of_memory",
    "join_names",
    "signed",
]

_inside: ContextVar[bool] = ContextVar("inside a verb", default=False)
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class InvalidValueError(ValueError):
    """A value that is not accepted; its text begins with what arrived and ends in a call that works."""


class InvalidTypeError(TypeError):
    """A type that is not accepted; likewise."""


@contextlib.contextmanager
def signed(verb: str) -> Iterator[None]:
    """Raise the errors of lower rooms as built-in ones whose text begins with the verb; also works as a decorator.

    Within another `signed` the errors pass: the verb that the user called signs them, `prune` for instance, which trains.

    Args:
        verb: the public function that the user called, without parentheses, e.g. "measure".
    """
    inside = _inside.get()
    token = _inside.set(True)
    try:
        yield
    except InvalidValueError as error:
        if inside:
            raise
        raise ValueError(f"{verb}() {error}") from error.__cause__
    except InvalidTypeError as error:
        if inside:
            raise
        raise TypeError(f"{verb}() {error}") from error.__cause__
    finally:
        _inside.reset(token)


@contextlib.contextmanager
def interrupt_explained(text: str) -> Iterator[None]:
    """Let an interrupt say what was kept: Python shows it below the traceback, from 3.11 on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if hasattr(interrupt, "add_note"):
            interrupt.add_note(text)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Return names separated by commas; of more than `most`, the first two and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"


class AdjointError(ArithmeticError):
    """<u, J v> and <Jᵀu, v> differ: one of the two derivatives is wrong.

    Attributes:
        gap: their difference, as a share of their size.
    """

    def __init__(self, gap: float) -> None:
        super().__init__(f"<u, J v> and <Jᵀu, v> differ by {gap:.1e} of their size")
        self.gap = gap


class NonFiniteError(ArithmeticError):
    """NaN or infinite values.

    Attributes:
        place: "outputs" or "gradient".
    """

    def __init__(self, place: str) -> None:
        super().__init__(f"NaN or infinite values in the {place}")
        self.place = place
