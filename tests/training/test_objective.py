"""Losses and metrics: any callable; cross-entropy and accuracy only where they mean something."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import Recipe, evaluate, train
from isometry.training.objective import describe_callable
from tests.models import Wired, flat_weights
from tests.tasks import CLASSES, TASKS, Task, X, built, rand


@pytest.mark.parametrize("kind", ["tensors", "loader"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_learned_and_evaluated(task: Task, kind: str) -> None:
    net, data = built(task), getattr(task, kind)
    options: dict[str, Any] = {"loss": task.loss, "metric": task.metric}
    before = evaluate(net, data, **options).loss
    epochs = list(train(net, data, lr=0.02, epochs=6, batch_size=8, schedule=None, **options))
    after = evaluate(net, data, **options)
    assert epochs[-1].loss < epochs[0].loss
    assert after.loss < before
    assert after.samples == 24
    assert (0 <= after.accuracy <= 1) == (0 <= epochs[-1].accuracy <= 1) == (task.loss is None)
    assert math.isnan(after.metric) == math.isnan(epochs[-1].metric) == (task.metric is None)


def test_evaluation_is_the_mean_over_all_samples_or_pixels() -> None:
    task = TASKS["segmentation"]
    net, (x, y) = built(task).eval(), task.tensors
    with torch.no_grad():
        logits = net(x)
        expected = F.cross_entropy(logits, y), (logits.argmax(1) == y).double().mean()
    for data in (task.tensors, task.loader):
        found = evaluate(net, data, batch_size=7)
        assert (found.loss, found.accuracy) == pytest.approx(tuple(map(float, expected)), rel=1e-5)
    hidden = y.masked_fill(torch.rand(y.shape) < 0.5, -100)
    found = evaluate(net, (x, hidden), batch_size=7)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, hidden)), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == y)[hidden >= 0].double().mean()))
    task = TASKS["regression"]
    net, (x, y) = built(task).eval(), task.tensors
    found = evaluate(net, (x, y), batch_size=7, loss=F.mse_loss, metric=task.metric)
    gaps = (net(x) - y).detach()
    assert found.loss == pytest.approx(float(gaps.square().mean()), rel=1e-5)
    assert found.metric == pytest.approx(float(gaps.abs().mean()), rel=1e-5)


def linear(outputs: int = 4) -> nn.Module:
    return nn.Linear(6, outputs)


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.detach(), targets)


Y = rand(24, 4)
REFUSED: dict[str, tuple[nn.Module, Any, Any, str]] = {
    "a regression": (linear(1), (X, rand(24, 1)), None, r"shape \(\d+, 1\), torch.float32 and targets of .*K classes, at least 2.*loss=torch\.nn\.functional\.mse_loss"),
    "one output": (linear(1), (X, CLASSES * 0), None, "of one it is 0 whatever the network does"),
    "float targets": (linear(), (X, Y), None, r"cross-entropy takes classes, int64 \[B\] from 0 to 3.*mse_loss.*probabilities"),
    "yes or no": (linear(), (X, CLASSES > 1), None, r"torch\.bool; cross-entropy takes classes"),
    "column of classes": (linear(), (X, CLASSES[:, None]), None, r"one class per sample, \(\d+,\), e\.g\. targets\.squeeze\(1\)"),
    "one-hot": (linear(), (X, F.one_hot(CLASSES, 4)), None, r"targets\.argmax\(1\)"),
    "dense targets": (linear(), (X, CLASSES[:, None, None].expand(-1, 5, 5)), None, "one class per sample"),
    "too many classes": (linear(3), (X, CLASSES), None, r"targets from 0 to 3 for a network with 3 outputs; .*classes=4"),
    "classes below 0": (linear(), (X, CLASSES - 1), None, "targets from -1 to 2"),
    "no targets": (linear(), X, None, r"data without targets, which cross-entropy needs.*data=\(inputs, inputs\)"),
    "several outputs": (Wired(lambda m, x: (m.a(x), x), a=linear()), (X, CLASSES), None, r"returns tuple; cross-entropy takes logits.*outputs\[0\]"),
    "dict of outputs": (Wired(lambda m, x: {"a": m.a(x)}, a=linear()), (X, CLASSES), None, r"returns dict \(a\); cross-entropy"),
    "not a scalar": (linear(), (X, Y), lambda out, y: (out - y).square(), r"a value of shape \(\d+, 4\); .*scalar tensor"),
    "not a tensor": (linear(), (X, Y), lambda out, y: 3.0, "a loss that returns a value of type float"),
    "a class": (linear(), (X, Y), nn.MSELoss, "a loss that"),
    "not callable": (linear(), (X, Y), "mse", r"loss=str\(\.\.\.\), which cannot be called.*loss=torch"),
    "an optimizer": (linear(), (X, Y), torch.optim.SGD(linear().parameters(), 0.1), r"loss=SGD\(\.\.\.\), which cannot be called"),
    "absent targets": (linear(), X, F.mse_loss, r"data without targets, with which the loss failed \(.*\). Pass pairs"),
    "wrong dtype": (linear(), (X, CLASSES[:, None].expand(-1, 4)), F.binary_cross_entropy_with_logits, r"a loss that failed .* targets of shape \(\d+, 4\), torch\.int64"),
    "flat targets": (linear(1), (X, rand(24)), F.mse_loss, r"outputs of shape \(\d+, 1\).*targets of shape \(\d+,\).*would broadcast.*targets\.unsqueeze\(1\)"),
    "flat targets of a module": (linear(1), (X, rand(24)), torch.nn.SmoothL1Loss(), r"would broadcast"),
    "wrong shape": (linear(), (X, rand(24, 3)), F.mse_loss, r"a loss that failed .* outputs of shape \(\d+, 4\).*targets of shape \(\d+, 3\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize(("net", "data", "loss", "message"), REFUSED.values(), ids=REFUSED)
def test_objectives_without_meaning_are_refused(net: nn.Module, data: Any, loss: Any, message: str, verb: str) -> None:
    before = flat_weights(net)
    call: Callable[[], Any] = lambda: list(train(net, data, lr=0.1, epochs=1, loss=loss))  # noqa: E731
    with pytest.raises((ValueError, TypeError), match=rf"^{verb}\(\) got .*{message}"):
        call() if verb == "train" else evaluate(net, data, loss=loss)
    assert torch.equal(flat_weights(net), before)


@pytest.mark.parametrize("loss", [detached, lambda out, y: (out.argmax(1) == y.argmax(1)).float().mean()])
def test_a_loss_without_a_gradient_is_refused_in_training_only(loss: Any) -> None:
    net = linear()
    with pytest.raises(
        ValueError, match=r"train\(\) got a loss that is not differentiable.*argmax\(\), item\(\) or detach"
    ):
        list(train(net, (X, Y), lr=0.1, epochs=1, loss=loss))
    assert evaluate(net, (X, Y), loss=loss).loss == pytest.approx(float(loss(net(X), Y)))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda out, y: out, r"a metric that returns a value of shape \(24, 4\); it takes one that returns a number"),
        (lambda out, y: "good", "a metric that returns a value of type str"),
        (lambda out, y: out.nonsense, "a metric that failed"),
        (3, r"metric=int\(\.\.\.\), which cannot be called"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused(metric: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(linear(), (X, CLASSES), metric=metric)


def test_metrics_are_looked_at_and_change_nothing() -> None:
    nets = [nn.Linear(6, 4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain = list(train(nets[0], (X, CLASSES), lr=0.1, epochs=2))
    watched = list(
        train(nets[1], (X, CLASSES), lr=0.1, epochs=2, metric=lambda out, y: (out.argmax(1) == y).float().mean())
    )
    assert torch.equal(flat_weights(nets[0]), flat_weights(nets[1]))
    assert [e.metric for e in watched] == pytest.approx([e.accuracy for e in plain])


def test_targets_follow_the_precision_of_the_outputs() -> None:
    def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:  # torch 2.5 has none in bfloat16
        return (outputs - targets).square().mean()

    net, y = linear().double(), rand(24, 4)
    (epoch,) = train(net, (X, y), lr=0.1, epochs=1, loss=F.mse_loss)
    assert math.isfinite(epoch.loss)
    assert evaluate(linear(), (X.double(), y.double()), loss=F.mse_loss).samples == 24
    (epoch,) = train(linear(), (X, CLASSES.int()), lr=0.1, epochs=1)
    assert epoch.accuracy >= 0
    half = list(train(linear().bfloat16(), (X, y.double()), lr=0.1, epochs=2, loss=squared_error))
    assert half[1].loss < half[0].loss


def test_logits_of_language_models_are_found() -> None:
    class Output(dict):
        @property
        def logits(self) -> Tensor:
            return self["logits"]

    net = Wired(lambda m, x: Output(logits=m.a(x)), a=linear())
    (epoch,) = train(net, (X, CLASSES), lr=0.1, epochs=1)
    assert 0 <= epoch.accuracy <= 1
    assert evaluate(net, (X, CLASSES)).loss == pytest.approx(
        float(F.cross_entropy(net.a(X), CLASSES).detach()), rel=1e-5
    )


def halved(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) / 2


def test_losses_are_known_by_their_names_and_code() -> None:
    other = lambda outputs, targets: F.mse_loss(outputs, targets) / 3  # noqa: E731
    texts = [
        describe_callable(loss)
        for loss in (
            halved,
            other,
            F.mse_loss,
            nn.MSELoss(),
            nn.MSELoss(reduction="sum"),
            functools.partial(halved, targets=1),
        )
    ]
    assert len(set(texts)) == 6
    assert all(" at 0x" not in text for text in texts)
    assert texts[2] == "torch.nn.functional.mse_loss"
    assert hash(Recipe(0.1, 2, loss=halved)) == hash(Recipe(0.1, 2, loss=halved))
