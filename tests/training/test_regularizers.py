"""Regularizers that draw weights towards orthogonality."""

import pytest
import torch
from torch import nn

import isometry
from isometry import KernOrth, OrthConv, networks, train
from isometry.spectra import Convolution, Spectrum, exact
from isometry.training.regularizers import convolution_orthogonality, kernel_orthogonality
from tests.references import slow_convolution_orthogonality


def test_kernel_orthogonality_is_the_distance_of_the_gram_matrix_from_one() -> None:
    wide, tall = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    flat = wide.flatten(1)
    assert float(kernel_orthogonality(wide)) == pytest.approx(float((flat @ flat.T - torch.eye(4)).norm()))
    assert float(kernel_orthogonality(tall)) == pytest.approx(float((tall.T @ tall - torch.eye(4)).norm()))
    rows = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64)).Q.T
    assert float(kernel_orthogonality(rows.view(4, 3, 2, 2))) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_orthogonality_is_zero_where_the_operator_has_orthonormal_rows(stride: int) -> None:
    torch.manual_seed(0)
    kernel = torch.zeros(4, 5, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = torch.linalg.qr(torch.randn(5, 4, dtype=torch.float64)).Q.T
    assert float(convolution_orthogonality(kernel, (stride, stride))) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_orthogonality_is_the_distance_of_the_operators_rows_from_orthonormal(stride: int) -> None:
    dense = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    slow = slow_convolution_orthogonality(dense, stride)
    assert float(convolution_orthogonality(dense, (stride, stride))) == pytest.approx(slow, rel=1e-10)


def test_regularized_training_brings_layers_nearer_to_orthogonality(digits: isometry.data.Data) -> None:
    def net() -> nn.Module:
        return networks.build("conv-4", seed=0, input_shape=(1, 8, 8), widths=(8, 8, 8, 8))

    start, plain, kernel, convolution = net(), net(), net(), net()
    list(train(plain, digits, lr=0.02, epochs=3, batch_size=64))
    list(train(kernel, digits, lr=0.02, epochs=3, batch_size=64, regularizer=KernOrth(0.1)))
    list(train(convolution, digits, lr=0.02, epochs=3, batch_size=64, regularizer=OrthConv(0.1)))
    assert KernOrth().loss(kernel).item() < 0.5 * KernOrth().loss(plain).item()
    assert OrthConv().loss(convolution).item() < 0.5 * OrthConv().loss(plain).item()
    assert KernOrth().loss(start).item() > 0

    def spread(model: nn.Module) -> float:
        weight = model.features[3].weight.detach().double()
        return Spectrum.pool([exact(Convolution(weight, (6, 6), (1, 1), (1, 1), (1, 1), 1))]).std

    assert spread(convolution) < spread(plain)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two convolutions or linear layers"):
        KernOrth().loss(nn.Sequential(nn.Linear(3, 2)))
