"""Batches: every form in which loaders give them is read alike; what cannot be read is refused."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import isometry
from isometry.data import Batches, Data, Split, read_data

X, C, Y = torch.randn(6, 3), torch.randn(6, 2), torch.arange(6)


def halves(*parts: Tensor) -> list[tuple[Tensor, ...]]:
    return [tuple(part[:3] for part in parts), tuple(part[3:] for part in parts)]


class Samples(Dataset):
    """A map-style data set of one's own; iterating over it would never end."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index % 6], index % 6


class Sized(Samples):
    def __len__(self) -> int:
        return 6


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(X, Y.tolist(), strict=True))


ONE = {
    "data": lambda: Data("own", Split(X, Y), Split(X, Y), Split(C, Y), 6, (3,)),
    "split": lambda: Split(X, Y),
    "pair": lambda: (X, Y),
    "list of a loader": lambda: [X, Y],
    "dict": lambda: {"x": X, "labels": Y},
    "list of two batches": lambda: halves(X, Y),
    "tuple of two batches": lambda: tuple(halves(X, Y)),
    "loader of two batches": lambda: DataLoader(TensorDataset(X, Y), 3),
    "data set": lambda: Sized(),
    "stream": lambda: DataLoader(Stream(), 4),
    "dict batches": lambda: [{"x": x, "y": y} for x, y in halves(X, Y)],
    "named entries": lambda: Batches([{"a": y, "b": x} for x, y in halves(X, Y)], inputs="b", targets="a"),
    "positions": lambda: Batches(halves(Y, C, X), inputs=2, targets=0),
    "wrapped": lambda: Batches(halves(X, Y)),
}  # fmt: skip


@pytest.mark.parametrize("given", ONE.values(), ids=ONE)
def test_every_form_of_inputs_and_targets_is_read_alike(given: Callable[[], Any]) -> None:
    data = read_data(given(), batch_size=4)
    pairs = list(data.batches(4) if isinstance(data, Split) else data)
    torch.testing.assert_close(torch.cat([pair.inputs for pair in pairs]), X)
    assert torch.equal(torch.cat([pair.targets for pair in pairs]), Y)
    assert len(pairs) == 2


SEVERAL = {
    "tuple in memory": (lambda: ((X, C), Y), tuple),
    "dict in memory": (lambda: ({"a": X, "b": C}, Y), dict),
    "one dict": (lambda: {"a": X, "b": C, "target": Y}, dict),
    "positions": (lambda: DataLoader(TensorDataset(X, C, Y), 4), tuple),
    "nested": (lambda: [((X, C), Y)], tuple),
    "lists of a loader": (lambda: [[[X, C], Y]], tuple),
    "named": (lambda: [{"a": X, "b": C, "labels": Y}], dict),
    "named, by position": (lambda: Batches([{"b": C, "a": X, "labels": Y}], inputs=("a", "b")), tuple),
    "no targets": (lambda: Batches([(X, C)], inputs=(0, 1)), tuple),
}  # fmt: skip


@pytest.mark.parametrize(("given", "kind"), SEVERAL.values(), ids=SEVERAL)
def test_several_inputs_are_read_by_position_or_by_name(given: Callable[[], Any], kind: type) -> None:
    data = read_data(given())
    pairs = list(data.batches(4) if isinstance(data, Split) else data)
    assert all(type(pair.inputs) is kind for pair in pairs)
    for place, expected in enumerate((X, C)):
        parts = [list(pair.inputs.values() if kind is dict else pair.inputs)[place] for pair in pairs]
        torch.testing.assert_close(torch.cat(parts), expected)


def test_the_test_part_is_read_where_it_is_asked_for() -> None:
    data = read_data(ONE["data"](), part="test")
    assert isinstance(data, Split)
    assert torch.equal(data.inputs, C)


