"""Interrupted verbs, called again."""

import contextlib

import pytest
from torch import nn

from isometry.networks.preservation import restoring
from isometry.trials.faults import interrupts
from isometry.trials.faults.restarts import SAME, WRONG


@pytest.mark.parametrize("place", interrupts.PLACES)
@pytest.mark.parametrize("verb", ["measure", "train"])
def test_an_interrupt_changes_nothing(verb: str, place: str) -> None:
    assert interrupts.interrupt(verb, place, 6) == SAME


def test_what_an_interrupt_leaves_behind_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(index: int, folder: object) -> interrupts.Subject:
        net = nn.Dropout()

        def call() -> tuple[object, ...]:
            net.eval()
            net(interrupts._samples().inputs)
            net.train()
            return ()

        return interrupts.Subject(call, (net,))

    monkeypatch.setitem(interrupts.VERBS, "careless", careless)
    assert interrupts.interrupt("careless", "in a random forward pass", 0) == WRONG


def test_a_call_that_cannot_be_interrupted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interrupts.VERBS, "stubborn", lambda *_: interrupts.Subject(_stubborn))
    with pytest.raises(
        RuntimeError, match="stubborn ended 50 times before it was interrupted in a random forward pass"
    ):
        interrupts.interrupt("stubborn", "in a random forward pass", 0)


def _stubborn() -> tuple[object, ...]:
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt, RuntimeError):
            nn.Identity()(interrupts._samples().inputs)
    return ()


def test_an_interrupt_while_something_is_restored_restores_it_whole() -> None:
    calls: list[int] = []

    def restore() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), restoring(restore):
        pass
    assert len(calls) == 2
