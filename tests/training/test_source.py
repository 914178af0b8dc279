"""Training on batches: an epoch is one pass, in the loader's order; it resumes; what does not fit is refused."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from isometry import evaluate, networks, train
from isometry.data import Batches
from tests.models import digits_mlp, flat_weights
from tests.tasks import CLASSES, CONTEXT, Stereo, X

DATASET = TensorDataset(X, CLASSES)


def net() -> nn.Module:
    """An MLP with dropout, which draws from the same generator as the order of a loader does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 4))


def trained(data: Any, **options: Any) -> Tensor:
    """The weights that a training of three epochs gives."""
    model = net()
    list(train(model, data, **{"lr": 0.1, "epochs": 3, "batch_size": 5, **options}))
    return flat_weights(model)


def test_batches_are_taken_as_they_come() -> None:
    model, reference = nn.Linear(6, 4), nn.Linear(6, 4)
    reference.load_state_dict(model.state_dict())
    batches = [(X[:5], CLASSES[:5]), (X[5:17], CLASSES[5:17]), (X[17:], CLASSES[17:])]
    epochs = list(train(model, batches, lr=0.1, epochs=2, schedule=None, momentum=0.9, weight_decay=1e-3))
    sgd = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    losses = []
    for x, y in batches * 2:
        loss = F.cross_entropy(reference(x), y)
        losses.append((float(loss.detach()), len(x)))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    torch.testing.assert_close(flat_weights(model), flat_weights(reference))
    assert [epoch.steps for epoch in epochs] == [3, 6]
    assert epochs[1].loss == pytest.approx(sum(loss * count for loss, count in losses[3:]) / 24, rel=1e-5)


