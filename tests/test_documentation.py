"""The README and the figures say what the code does."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib import pyplot as plt

from isometry.files import read_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def analysis(table: str) -> ModuleType:
    """Return the script that writes a table, e.g. cost.py for "cost" and "cost-cuda"."""
    name = table.partition("-")[0]
    spec = importlib.util.spec_from_file_location(name, ROOT / "analyses" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
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


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=lambda code: code.split("\n")[0]
)
def test_every_snippet_runs_as_written(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "readme"})


def test_the_tour_runs_and_prints_what_its_committed_outputs_say(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((ROOT / "analyses" / "tour.ipynb").read_text())["cells"]
    namespace: dict[str, object] = {"__name__": "tour"}
    plt.close("all")  # what other tests have drawn
    with plt.rc_context():
        for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
            exec(compile("".join(cell["source"]), f"cell {number} of the tour", "exec"), namespace)
            drawn = len(plt.get_fignums())
            plt.close("all")
            told = "".join(line for output in cell["outputs"] for line in output.get("text", ()))
            assert drawn == sum("image/png" in output.get("data", {}) for output in cell["outputs"]), number
            found = capsys.readouterr().out
            assert re.sub(r"[\d.e-]+", "", found).split() == re.sub(r"[\d.e-]+", "", told).split()
            # Another processor rounds differently, and training amplifies it; seconds are not compared.
            pairs = zip(found.splitlines(), told.splitlines(), strict=True)
            for line, before in pairs if number else ():
                if not line.startswith("cost"):
                    assert numbers(line) == pytest.approx(numbers(before), rel=0.5, abs=0.3), line


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 190
    assert "linear_mlp_oracle" in SHORT


FIGURES = sorted(path.stem for path in (ROOT / "figures").glob("*.csv"))
SHORT = re.findall(r"<!-- (\w+):short -->", README)


@pytest.mark.parametrize("name", FIGURES)
def test_the_tables_and_pictures_are_those_of_the_committed_numbers(name: str) -> None:
    table = read_table(ROOT / "figures" / f"{name}.csv")
    assert (ROOT / "figures" / f"{name}.md").read_text() == analysis(name).tables(table) + "\n"
    origin = json.loads((ROOT / "figures" / f"{name}.json").read_text())
    assert all(len(entry["commit"]) >= 12 for entry in origin["software"])
    assert origin.get("computing_seconds", 1) > 0
    assert (ROOT / "figures" / f"{name}.png").stat().st_size > 30_000


@pytest.mark.parametrize("name", SHORT if FIGURES else [])  # an sdist holds no figures
def test_the_short_tables_of_the_readme_are_those_of_the_committed_numbers(name: str) -> None:
    shown = re.search(rf"<!-- {name}:short -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert shown is not None, f"the README has no <!-- {name}:short --> ... <!-- end -->"
    table = read_table(ROOT / "figures" / f"{name}.csv")
    assert shown.group(1).strip() == analysis(name).short(table)


@pytest.mark.parametrize("name", FIGURES)
def test_short_tables_are_short(name: str) -> None:
    assert 3 <= len(analysis(name).short(read_table(ROOT / "figures" / f"{name}.csv")).splitlines()) <= 10


def test_every_analysis_states_its_question_and_its_finding() -> None:
    for path in (ROOT / "analyses").glob("*.py"):
        text = path.read_text()
        assert text.split('"""')[1].split("\n")[0].endswith("?"), path
        assert "FINDING" not in text, path
