"""The random numbers of one training, kept apart from those of everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["RandomState"]


class RandomState:
    """The generators of one training: one for the order of the samples, and states of torch's global generators.

    Dropout and augmentation draw from the global generators. `active` swaps the states of this training in and, at the
    end, those of the caller back in, so that training neither depends on what else is drawn nor changes it.

    Args:
        seed: of all of them.
        device: where the network is; on "cuda" the state of that device's generator is swapped too.
        others: generators of the user's, those of a loader for instance, whose states are kept with the others.
    """

    def __init__(self, seed: int, device: torch.device, others: Mapping[str, torch.Generator] | None = None) -> None:
        self._others = dict(others or {})
        self._device = device if device.type == "cuda" else None
        self._order = torch.Generator().manual_seed(seed)
        with self._forked():
            torch.default_generator.manual_seed(seed)
            if self._device:
                torch.cuda.manual_seed(seed)
            self._global = self._read()

    def permutation(self, count: int) -> Tensor:
        """Return the next random order of `count` samples: [count] int64."""
        return torch.randperm(count, generator=self._order)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the global generators those of this training; afterwards they have the caller's states again."""
        with self._forked():
            torch.set_rng_state(self._global["cpu"])
            if self._device:
                torch.cuda.set_rng_state(self._global["cuda"], self._device)
            try:
                yield
            finally:
                self._global = self._read()

    def state(self) -> dict[str, Tensor]:
        """Return the state of every generator by name, as bytes."""
        others = {f"other.{name}": generator.get_state() for name, generator in self._others.items()}
        noise = {f"noise.{name}": state for name, state in self._global.items()}
        return {"order": self._order.get_state()} | noise | others

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the generators to what `state` returned; one that is missing there, of another device, stays as it is."""
        self._order.set_state(state["order"])
        for name, generator in self._others.items():
            if f"other.{name}" in state:
                generator.set_state(state[f"other.{name}"])
        self._global = {name: state.get(f"noise.{name}", own) for name, own in self._global.items()}

    def _forked(self) -> contextlib.AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self._device] if self._device else [])

    def _read(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self._device)} if self._device else {})