def test_the_order_of_a_loader_follows_the_seed_unless_it_has_its_own() -> None:
    loader = DataLoader(DATASET, 5, shuffle=True)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = trained(loader, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(trained(loader, seed=1), first)
    assert torch.equal(trained(DATASET, seed=1), first)  # a data set is read by such a loader
    assert not torch.equal(trained(loader, seed=2), first)
    own = [DataLoader(DATASET, 5, shuffle=True, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert not torch.equal(trained(own[0]), trained(own[1]))


def test_an_epoch_of_a_loader_can_be_so_many_steps() -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                yield X[0], CLASSES[0]

    epochs = list(train(net(), DataLoader(Endless(), 4), lr=0.1, epochs=3, epoch_steps=2))
    assert [epoch.steps for epoch in epochs] == [2, 4, 6]


def test_a_model_in_half_precision_gets_its_own_kind_of_inputs() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Linear(6, 4).to(dtype)
        for data in (DATASET, (X, CLASSES), [(X, CLASSES)]):
            assert len(list(train(model, data, lr=0.1, epochs=1))) == 1
            assert evaluate(model, data).samples == 24


def own_generator() -> DataLoader:
    return DataLoader(DATASET, 5, shuffle=True, generator=torch.Generator().manual_seed(3))


LOADERS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (X, CLASSES),
    "list": lambda: [(X[:9], CLASSES[:9]), (X[9:], CLASSES[9:])],
    "loader": lambda: DataLoader(DATASET, 5, shuffle=True),
    "loader with its own generator": own_generator,
    "data set": lambda: DATASET,
}


@pytest.mark.parametrize("data", LOADERS.values(), ids=LOADERS)
def test_an_interrupted_training_on_batches_goes_on_bit_for_bit(data: Callable[[], Any], tmp_path: Path) -> None:
    path, options = tmp_path / "t.safetensors", {"lr": 0.1, "epochs": 3, "batch_size": 5}
    whole = trained(data())
    for epoch in train(net(), data(), **options, checkpoint=path):
        if epoch.number == 2:
            break
    torch.manual_seed(5)
    model = net()
    assert [epoch.number for epoch in train(model, data(), **options, checkpoint=path)] == [2, 3]
    assert torch.equal(flat_weights(model), whole)


def test_a_loader_whose_order_is_lost_is_said_to_be(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(zip(X, CLASSES, strict=True))

    options: dict[str, Any] = {"lr": 0.1, "epochs": 2, "checkpoint": tmp_path / "t.safetensors"}
    for epoch in train(net(), DataLoader(Stream(), 6), **options):
        if epoch.number == 2:
            break
    with pytest.warns(UserWarning, match=r"goes on after epoch 1, but cannot restore the order in which DataLoader"):
        assert len(list(train(net(), DataLoader(Stream(), 6), **options))) == 1


def test_a_checkpoint_knows_the_loader_and_the_loss(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 0.1, "epochs": 2, "checkpoint": tmp_path / "t.safetensors"}
    list(train(net(), DataLoader(DATASET, 5), **options))
    with pytest.raises(ValueError, match=r"of another training: it differs in data, samples"):
        list(train(net(), DataLoader(DATASET, 6), **options))
    with pytest.raises(ValueError, match=r"of another training: it differs in loss"):
        list(train(net(), DataLoader(DATASET, 5), loss=F.cross_entropy, **options))


class Exhausted:
    """Batches that are there for the first epoch only."""

    def __init__(self) -> None:
        self.batches = iter([(X, CLASSES)])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches


class Shortened(list):
    def __len__(self) -> int:
        return 3


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an iterator": (lambda: iter([(X, CLASSES)]), r"an iterator \(list_iterator\), which can be read once, for 3 epochs.*list\(batches\)"),
    "an iterator in disguise": (Exhausted, "gives no batches: it is empty, or an iterator that was read before"),
    "an empty loader": (lambda: DataLoader(TensorDataset(X[:0], CLASSES[:0]), 5), "gives no batches"),
    "an early end": (lambda: Shortened([(X, CLASSES)]), "ended after 1 of the 3 batches"),
    "other shapes": (lambda: [(X, CLASSES), (X[:, :5], CLASSES)], r"shapes change: the first one has shape \(24, 6\), torch.float32, a later one shape \(24, 5\).*collate_fn"),
    "other keys": (lambda: [{"input": X, "y": CLASSES}, {"other": X, "more": X, "y": CLASSES}], "batches that change"),
    "no samples": (lambda: (X[:0], CLASSES[:0]), "0 inputs; it takes at least one"),
    "single samples": (lambda: [(X[0][None], torch.tensor(1))], "as targets; it takes one target per sample"),
    "an optimizer": (lambda: torch.optim.SGD(net().parameters(), 0.1), "data of type SGD"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_batches_that_do_not_fit_are_refused(data: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^train\(\) got .*{message}"):
        list(train(net(), data(), lr=0.1, epochs=3))


def test_sequences_of_several_lengths_are_no_change() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    batches = [(torch.randn(5, 3, length), CLASSES[:5]) for length in (8, 11)]
    assert len(list(train(model, batches, lr=0.1, epochs=2))) == 2


def test_an_error_of_the_network_itself_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(train(nn.Linear(5, 4), (X, CLASSES), lr=0.1, epochs=1))


@pytest.mark.parametrize(
    ("data", "entries"),
    [
        ([(X, CONTEXT, CLASSES)], "0: shape (24, 6), torch.float32, 1: shape (24, 4)"),
        ([{"x": X, "path": torch.arange(24), "labels": CLASSES}], "x: shape (24, 6), torch.float32, path: shape (24,)"),
    ],
)
def test_entries_that_the_network_does_not_take_are_named(data: Any, entries: str) -> None:
    for call in (lambda: list(train(net(), data, lr=0.1, epochs=1)), lambda: evaluate(net(), data)):
        with pytest.raises(
            TypeError,
            match=rf"cannot be called with the inputs of a batch, {re.escape(entries)}.*Batches\(loader, inputs=",
        ):
            call()


def test_a_loss_may_do_without_targets() -> None:
    model = net()
    epochs = list(train(model, X, lr=0.1, epochs=3, loss=lambda outputs, _: outputs.square().mean()))
    assert epochs[2].loss < epochs[0].loss


class Shuffled(BatchSampler):
    """Batches of one's own, in an order that torch's generators do not decide."""

    def __init__(self) -> None:
        super().__init__(range(24), 6, False)


@pytest.mark.parametrize(
    ("loader", "restorable"),
    [
        (lambda: DataLoader(DATASET, 6), True),
        (lambda: DataLoader(DATASET, 6, shuffle=True), True),
        (lambda: DataLoader(DATASET, 6, sampler=WeightedRandomSampler([1.0] * 24, 24)), True),
        (lambda: DataLoader(DATASET, batch_sampler=BatchSampler(RandomSampler(DATASET), 6, False)), True),
        (lambda: DataLoader(DATASET, None), True),
        (lambda: DataLoader(DATASET, batch_sampler=Shuffled()), False),
        (lambda: DataLoader(DATASET, 6, sampler=list(range(24))), False),
        (lambda: DataLoader(DATASET, 6, num_workers=1, persistent_workers=True), False),
        (lambda: map(None, []), False),
    ],
)
def test_it_is_known_which_orders_can_be_restored(loader: Callable[[], Any], restorable: bool) -> None:
    assert Batches(loader()).is_restorable == restorable


@pytest.mark.parametrize("optimizer", [F.cross_entropy, torch.optim.SGD, "adam"], ids=["loss", "class", "name"])
def test_what_is_no_optimizer_is_refused(optimizer: Any) -> None:
    with pytest.raises(
        TypeError, match=r"train\(\) got \w+ as optimizer; it takes an optimizer of this model's parameters"
    ):
        train(digits_mlp(), (X, CLASSES), lr=0.1, epochs=1, optimizer=optimizer)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"train\(\) got a SGD for a model; it takes a torch\.nn\.Module"):
        train(torch.optim.SGD(net().parameters(), 0.1), (X, CLASSES), lr=0.1, epochs=1)  # type: ignore[arg-type]


def test_workers_read_the_same_batches() -> None:
    loaders = [DataLoader(DATASET, 5, num_workers=workers) for workers in (0, 2)]
    assert torch.equal(trained(loaders[0], epochs=1), trained(loaders[1], epochs=1))


def test_inputs_by_name_and_by_position_train_alike() -> None:
    found = []
    for data in (((X, CONTEXT), CLASSES), {"context": CONTEXT, "image": X, "y": CLASSES}, Batches([(CLASSES, X, CONTEXT)], inputs=(1, 2), targets=0)):  # fmt: skip
        torch.manual_seed(0)
        model = Stereo()
        list(train(model, data, lr=0.1, epochs=1, batch_size=24))
        found.append(flat_weights(model))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-6)  # another order of the samples


def test_augmented_tensors_still_follow_the_seed(digits: Any) -> None:
    model = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8,))
    list(train(model, digits, lr=0.1, epochs=1, epoch_steps=2, seed=4))
    again = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8,))
    list(train(again, digits.train, lr=0.1, epochs=1, epoch_steps=2, seed=4))
    assert torch.equal(flat_weights(model), flat_weights(again))


def test_batches_follow_the_network_to_its_device(cuda: torch.device) -> None:
    model, own = net().to(cuda), lambda outputs, targets: F.cross_entropy(outputs, targets)
    for data in (DATASET, [(X, CLASSES)], (X, CLASSES)):
        for loss in (None, own):
            (epoch,) = train(model, data, lr=0.1, epochs=1, loss=loss, metric=own)
            assert epoch.metric > 0
            result = evaluate(model, data, loss=loss, metric=own)
            assert result.loss == pytest.approx(result.metric, rel=1e-4)
