"""Wrong calls between a pruning and the user's loop, each with the message that says what to do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry import L1, TPP, GReg, Pruning, RecedingBN, Slimming
from tests.pruners.loops import SHORT, batches, net, run
from tests.pruners.test_stepwise import X


def tpp() -> Pruning:
    return Pruning(net(), TPP(**SHORT), 0.5, inputs=X)


def sgd(pruning: Pruning, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.SGD(pruning.model.parameters(), lr=lr)


def backward(pruning: Pruning) -> None:
    F.cross_entropy(pruning.model(X), torch.arange(2)).backward()


def test_a_step_without_regularize_is_refused() -> None:
    pruning = tpp()
    backward(pruning)
    sgd(pruning).step()
    with pytest.raises(
        RuntimeError, match=r"step\(\) was called without regularize\(\), by which TPP .*backward\(\); "
    ):
        pruning.step()


def test_pruners_that_act_on_the_loss_need_no_regularize() -> None:
    pruning = Pruning(net(), Slimming(epochs=1), 0.5, inputs=X, steps_per_epoch=2)
    for receded in (False, True):
        pruning.loss()
        assert pruning.step() is receded
    assert pruning.finish().ratio > 0


def test_a_step_without_the_loss_of_a_pruner_that_acts_on_it_is_refused() -> None:
    pruning = Pruning(net(), Slimming(epochs=1), 0.5, inputs=X, steps_per_epoch=2)
    pruning.loss()
    pruning.step()
    with pytest.raises(
        RuntimeError, match=r"step\(\) was called without loss\(\), by which Slimming .*pruning\.loss\(\); "
    ):
        pruning.step()
    uniform = Pruning(net(), Slimming(strength=0, epochs=1), 0.5, inputs=X, steps_per_epoch=1)
    assert uniform.step()


def test_regularize_before_backward_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"regularize\(\) found no gradients on pruning.model.*which is a copy"):
        tpp().regularize()


def test_regularize_twice_in_a_step_is_refused() -> None:
    pruning = tpp()
    backward(pruning)
    pruning.regularize()
    with pytest.raises(RuntimeError, match=r"regularize\(\) was called twice in one step.*pruning.step\(\) after"):
        pruning.regularize()


def test_a_checkpoint_within_a_step_is_refused() -> None:
    pruning = tpp()
    backward(pruning)
    pruning.regularize()
    with pytest.raises(RuntimeError, match=r"state_dict\(\) was called between regularize\(\) and step\(\)"):
        pruning.state_dict()


def test_nothing_can_be_called_after_finish() -> None:
    pruning = Pruning(net(), L1(), 0.5, inputs=X)
    state = pruning.state_dict()
    pruning.finish()
    calls = {
        "loss": pruning.loss, "regularize": pruning.regularize, "step": pruning.step, "finish": pruning.finish,
        "state_dict": pruning.state_dict, "load_state_dict": lambda: pruning.load_state_dict(state),
        "check_optimizer": lambda: pruning.check_optimizer(sgd(pruning)),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=rf"Pruning.{name}\(\) was called after finish\(\).*isometry.Pruning\("):
            call()


def test_finishing_before_the_units_have_receded_is_refused(digits: isometry.data.Data) -> None:
    pruning = tpp()
    run(pruning, batches(digits.train), sgd(pruning), steps=3)
    with pytest.raises(
        RuntimeError, match=r"after 3 steps; .* within 70, of which 67 are missing.*finish\(early=True\)"
    ):
        pruning.finish()
    assert pruning.finish(early=True).ratio == 0.5


def test_diverged_weights_are_not_pruned(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), GReg(**SHORT), 0.5, inputs=X)
    run(pruning, batches(digits.train), sgd(pruning, lr=1e9))
    with pytest.raises(isometry.pruners.DivergedError, match=r"after 70 steps .* not finite.*strength of GReg"):
        pruning.finish()


def replace_layer(model: nn.Module) -> None:
    model.classifier = nn.Linear(6, 10)


def add_layer(model: nn.Module) -> None:
    model.extra = nn.Linear(6, 10)


def remove_bias(model: nn.Module) -> None:
    model.classifier.bias = None


def narrow(model: nn.Module) -> None:
    model.classifier.bias.data = torch.zeros(9)


def assign(model: nn.Module) -> None:
    model.load_state_dict(net(seed=1).state_dict(), assign=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (replace_layer, "replaced"),
        (add_layer, "added"),
        (remove_bias, "removed"),
        (narrow, "changed in shape"),
        (assign, "replaced"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_was_changed_meanwhile_is_refused(change, what: str) -> None:
    pruning = tpp()
    backward(pruning)
    pruning.regularize()
    change(pruning.model)
    for call in (pruning.step, pruning.regularize, lambda: pruning.finish(early=True)):
        with pytest.raises(RuntimeError, match=rf"structure of pruning.model was changed: \S+ was {what} since"):
            call()


def test_weights_can_be_loaded_meanwhile() -> None:
    pruning = tpp()
    pruning.model.load_state_dict(net(seed=1).state_dict())
    assert pruning.finish(early=True).ratio == 0.5


def test_an_optimizer_of_the_network_passed_is_found(digits: isometry.data.Data) -> None:
    model = net()
    pruning = Pruning(model, TPP(**SHORT), 0.5, inputs=X)
    wrong = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"holds 0 of the \d+ trainable parameters .*SGD\(pruning.model.parameters"):
        pruning.check_optimizer(wrong)
    with pytest.raises(RuntimeError, match=r"no parameter .* changed in 20 steps.*SGD\(pruning.model.parameters"):
        run(pruning, batches(digits.train), wrong)
    assert pruning.steps_done == 20


def test_zeroed_units_are_not_taken_for_updates_of_an_optimizer(digits: isometry.data.Data) -> None:
    model = net()
    pruning = Pruning(model, TPP(**(SHORT | {"delta": 0.5, "zero_out": 2})), 0.5, inputs=X)
    with pytest.raises(RuntimeError, match=r"no parameter .* changed in 20 steps"):
        run(pruning, batches(digits.train), torch.optim.SGD(model.parameters(), lr=1e-3))


def test_several_optimizers_may_share_the_parameters() -> None:
    pruning = tpp()
    first, *others = pruning.model.parameters()
    half = torch.optim.SGD([first], lr=1e-3)
    pruning.check_optimizer(sgd(pruning))
    pruning.check_optimizer(half, torch.optim.AdamW(others))
    with pytest.raises(ValueError, match="holds 1 of"):
        pruning.check_optimizer(half)


def test_a_pruner_that_counts_in_epochs_needs_their_length() -> None:
    with pytest.raises(ValueError, match=r"Pruning\(\) got no steps_per_epoch.*steps_per_epoch=len\(loader\)"):
        Pruning(net(), Slimming(), 0.5, inputs=X)
    with pytest.raises(ValueError, match=r"Pruning\(\) got steps_per_epoch=0; it takes a whole number of at least 1"):
        Pruning(net(), Slimming(), 0.5, inputs=X, steps_per_epoch=0)
    assert Pruning(net(), Slimming(epoch_steps=3), 0.5, inputs=X, steps_per_epoch=10).steps == 160 * 3


def test_a_pruner_that_trains_by_itself_is_refused() -> None:
    class Own(TPP):
        def train_after_selection(self, context, selection) -> None:
            pass

    with pytest.raises(ValueError, match=r"got Own, which trains by itself in train_after_selection\(\)"):
        Pruning(net(), Own(), 0.5, inputs=X)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Pruning(net(), "l1", 0.5), TypeError, r"Pruning\(\) got 'l1' as pruner"),
        (lambda: Pruning(net(), L1(), 1.5, inputs=X), ValueError, r"Pruning\(\) got the ratio 1.5"),
        (lambda: Pruning(net(), L1()), ValueError, r"Pruning\(\) got ratio=None, flops=None"),
        (lambda: Pruning(net(), L1(), {"x": 0.5}, inputs=X), ValueError, r"Pruning\(\) got the layer pattern 'x'"),
        (lambda: Pruning(net(), RecedingBN(), 0.5, inputs=X, steps_per_epoch=1), ValueError, "isometry.convert"),
        (lambda: Pruning(net(), TPP(stabilize=5), 0.5, inputs=X), ValueError, "zeroing layer after layer"),
        (
            lambda: Pruning(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 2, 3)), L1(), 0.5),
            ValueError,
            r"Pruning\(\) cannot infer an input shape",
        ),
    ],
    ids=["pruner", "ratio", "no ratio", "pattern", "norm", "steps", "inputs"],
)
def test_bad_arguments_are_refused_before_training(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
