"""VGG networks."""

import pytest

from isometry import networks


@pytest.mark.parametrize(
    ("name", "classes", "norm"), [("vgg-16", 10, "batch"), ("vgg-16", 10, "bounded"), ("vgg-19", 100, "batch")]
)
def test_an_input_shape_that_does_not_fit_is_refused(name: str, classes: int, norm: str) -> None:
    with pytest.raises(ValueError, match=r"input_shape=\(3, 64, 64\); its five stages take \(channels, 32, 32\)"):
        networks.build(name, input_shape=(3, 64, 64))
    with pytest.raises(ValueError, match=r"input_shape=\(3, 64, 64\); its five stages take \(channels, 32, 32\)"):
        networks.build(name, classes, norm=norm, input_shape=(3, 64, 64))
