"""The README and the figures say what the code does."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


README = (ROOT / "README.md").read_text()


def analysis(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "analyses" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_the_notebook_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(import isometry.*?)```", README, re.DOTALL)
    expected = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert expected is not None
    exec(code.group(1), {})
    found = capsys.readouterr().out.splitlines()
    for line, told in zip(found, expected.group(1).splitlines(), strict=True):
        if line.startswith("cost"):  # seconds differ
            continue
        assert re.sub(r"[\d.e-]+", "", line).split() == re.sub(r"[\d.e-]+", "", told).split()
        # Another processor rounds differently, and training amplifies it.
        assert numbers(line) == pytest.approx(numbers(told), rel=0.3, abs=1e-4)


@pytest.mark.parametrize("name", ["linear_mlp_oracle", "cifar_pruners", "receding", "estimators"])
def test_the_tables_are_those_of_the_committed_figures(name: str) -> None:
    told = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert told is not None
    table = pd.read_csv(ROOT / "figures" / f"{name}.csv")
    assert told.group(1).strip() == analysis(name).readme(table).strip()
    origin = json.loads((ROOT / "figures" / f"{name}.json").read_text())
    assert origin["computing_seconds"] > 0
    assert all(len(entry["commit"]) >= 12 for entry in origin["software"])
    assert (ROOT / "figures" / f"{name}.png").stat().st_size > 50_000


def test_every_analysis_states_its_question_and_its_finding() -> None:
    for path in (ROOT / "analyses").glob("*.py"):
        text = path.read_text()
        assert text.split('"""')[1].split("\n")[0].endswith("?"), path
        assert "FINDING" not in text, path
