"""Ranks: the processes of a torch.distributed group that measure one network together."""

from __future__ import annotations

import itertools
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from isometry.errors import InvalidValueError
from isometry.measurement.batch import Batch, map_entries

__all__ = ["RankFailedError", "Ranks"]

Result = TypeVar("Result")


class RankFailedError(RuntimeError):
    """Another rank failed in the middle of work that all do together.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _Failure:
    """The end of a rank's part of the work.

    Attributes:
        error: what it raised.
    """

    error: Exception


@dataclass(frozen=True)
class Ranks:
    """Processes that run the same code on different samples and exchange what they find, so that all go on alike.

    Every method is a meeting of all of them: each must call it, in the same order. With one process they only return what
    they are given.

    Attributes:
        size: the number of processes.
        rank: this one's number.
    """

    size: int = 1
    rank: int = 0

    @classmethod
    def present(cls, split: bool = True) -> Ranks:
        """Return the processes of the default group where one is initialized; else, or unless `split`, this one alone."""
        if not (split and distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_world_size(), distributed.get_rank())

    def share(self, batch: Batch) -> Batch:
        """Return this rank's samples of a batch; where there are fewer samples than ranks, the last ranks repeat the first one's."""
        shares = self._shares(len(batch))
        own = shares[self.rank] if self.rank < len(shares) else shares[0]
        return batch.share(own.start, own.stop)

    def _shares(self, samples: int) -> list[range]:
        """Return the samples of every rank that has any, in order."""
        ends = [samples * rank // min(self.size, samples) for rank in range(min(self.size, samples) + 1)]
        return [range(start, stop) for start, stop in itertools.pairwise(ends)]

    def gather(self, work: Callable[[], Result], samples: int) -> list[Result]:
        """Do this rank's share of the work on some samples; return the results of all shares, in order.

        Raises:
            Exception: what the first rank that failed raised, on every rank.
        """
        return self._exchange(work)[: len(self._shares(samples))]

    def together(self, work: Callable[[], Result]) -> Result:
        """Do what every rank does alike, and return its own result; raise on every rank what any of them raised."""
        result: list[Result] = []
        self._exchange(lambda: result.append(work()))
        return result[0]

    def all_agree(self, flag: bool) -> bool:
        """Return whether it holds on every rank; raises `RankFailedError` where another rank has failed instead."""
        if self.size == 1:
            return flag
        answers = self._all_gather(flag)
        for answer in answers:
            if isinstance(answer, _Failure):
                raise RankFailedError(answer.error)
        return all(answers)

    def largest(self, number: float) -> float:
        """Return the largest of the ranks' numbers."""
        return number if self.size == 1 else max(self._all_gather(number))

    def alike(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches that are the same on every rank.

        Raises:
            ValueError: they are not; the samples of different ranks would be mixed.
        """
        if self.size == 1:
            yield from batches
            return
        iterator = iter(batches)
        while True:
            batch: Batch | None = self.together(lambda: next(iterator, None))
            if len(set(self._all_gather(None if batch is None else _digest(batch)))) > 1:
                raise InvalidValueError(
                    f"got different inputs on the {self.size} ranks of the process group; it splits the same inputs over "
                    "them. Pass every rank all inputs, without a DistributedSampler, or measure on one rank alone: "
                    "measure(model, x, distributed=False)."
                )
            if batch is None:
                return
            yield batch

    def check_same(self, model: nn.Module, settings: str) -> None:
        """Refuse networks or options that differ between ranks."""
        if self.size == 1:
            return
        tensors = [
            tensor for _, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items())
        ]
        answers = self._all_gather((settings, tuple(map(_checksum, tensors))))
        if any(answer[0] != answers[0][0] for answer in answers):
            raise InvalidValueError(
                f"got different options on the {self.size} ranks of the process group; every rank must call it alike, e.g. "
                "measure(model, x), or one alone: measure(model, x, distributed=False)."
            )
        if any(answer != answers[0] for answer in answers):
            raise InvalidValueError(
                f"got networks of different weights on the {self.size} ranks of the process group. Load the same ones on "
                "every rank, or measure each by itself: measure(model, x, distributed=False)."
            )

    def _exchange(self, work: Callable[[], Result]) -> list[Result]:
        if self.size == 1:
            return [work()]
        try:
            outcome: Any = work()
        except RankFailedError as failed:
            raise failed.error from None  # it has told the others already
        except Exception as error:
            outcome = _Failure(error)
        outcomes = self._all_gather(_picklable(outcome) if isinstance(outcome, _Failure) else outcome)
        failures = [other for other in outcomes if isinstance(other, _Failure)]
        if failures:
            raise outcome.error if isinstance(outcome, _Failure) else failures[0].error
        return outcomes

    def _all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


def _picklable(failure: _Failure) -> _Failure:
    """Return the failure with an error that can travel to other processes."""
    try:
        pickle.loads(pickle.dumps(failure.error))
    except Exception:
        return _Failure(RuntimeError(f"{type(failure.error).__name__}: {failure.error}"))
    return failure


def _digest(batch: Batch) -> tuple[Any, ...]:
    sums: list[Any] = []
    map_entries(batch.values, lambda part: sums.append(_checksum(part) if isinstance(part, Tensor) else repr(part)))
    return len(batch), *sums


def _checksum(tensor: Tensor) -> tuple[tuple[int, ...], int]:
    """Return the shape and a checksum of the bytes."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return tuple(tensor.shape), zlib.crc32(content.data if content.size else b"")
