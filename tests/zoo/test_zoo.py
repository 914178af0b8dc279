"""Architectures of other libraries are measured rightly, and pruned and loaded exactly, or refused by name."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("default")]

SPEC = importlib.util.spec_from_file_location("zoo", Path(__file__).parents[2] / "analyses" / "zoo.py")
assert SPEC is not None
assert SPEC.loader is not None
zoo: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(zoo)


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in zoo.PARTS.items() for name in names])
def test_an_architecture_is_measured_rightly_and_pruned_exactly_or_refused(part: str, name: str) -> None:
    pytest.importorskip("transformers" if part in ("vision", "language") else "pytorchcv")
    row = zoo.examine(part, name)
    assert row["measured"] < 1e-4
    if "refused" in row:
        assert len(row["refused"]) > 20
    else:
        assert row["pruned"] > 0
        assert row["exact"] < 1e-9
        assert row["loaded"]
