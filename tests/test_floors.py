"""Imports go down only: the table of floors."""

import ast
from pathlib import Path

import isometry

FLOORS = {
    "__main__": 6, "command": 5,
    "trials": 4, "plots": 4,
    "measurement": 3, "pruners": 3,
    "repairs": 2, "surgery": 2, "training": 2,
    "networks": 1,
    "data": 0, "spectra": 0, "files": 0,
    "limits": -1, "errors": -2,
}  # fmt: skip


def test_imports_go_down_only() -> None:
    root = Path(isometry.__file__).parent
    seen = set()
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"isometry.{a.name}" for a in node.names] if node.module == "isometry" else [node.module]
            for name in names:
                if name.startswith("isometry."):
                    other = name.split(".")[1]
                    assert other == room or FLOORS[other] < FLOORS[room], f"{path} imports {name}"
    assert seen == set(FLOORS)


def test_measuring_does_not_import_the_plots() -> None:
    for path in Path(isometry.__file__).parent.rglob("*.py"):
        if "plots" not in path.parts:
            top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not any("matplotlib" in ast.dump(node) or "'plots'" in ast.dump(node) for node in top), path


def test_the_tour_names_what_exists() -> None:
    for name in isometry.__all__:
        assert hasattr(isometry, name)
    assert isometry.plots.spectrum
    assert isometry.trials.run
