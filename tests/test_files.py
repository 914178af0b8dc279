"""Files of results: tables in Markdown."""

import pandas as pd

from isometry.files import markdown


def test_markdown_is_a_table() -> None:
    assert markdown(pd.DataFrame({"a": [1], "b": ["x"]})) == "| a | b |\n| --- | --- |\n| 1 | x |"
