"""Measurements end: at a stated cap, or with what was seen when they are interrupted."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from isometry import measure
from isometry.measurement.measuring import interrupts_raised
from tests.models import Wired


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(4)


def test_an_endless_loader_is_capped_and_the_report_says_so() -> None:
    report = measure(nn.Linear(4, 2), DataLoader(Endless(), batch_size=48))
    assert len(report.spectrum) == 1024
    assert "the first 1024 of inputs without a length, which may have no end; rtol=0.05 goes on" in str(report)


def test_what_ends_by_itself_is_not_capped() -> None:
    net, batches = nn.Linear(4, 2), [torch.randn(300, 4)] * 4
    for inputs in (batches, DataLoader(torch.randn(1200, 4), batch_size=300)):  # type: ignore[arg-type]
        report = measure(net, inputs)
        assert len(report.spectrum) == 1200
        assert "the first" not in str(report)
    assert len(measure(net, iter(batches[:2])).spectrum) == 600
    cubic = Wired(lambda m, x: x**3)
    assert len(measure(cubic, DataLoader(Endless(), batch_size=500), rtol=0.03).spectrum) > 1024


def interrupted(net: nn.Module, after: int) -> nn.Module:
    """A network that is interrupted in the forward pass after so many."""
    passes = [0]

    def forward(m: Any, x: Tensor) -> Tensor:
        passes[0] += 1
        if passes[0] > after:
            raise KeyboardInterrupt
        return m.net(x)

    return Wired(forward, net=net)


def stream() -> Iterator[Tensor]:
    for _ in range(3):
        yield torch.ones(2, 4)
    raise KeyboardInterrupt


def test_an_interrupt_returns_the_report_of_what_was_seen() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.Dropout()).train()
    state = torch.get_rng_state()
    with pytest.warns(
        UserWarning, match=r"measure\(\) was interrupted: its report is that of the 6 samples seen"
    ) as notes:
        report = measure(net, stream())
    assert notes[0].filename == __file__
    assert len(report.spectrum) == 6
    assert "INTERRUPTED after 6 samples" in report.notes
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_tolerance_that_was_not_reached_when_interrupted_is_not_said_to_be() -> None:
    with pytest.warns(UserWarning, match="interrupted"):
        report = measure(Wired(lambda m, x: x.tanh()), (torch.randn(2, 4) * batch for batch in stream()), rtol=0.001)
    assert any("NOT reached: it was interrupted after 6 samples" in note for note in report.notes)


def test_an_interrupt_before_two_samples_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(interrupted(nn.Linear(4, 2), 3), torch.randn(5, 4))


def test_programs_can_have_interrupts_raised() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_raised():
        measure(nn.Linear(4, 2), stream())


def test_an_interrupt_of_the_reference_keeps_the_report_of_the_network() -> None:
    net = nn.Linear(4, 2)
    with pytest.warns(UserWarning, match="interrupted"):
        report = measure(net, torch.randn(5, 4), reference=interrupted(nn.Linear(4, 2), 3))
    assert report.reference is None
    assert "INTERRUPTED before the reference was measured" in report.notes
    assert len(report.spectrum) == 5
    with pytest.warns(UserWarning, match="6 samples"):
        assert measure(net, stream(), reference=net).reference is None
