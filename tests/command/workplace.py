"""A module of a user's, and what a command line ends with."""

import pytest
import torch

import isometry
from isometry.command import main

SHAPE = (1, 8, 8)
MODULE = r"""
import isometry
def build():
    return isometry.networks.build("conv-4", input_shape=(1, 8, 8), widths=(8, 8, 8, 8), seed=0)
def number():
    return 3
def warns():
    import warnings
    warnings.warn("two\nlines")
    return build()
def fails():
    raise KeyError("boom")
class Last(isometry.L1):
    def importance(self, context, group):
        return -super().importance(context, group)
"""


def build() -> torch.nn.Module:
    return isometry.networks.build("conv-4", input_shape=SHAPE, widths=(8, 8, 8, 8), seed=0)


def ends(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return the exit status, and what is written to stdout and stderr."""
    try:
        status = main(words.split())
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, *capsys.readouterr()