def test_the_first_batch_is_read_without_changing_those_to_come() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(X, Y), 2, shuffle=True, generator=generator)
    expected = [y.tolist() for _, y in loader]
    generator.manual_seed(3)
    batches = Batches(loader)
    first = batches.first()
    assert [pair.targets.tolist() for pair in batches] == expected
    assert first.targets.tolist() == expected[0]


def test_a_split_is_drawn_in_an_order() -> None:
    order = torch.tensor([5, 0, 3])
    (one, two) = Split((X, C), Y).batches(2, order)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([one.targets, two.targets]), order)
    assert torch.equal(two.inputs[1], C[3:4])


class Shortened(list):
    """A list of batches that promises more than it gives."""

    def __len__(self) -> int:
        return 5


LATE = [(X[:3], Y[:3]), (X[3:], C[3:], Y[3:])]
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: [], "gives no batches: it is empty, or an iterator that was read before"),
    "an empty loader": (lambda: DataLoader(TensorDataset(X[:0], Y[:0]), 3), "gives no batches"),
    "early end": (lambda: Shortened(halves(X, Y)), r"ended after 2 of the 5 batches that its len\(\) promises"),
    "another entry": (lambda: LATE, r"change: the first one has inputs of 2 dimensions, float, targets of 1 dimensions, integer, batch 2 has inputs\[0\]"),
    "another key": (lambda: [{"x": X, "y": Y}, {"z": X, "y": Y, "c": C}], r"batches that change.*batch 2 has inputs\['z'\]"),
    "more dimensions": (lambda: [(X, Y), (X[:, None], Y)], r"change: the first one has inputs of 2 .*batch 2 has inputs of 3"),
    "missing key": (lambda: Batches([{"x": X}], inputs="image"), r"the entries 'x', without 'image'; .*inputs='x'"),
    "missing place": (lambda: Batches([(X, Y)], inputs=2), "the entries 0, 1, without 2"),
    "two kinds of labels": (lambda: [{"x": X, "label": Y, "y": Y}], r"dict batches with 'label', 'y'; say which.*targets='label'"),
    "empty batch": (lambda: [(X[:0], Y[:0])], r"an empty batch, with shape \(0, 3\)"),
    "fewer targets": (lambda: [(X, Y[:4])], r"a batch of 6 samples with shape \(4,\), torch.int64 as targets"),
    "samples of a list": (lambda: [(X[0], Y[0])], r"a batch of 3 samples with shape \(\)"),
    "text": (lambda: [("x", Y)], r"a batch whose inputs are of type str, without tensors.*DataLoader"),
    "a number": (lambda: 3, r"data of type int; it takes tensors \(inputs, targets\)"),
    "an optimizer": (lambda: torch.optim.SGD([X.clone().requires_grad_()], 0.1), "data of type SGD"),
    "a data set without a length": (lambda: Samples(), "data of type Samples; it takes .*DataLoader"),
    "a stream of samples": (lambda: Stream(), "data of type Stream"),
    "a split without tensors": (lambda: Split("x", Y), r"inputs of type str; it takes tensors \(inputs, targets\)"),
    "different lengths": (lambda: (X, Y[:4]), "6 inputs and 4 targets; it takes one target per input"),
    "different inputs": (lambda: ((X, C[:4]), Y), r"one target per input"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_what_can(given: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        list(read_data(given()))


def test_an_iterator_cannot_be_looked_into() -> None:
    with pytest.raises(TypeError, match=r"can be read only once \(.*iterator\)"):
        Batches(iter(halves(X, Y))).first()


def test_measurements_read_batches_too(digits: Data) -> None:
    net = isometry.networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8))
    x, y = digits.test.inputs[:12], digits.test.targets[:12]
    expected = isometry.measure(net, x).spectrum.values
    for given in (
        Batches([(x, y)]),
        Batches([{"a": y, "b": x}], inputs="b"),
        Batches(Split(y, x).batches(12), inputs=1),
    ):
        torch.testing.assert_close(isometry.measure(net, given).spectrum.values, expected)
