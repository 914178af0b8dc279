"""Measurements in modes: what is changed, wrong or refused is found."""

import pytest
import torch
from torch import nn

from isometry.trials.faults import modes
from isometry.trials.faults.restarts import CRASHED, REFUSED, SAME, WRONG
from isometry.trials.faults.specimens import SPECIMENS, Specimen


def test_there_are_fifty_specimens_and_ten_modes() -> None:
    assert (len(SPECIMENS), len(modes.MODES)) == (50, 10)


@pytest.mark.parametrize("mode", [mode for mode in modes.MODES if mode != "torch.inference_mode"])
def test_batch_norm_is_measured_alike_in_every_mode(mode: str) -> None:
    assert modes.measure_in(mode, SPECIMENS["BatchNorm1d"]) == SAME


def test_refusals_are_told_from_errors() -> None:
    assert modes.measure_in("torch.inference_mode", SPECIMENS["GELU"]) == REFUSED
    assert modes.measure_in("eval mode", SPECIMENS["BatchNorm without statistics"]) == REFUSED


def test_what_a_measurement_changes_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model: nn.Module, inputs: torch.Tensor, **_: object) -> object:
        torch.rand(1)
        return measured(model, inputs, progress=False)

    measured = modes.measure
    monkeypatch.setattr(modes, "measure", careless)
    assert modes.measure_in("eval mode", SPECIMENS["GELU"]) == WRONG

    def failing(*_: object, **__: object) -> object:
        raise RuntimeError

    monkeypatch.setattr(modes, "measure", failing)
    assert modes.measure_in("eval mode", SPECIMENS["GELU"]) == CRASHED


def test_tensors_kept_in_the_forward_pass_are_removed() -> None:
    assert modes.measure_in("eval mode", SPECIMENS["spectral normalization by hook"]) == SAME

    class Keeps(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = x
            return super().forward(x)

    assert modes.measure_in("eval mode", Specimen(lambda: Keeps(6, 3))) == SAME
