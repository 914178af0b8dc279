"""Data sets by name: splits that never change, and what is refused."""

import pytest
import torch

from isometry import data


def test_digits_are_split_into_disjoint_parts(digits: data.Data) -> None:
    assert [len(part.targets) for part in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]
    assert digits.input_shape == (1, 8, 8)
    assert torch.bincount(digits.test.targets).min() >= 34
    rows = torch.cat([part.inputs for part in (digits.train, digits.validation, digits.test)]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


def test_digits_are_split_the_same_every_time(digits: data.Data) -> None:
    again = data.load("digits")
    assert torch.equal(again.train.inputs, digits.train.inputs)


def test_digits_are_normalized() -> None:
    whole = data.load("digits", validation=0).train.inputs
    assert abs(float(whole.mean())) < 1e-5
    assert abs(float(whole.std()) - 1) < 1e-5


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match="'minst'; it knows cifar10, cifar100, digits, fashion-mnist, mnist"):
        data.load("minst")


def test_a_validation_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="validation=1437; it takes 0 to 1436"):
        data.load("digits", validation=1437)


def test_normalization_of_other_data_than_cifar_is_refused() -> None:
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match=r"normalization, which only cifar10 and cifar100 take"):
        data.load("digits", normalization=half)


def test_only_photographs_are_augmented() -> None:
    assert data.load("digits").augment is None
