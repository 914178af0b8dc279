"""Files of results: tables in Markdown, tensors whole or not at all."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from isometry.files import markdown, read_tensors, write_tensors


def test_markdown_is_a_table() -> None:
    assert markdown(pd.DataFrame({"a": [1], "b": ["x"]})) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    path = tmp_path / "new" / "file.safetensors"
    write_tensors(path, {"a": matrix, "tied": matrix, "transposed": matrix.T}, {"key": "text"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"key": "text"}
    assert torch.equal(tensors["a"], matrix)
    assert torch.equal(tensors["tied"], matrix)
    assert torch.equal(tensors["transposed"], matrix.T)
    assert [file.name for file in path.parent.iterdir()] == ["file.safetensors"]


def test_a_truncated_file_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"file\.safetensors is no whole safetensors file \(.+\)"):
        read_tensors(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.safetensors")
