"""Patches and the ridge problem, against slow and independent versions."""

from typing import Any

import pytest
import torch
from torch import nn

from isometry.repairs.least_squares import NormalEquations, draw_positions, output_samples, patches


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.Linear(5, 3, bias=False), (4, 5), id="linear"),
        pytest.param(nn.Linear(5, 3, bias=False), (4, 6, 7, 5), id="tokens"),
        pytest.param(nn.Conv1d(4, 6, 3, 2, bias=False), (4, 4, 11), id="1d"),
        pytest.param(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), bias=False), (4, 4, 8, 9), id="2d"),
        pytest.param(
            nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False), (4, 4, 6, 5), id="reflected"
        ),
        pytest.param(nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), (4, 4, 6, 6), id="grouped"),
        pytest.param(nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), (4, 4, 6, 6), id="depthwise"),
        pytest.param(nn.Conv3d(2, 3, 2, bias=False), (4, 2, 4, 5, 3), id="3d"),
    ],
)
@pytest.mark.parametrize("count", [3, 10_000])
def test_weights_times_patches_are_outputs(layer: Any, shape: tuple[int, ...], count: int) -> None:
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    positions = draw_positions(layer, y, count, torch.Generator().manual_seed(0))
    assert all(len(row.unique()) == len(row) for row in positions)
    read = patches(layer, x, y.shape[1:], positions)
    weight = layer.weight.flatten(1).unflatten(0, (len(read), -1))
    given = (read @ weight.mT).transpose(0, 1).flatten(1)
    torch.testing.assert_close(given, output_samples(layer, y, positions))


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_solution_is_that_of_the_augmented_system(centered: bool, masked: bool) -> None:
    torch.manual_seed(0)
    u, t, start = torch.randn(50, 4) + 1, torch.randn(50, 3) + 2, torch.randn(1, 3, 4)
    if masked:
        start[0, 0, 1] = start[0, 2, 3] = start[0, 2, 0] = 0
    u, t, start = u.double(), t.double(), start.double()
    equations = NormalEquations()
    equations.add(u[None, :20], t[:20])
    equations.add(u[None, 20:], t[20:])
    weight, constant = equations.solve(start, 0.1, centered=centered)
    mean = u.mean(0) if centered else torch.zeros(4, dtype=torch.float64)
    strength = (0.1 * ((u - mean) ** 2).sum(0).mean()).sqrt()
    for row in range(3):
        support = start[0, row] != 0
        ones = torch.ones(50, 1).double() * centered
        upper = torch.cat([u[:, support], ones], 1)
        lower = torch.cat(
            [strength * torch.eye(int(support.sum())).double(), torch.zeros(int(support.sum()), 1).double()], 1
        )
        known = torch.cat([t[:, row], strength * start[0, row, support]])
        expected = torch.linalg.lstsq(torch.cat([upper, lower]), known[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(weight[0, row, support], expected[:-1])
        assert not weight[0, row, ~support].any()
        if centered:
            torch.testing.assert_close(constant[row], expected[-1])
        else:
            assert constant[row] == 0


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_dead_and_duplicated_inputs_leave_a_finite_solution_near_the_start(ridge: float) -> None:
    torch.manual_seed(0)
    u = torch.randn(30, 4).double()
    u[:, 1] = 0
    u[:, 3] = u[:, 2]
    start = torch.ones(1, 1, 4).double()
    equations = NormalEquations()
    equations.add(u[None], (u @ torch.tensor([2.0, 0, 1, 3]).double())[:, None])
    weight, _ = equations.solve(start, ridge, centered=False)
    torch.testing.assert_close(weight[0, 0], torch.tensor([2.0, 1, 2, 2]).double(), rtol=0, atol=0.01)
    nothing = NormalEquations()
    nothing.add(torch.zeros(1, 9, 4), torch.ones(9, 1))
    assert torch.equal(nothing.solve(start, ridge, centered=True)[0], start)
