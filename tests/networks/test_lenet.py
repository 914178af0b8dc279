"""LeNet-5."""

import pytest

from isometry import networks


def test_an_input_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input_shape=\(1, 28, 28\)"):
        networks.build("lenet-5-relu", input_shape=(1, 28, 28))
