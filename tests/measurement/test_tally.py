"""When to stop."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isometry import measure, networks
from isometry.measurement.options import Options
from isometry.measurement.tally import Tally


def unequal_samples() -> Tensor:
    """300 samples [300, 1, 32, 32] of scales from 0.1 to 3: their mean JSVs differ."""
    return torch.randn(300, 1, 32, 32) * torch.linspace(0.1, 3, 300).view(-1, 1, 1, 1)


def test_sampling_goes_on_until_rtol() -> None:
    loose = measure(networks.build("lenet-5-relu", seed=0), unequal_samples(), rtol=0.1)
    half = (loose.interval[1] - loose.interval[0]) / 2 / loose.mean_jsv
    assert half <= 0.1
    assert len(loose.spectrum) < 300
    assert any("rtol=0.1 reached after" in note for note in loose.notes)


def test_sampling_ends_with_the_inputs() -> None:
    tight = measure(networks.build("lenet-5-relu", seed=0), unequal_samples(), rtol=0.002)
    assert len(tight.spectrum) == 300
    assert any("rtol=0.002 NOT reached: the inputs ran out after 300 samples" in note for note in tight.notes)


def test_inputs_are_drawn_until_rtol() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    drawn = measure(net, rtol=0.05)
    assert any("reached" in note for note in drawn.notes)


class Sized(nn.Module):
    """A map whose size is the first entry of its input: J = x_0 W, x_0 having no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(6, 6)).Q)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1].detach() * (x[:, 1:] @ self.weight.T)


def sorted_samples() -> tuple[Tensor, Tensor]:
    """Return inputs [400, 7] of ten classes, one after the other, and their sizes [400], which grow with the class."""
    sizes = torch.arange(400).div(40, rounding_mode="floor") + 1.0 + 0.05 * torch.rand(400)
    return torch.cat([sizes[:, None], torch.randn(400, 6)], 1), sizes


@pytest.mark.parametrize("kind", ["loader", "data set", "list of batches"])
def test_sorted_samples_are_taken_in_random_order(kind: str) -> None:
    x, sizes = sorted_samples()
    dataset = TensorDataset(x, torch.zeros(len(x)))
    inputs = {"loader": DataLoader(dataset, batch_size=20), "data set": dataset, "list of batches": list(x.split(20))}[
        kind
    ]
    report = measure(Sized(), inputs, rtol=0.1)
    assert len(report.spectrum) > 32
    assert report.mean_jsv == pytest.approx(float(sizes.mean()), rel=0.2)


def stream(x: Tensor) -> Iterator[Tensor]:
    yield from x.split(10)


def test_a_stream_says_that_its_order_is_taken_to_be_random() -> None:
    x, _ = sorted_samples()
    report = measure(Sized(), stream(x[torch.randperm(400)]), rtol=0.3)
    assert any("stream" in note for note in report.notes)


def test_a_stream_that_drifts_does_not_end_early() -> None:
    sizes = torch.linspace(1, 10, 400)
    x = torch.cat([sizes[:, None], torch.randn(400, 6)], 1)
    report = measure(Sized(), stream(x), rtol=0.5)
    assert len(report.spectrum) == 400
    assert report.mean_jsv == pytest.approx(float(sizes.mean()), rel=1e-3)


def test_the_interval_is_looked_at_after_numbers_of_samples_that_were_planned() -> None:
    x = torch.cat([torch.rand(5000, 1) + 0.5, torch.randn(5000, 6)], 1)
    found = [len(measure(Sized(), x, rtol=rtol, progress=False).spectrum) for rtol in (0.5, 0.02)]
    assert found[0] == 32
    assert 300 < found[1] < 2000


def test_runs_that_stop_early_hold_the_truth() -> None:
    net = Sized().double()
    held = 0
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        sizes = (0.5 * torch.randn(1500, 1, generator=g, dtype=torch.float64)).exp()
        x = torch.cat([sizes, torch.ones(1500, 6, dtype=torch.float64)], 1)
        low, high = measure(net, x, rtol=0.1, seed=seed, progress=False).interval
        held += low <= math.exp(0.125) <= high
    assert held >= 180


def test_few_skewed_samples_are_said_to_be_so() -> None:
    sizes = torch.tensor([1.0, 1.1, 0.9, 1.0, 9.0])
    report = measure(Sized(), torch.cat([sizes[:, None], torch.randn(5, 6)], 1))
    assert any("skewed" in note for note in report.notes)


def test_an_empty_tally_has_no_mean() -> None:
    assert not len(Tally(Options()).sample_means)


def test_derivatives_that_underflow_are_no_silent_zero() -> None:
    deep = nn.Sequential(*(nn.Linear(20, 20) for _ in range(200)))
    report = measure(deep, torch.randn(4, 20))
    assert report.mean_jsv == 0
    assert any("underflow" in note for note in report.notes)
    assert 0 < measure(deep, torch.randn(4, 20), dtype=torch.float64).mean_jsv < 1e-30
