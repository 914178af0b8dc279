"""Peak memory of a fresh process."""

import pytest
import torch
from torch import Tensor

from isometry.trials.resources import can_measure_memory, peak_memory


def allocate(like: Tensor) -> None:
    torch.ones(64, 1024, 1024, dtype=like.dtype).sum()


def warm_up(like: Tensor) -> None:
    like.sum()


@pytest.mark.skipif(not can_measure_memory(), reason="peak memory is read from /proc")
def test_peak_memory_is_what_the_call_adds() -> None:
    assert peak_memory(allocate, warm_up, torch.ones(1)) == pytest.approx(256, rel=0.2)
