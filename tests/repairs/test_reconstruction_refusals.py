"""Reconstruction: what cannot be solved for is refused by name."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from isometry import L1, prune, repair
from tests.models import Wired


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)])


def shared(width: int) -> nn.Module:
    wiring = lambda net, x: net.head(net.twice(net.twice(net.first(x))))  # noqa: E731
    return Wired(wiring, first=nn.Linear(4, width), twice=nn.Linear(width, width), head=nn.Linear(width, 2))


def unused(width: int) -> nn.Module:
    wiring = lambda net, x: F.linear(net.first(x), net.head.weight)  # noqa: E731
    return Wired(wiring, first=nn.Linear(4, width), head=nn.Linear(width, 2))


def computed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), parametrizations.weight_norm(nn.Linear(width, 2)))


def transposed(width: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, width, 1), nn.ConvTranspose1d(width, 2, 1))


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        pytest.param(mlp(4, 5, 2), mlp(4, 6, 6, 2), "differ in their layers: 2.*e.g.", id="other layers"),
        pytest.param(mlp(4, 6, 2), mlp(4, 5, 2), "reference in which 0 is .*e.g.", id="narrower reference"),
        pytest.param(mlp(4, 5, 2), mlp(4, 6, 3), r"outputs of \[\(2, 2\)\] and .* \[\(2, 3\)\].*e.g.", id="outputs"),
        pytest.param(shared(5), shared(6), "cannot solve for twice .*runs 2 times.*e.g.", id="shared layer"),
        pytest.param(unused(5), unused(6), "cannot solve for head .*runs 0 times.*e.g.", id="layer not called"),
        pytest.param(computed(5), computed(6), "cannot solve for 1 .*computed from other.*e.g.", id="computed weight"),
        pytest.param(transposed(5), transposed(6), "cannot solve for 2 .*transposed.*e.g.", id="transposed"),
    ],
)
def test_what_cannot_be_repaired_is_refused_by_name(model: nn.Module, reference: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=r"repair\(\) .*" + message):
        repair(model, reference=reference, data=torch.randn(9, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"data": None}, "got no data.*e.g.", id="no data"),
        pytest.param({"data": []}, "gives no batches.*e.g.", id="no batches"),
        pytest.param({"data": torch.randn(0, 4)}, "got no data.*e.g.", id="no samples"),
        pytest.param({"samples": 0}, "samples=0.*e.g.", id="samples"),
        pytest.param({"positions": 0}, "positions=0.*e.g.", id="positions"),
        pytest.param({"batch_size": 0}, "batch_size=0.*e.g.", id="batch size"),
        pytest.param({"ridge": -1.0}, "ridge=-1.*e.g.", id="ridge"),
        pytest.param({"ridge": "a"}, "ridge='a'.*e.g.", id="ridge in words"),
        pytest.param({"seed": "a"}, "seed='a'.*e.g.", id="seed"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"repair\(\) .*" + message):
        repair(mlp(4, 5, 2), **{"reference": mlp(4, 6, 2), "data": torch.randn(9, 4)} | options)


@pytest.mark.parametrize(("data", "kind"), [("digits", "str"), (3, "int")])
def test_data_of_other_types_are_refused(data: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"repair\(\) got data of type {kind}.*e.g."):
        repair(mlp(4, 5, 2), reference=mlp(4, 6, 2), data=data)


@pytest.mark.parametrize(
    ("where", "message"), [("data", "what 2 reads in Sequential"), ("reference", "what 2 is to give")]
)
def test_values_that_are_not_finite_are_refused_by_the_name_of_the_layer(where: str, message: str) -> None:
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(20, 5)
    pruned = prune(net, L1(), 0.5, inputs=x).model
    if where == "data":
        x[3, 2] = torch.inf
    else:
        with torch.no_grad():
            net[2].bias[1] = torch.nan
    with pytest.raises(ValueError, match=rf"repair\(\) found NaN or infinite values in {message}.*e\.g\. repair\("):
        repair(pruned, reference=net, data=x)


def test_batches_of_several_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"repair\(\) got batches whose shapes change: .*\(9, 4\).*\(9, 5\).*e\.g\."):
        repair(mlp(4, 5, 2), reference=mlp(4, 6, 2), data=[torch.randn(9, 4), torch.randn(9, 5)])
