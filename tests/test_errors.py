"""Errors are signed by the verb that the user called."""

import pytest

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
