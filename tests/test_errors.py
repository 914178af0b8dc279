"""Errors are signed by the verb that the user called."""

from typing import Any

import pytest
import torch

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, signed


@signed("train")
def train(kind: type[Exception]) -> None:
    raise kind("got nothing")


@signed("prune")
def prune(kind: type[Exception]) -> None:
    train(kind)


@pytest.mark.parametrize(("kind", "built_in"), [(InvalidValueError, ValueError), (InvalidTypeError, TypeError)])
def test_the_outermost_verb_signs(kind: type[Exception], built_in: type[Exception]) -> None:
    for verb, name in ((train, "train"), (prune, "prune"), (train, "train")):
        with pytest.raises(built_in, match=rf"^{name}\(\) got nothing$") as caught:
            verb(kind)
        assert type(caught.value) is built_in


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError):
        prune(KeyError)
    with pytest.raises(ValueError, match=r"^train\(\)"):
        train(InvalidValueError)


VERBS: dict[str, Any] = {
    "measure": lambda model: isometry.measure(model),
    "prune": lambda model: isometry.prune(model, isometry.Magnitude(), 0.5),
    "Pruning": lambda model: isometry.Pruning(model, isometry.L1(), 0.5),
    "recover": lambda model: isometry.recover(model),
    "orthogonalize": lambda model: isometry.orthogonalize(model),
    "recalibrate": lambda model: isometry.recalibrate(model, torch.randn(4, 3)),
    "repair": lambda model: isometry.repair(model, reference=torch.nn.Linear(3, 2), data=torch.randn(4, 3)),
}

CLASSIFIED = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
TRAINING: dict[str, Any] = {
    "train": lambda model: list(isometry.train(model, CLASSIFIED, lr=0.1, epochs=1)),
    "evaluate": lambda model: isometry.evaluate(model, CLASSIFIED),
}


@pytest.mark.parametrize("verb", [*VERBS, *TRAINING])
def test_a_pruning_result_for_a_model_is_refused_with_its_model(verb: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    pruned = isometry.prune(net, isometry.L1(), 0.5)
    with pytest.raises(
        TypeError, match=rf"^{verb}\(\) got a Pruned for a model; .* pruned\.model instead of pruned\.$"
    ):
        (VERBS | TRAINING)[verb](pruned)
    with pytest.raises(TypeError, match=rf"^{verb}\(\) got the class Linear for a model; .*, e\.g\. .*\(.*\)\.$"):
        (VERBS | TRAINING)[verb](torch.nn.Linear)


@pytest.mark.parametrize("verb", [*VERBS, *TRAINING])
def test_a_model_without_values_is_refused_by_their_names(verb: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).to("meta"))
    with pytest.raises(ValueError, match=rf"^{verb}\(\) got a model whose 1\.weight, 1\.bias hold no values \(meta"):
        {**VERBS, **TRAINING}[verb](net)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_lazy_modules_and_torchscript_are_refused(verb: str) -> None:
    with pytest.raises(ValueError, match=rf"^{verb}\(\) got a model whose 0 are not initialized yet"):
        VERBS[verb](torch.nn.Sequential(torch.nn.LazyLinear(2)))
    with pytest.raises(TypeError, match=rf"^{verb}\(\) got a TorchScript module"):
        VERBS[verb](torch.jit.script(torch.nn.Linear(3, 2)))
