"""OrthP, the published orthogonalization of all weights, for any network."""

from __future__ import annotations

from torch import nn

from isometry.errors import InvalidValueError, signed
from isometry.networks.checks import check_module
from isometry.networks.masks import computed_weight, refresh, set_parameter, support
from isometry.networks.modules import UNIT_LAYERS, clone
from isometry.repairs.approximation import fit_orthogonal
from isometry.spectra import orthogonal

__all__ = ["check_own_weight", "orthogonalize"]


@signed("orthogonalize")
def orthogonalize(model: nn.Module, *, gain: float = 1.0) -> nn.Module:
    """Return a copy in which every convolution and linear layer has an orthogonal weight; `model` is left alone.

    Every weight, as a matrix [units, inputs x kernel], is replaced by its QR factor times `gain`, those of the first and
    the last layer included; biases and normalization layers stay. Nothing is promised: in networks that are not
    linear MLPs the JSVs need not be 1.

    Sparse weights keep their zeros: the entries that a mask of torch.nn.utils.prune holds at zero or, without a mask, that
    are exactly 0. They become as orthogonal as a descent under these zeros makes them (`fit_orthogonal`), which for wide
    layers takes minutes.

    Args:
        model: any network.
        gain: the singular values of every weight. 1 for linear networks; the reference code multiplies by sqrt(2) for
            ReLU networks.

    Raises:
        ValueError: no convolution or linear layer; or one whose weight is parametrized.

    Source: Wang & Fu, ICLR 2023, the baseline "L1 + OrthP"; of sparse weights Lee et al., ICLR 2020.
    """
    check_module(model, "orthogonalize(isometry.networks.build('lenet-5-relu'))")
    result = clone(model)
    refresh(result)
    layers = {n: m for n, m in result.named_modules() if isinstance(m, UNIT_LAYERS)}
    if not layers:
        raise InvalidValueError(
            "found no convolution or linear layer; it takes a network with some, e.g. "
            "orthogonalize(isometry.networks.build('lenet-5-relu'))."
        )
    for name, layer in layers.items():
        check_own_weight(name, layer)
        weight, free = layer.weight.detach().flatten(1), support(layer).flatten(1)
        factor = orthogonal.qr(weight) if bool(free.all()) else fit_orthogonal(weight, free)
        set_parameter(layer, "weight", gain * factor.view_as(layer.weight))
    return result


def check_own_weight(name: str, layer: nn.Module) -> None:
    """Raise an InvalidValueError where the weight of a layer is computed from other parameters, but for a mask."""
    if computed_weight(layer):
        raise InvalidValueError(
            f"cannot set the weight of {name or 'the model'} ({type(layer).__name__}), which is computed from other parameters. "
            f"Fold it first: torch.nn.utils.parametrize.remove_parametrizations(model{name and '.' + name}, 'weight')."
        )
