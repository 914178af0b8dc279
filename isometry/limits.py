"""Which numbers arguments take."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from isometry.errors import InvalidValueError

__all__ = ["SEED", "Number", "check_number"]


@dataclass(frozen=True)
class Number:
    """Which numbers an argument takes; its text says so in a message.

    Attributes:
        least: the smallest one.
        above: whether they have to be larger than that.
        below: what they have to be less than.
        whole: whether they have to be integers.
        optional: whether None is accepted too.
    """

    least: float = -math.inf
    above: bool = False
    below: float = math.inf
    whole: bool = False
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a value, of whatever type, is such a number: no text, no bool, finite."""
        if value is None or isinstance(value, bool | str | bytes):
            return value is None and self.optional
        try:
            number = operator.index(value) if self.whole else float(value)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several entries
            return False
        high_enough = number > self.least if self.above else number >= self.least
        return math.isfinite(number) and high_enough and number < self.below

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if self.least > -math.inf:
            text += f" above {self.least:g}" if self.above else f" of at least {self.least:g}"
        if self.below < math.inf:
            text += f" and below {self.below:g}"
        return f"{text} or None" if self.optional else text


SEED = Number(whole=True)
"""Of everything random."""


def check_number(name: str, value: Any, accepted: Number, example: str) -> None:
    """Refuse what is not one of the accepted numbers.

    Args:
        name: of the argument.
        value: what was given for it.
        accepted: what it takes.
        example: a call that works.
    """
    if not accepted.accepts(value):
        raise InvalidValueError(f"got {name}={value!r}; it takes {accepted}, e.g. {example}.")
