"""Isometry under zeros."""

import itertools

import pytest
import torch
from torch import Tensor

from isometry.repairs.approximation import fit_orthogonal, fit_product
from isometry.repairs.paths import disjoint_paths
from tests.references import generic_rank


def sparse(sizes: list[int], density: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(b, a, generator=g, dtype=torch.float64) / a**0.5 for a, b in itertools.pairwise(sizes)]
    return weights, [torch.rand(w.shape, generator=g) < density for w in weights]


def singular_values(weights: list[Tensor]) -> Tensor:
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return torch.linalg.svdvals(product)


@pytest.mark.parametrize(
    ("sizes", "density"),
    [
        pytest.param([12, 10, 10, 5], 0.5, id="some zeros"),
        pytest.param([20, 16, 16, 6], 0.15, id="many zeros"),
        pytest.param([6, 12, 20], 0.2, id="widening"),
        pytest.param([30] + [25] * 40 + [5], 0.2, id="deep"),
    ],
)
def test_as_many_singular_values_become_one_as_there_are_disjoint_paths(sizes: list[int], density: float) -> None:
    for seed in range(4):
        weights, supports = sparse(sizes, density, seed)
        fitted = fit_product(weights, supports)
        rank = generic_rank(supports)
        expected = torch.zeros(min(sizes[0], sizes[-1]), dtype=torch.float64)
        expected[:rank] = 1
        torch.testing.assert_close(singular_values(fitted), expected, rtol=0, atol=1e-3)
        assert all(bool((one[~free] == 0).all()) for one, free in zip(fitted, supports, strict=True))


def test_paths_share_no_unit_and_multiply_to_a_part_of_a_permutation() -> None:
    for seed in range(5):
        _, supports = sparse([9, 12, 8, 10, 7], 0.2, seed)
        paths = disjoint_paths(supports)
        assert all(bool((free | ~path).all()) for free, path in zip(supports, paths, strict=True))
        product = torch.eye(9)
        for path in paths:
            assert int(path.sum(0).max()) <= 1 >= int(path.sum(1).max())
            product = path.float() @ product
        assert int(torch.linalg.matrix_rank(product)) == generic_rank(supports) == int(paths[0].sum())


def test_a_start_that_is_isometric_stays() -> None:
    weight = torch.block_diag(*[torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q for _ in range(4)])
    torch.testing.assert_close(fit_orthogonal(weight, weight != 0), weight)
    (fitted,) = fit_product([5 * weight], [weight != 0])
    torch.testing.assert_close(fitted, weight)


@pytest.mark.parametrize("shape", [(6, 30), (30, 6)])
def test_one_weight_becomes_orthogonal_where_its_zeros_allow_it(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    free = torch.rand(shape) < 0.6
    fitted = fit_orthogonal(torch.randn(shape), free)
    assert fitted.dtype == torch.float32
    assert bool((fitted[~free] == 0).all())
    torch.testing.assert_close(torch.linalg.svdvals(fitted), torch.ones(6), rtol=0, atol=1e-5)


def test_rows_without_a_free_entry_stay_zero_and_a_weight_of_zeros_gets_a_start() -> None:
    free = torch.ones(3, 5, dtype=torch.bool)
    free[1] = False
    fitted = fit_orthogonal(torch.zeros(3, 5), free)
    torch.testing.assert_close(torch.linalg.svdvals(fitted), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-5)
    assert not bool(fit_orthogonal(torch.randn(3, 5), torch.zeros(3, 5, dtype=torch.bool)).any())
