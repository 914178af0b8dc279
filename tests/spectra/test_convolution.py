"""Convolutions as operators."""

import pytest
import torch
from torch import nn

from isometry.spectra import Convolution, circular, exact
from tests.references import slow_jacobians, slow_singular_values


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "size"),
    [((1, 1), (1, 1), (1, 1), 1, (6, 6)), ((2, 2), (1, 0), (1, 1), 1, (7, 6)), ((1, 2), (2, 2), (2, 2), 2, (9, 8))],
    ids=["plain", "strided", "dilated-in-groups"],
)
def test_a_convolution_is_the_operator_of_its_layer(stride, padding, dilation, groups, size) -> None:
    layer = nn.Conv2d(4, 6, 3, stride, padding, dilation, groups, bias=False).double()
    operator = Convolution(layer.weight.detach(), size, stride, padding, dilation, groups)
    dense = slow_jacobians(layer, torch.randn(1, 4, *size))[0]
    assert operator.shape == (1, *dense.shape)
    torch.testing.assert_close(exact(operator).values[0], torch.linalg.svdvals(dense), rtol=1e-7, atol=1e-9)
    v = torch.randn(1, 2, dense.shape[1]).double()
    torch.testing.assert_close(operator.matvec(v)[0], v[0] @ dense.T)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (3, 2)], ids=lambda stride: "x".join(map(str, stride)))
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_circular_convolutions_are_diagonal_in_fourier_space(stride: tuple[int, int], kernel: int) -> None:
    layer = nn.Conv2d(3, 4, kernel, stride, kernel // 2, bias=False, padding_mode="circular").double()
    truth = slow_singular_values(layer, torch.randn(1, 3, 6, 6))[0]
    found = circular(layer.weight.detach(), (6, 6), stride)
    torch.testing.assert_close(found[: len(truth)], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_stride_that_does_not_divide_the_size_is_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match="each stride must divide its size"):
        circular(torch.randn(4, 3, kernel, kernel).double(), (7, 7), (2, 2))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_delta_orthogonal_convolution_is_an_isometry_with_either_padding(mode: str) -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False, padding_mode=mode).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 1, 1] = torch.linalg.qr(torch.randn(5, 3).double()).Q
    values = slow_singular_values(layer, torch.randn(1, 3, 5, 5))[0]
    torch.testing.assert_close(values, torch.ones(75).double(), rtol=0, atol=1e-12)
