"""The rooms stand in the order of the chain and import only from rooms above."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from house_source import imports, project, python_files, room_of

import metanet

ROOMS = ("errors", "checkpoint", "trace", "symmetry", "graph", "zoo", "nn", "models", "report",
         "tasks", "testing", "cli")
# The doors of the package: lazy names, `python -m metanet`, `metanet.optim`.
DOORS = {"metanet/__init__.py", "metanet/__main__.py", "metanet/optim.py"}
# What pip calls the distribution -> what Python calls the module.
MODULES = {"torch-geometric": "torch_geometric", "huggingface-hub": "huggingface_hub",
           "scikit-learn": "sklearn", "pyyaml": "yaml", "types-pyyaml": "yaml",
           "pytest-xdist": "xdist"}

FILES = python_files("metanet", "cli", "zoo")


def wrong_room(room: str, target: str) -> bool:
    """Whether a file of ``room`` may not import the module ``target``."""
    parts = target.split(".")
    if parts[0] != "metanet" or len(parts) == 1:
        return False
    home = metanet._LAZY.get(parts[1], f"metanet.{parts[1]}").split(".")[1]
    if home not in ROOMS:
        return False  # an error or metanet.__version__
    return ROOMS.index(home) > ROOMS.index(room)


def undeclared(name: str, known: set[str]) -> bool:
    """Whether the top-level module ``name`` is neither ours, nor Python's, nor in ``known``."""
    return name not in known and name not in sys.stdlib_module_names and name != "metanet"


def declared(*extras: str) -> set[str]:
    """Top-level modules of the dependencies and of the extras (all of them by default)."""
    table: dict[str, Any] = project()["project"]
    lines = list(table["dependencies"])
    for extra in extras or table["optional-dependencies"]:
        lines += table["optional-dependencies"][extra]
    names = {re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in lines}  # type: ignore[union-attr]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


@pytest.mark.parametrize("path", FILES)
def test_imports_only_from_rooms_above(root: Path, path: str) -> None:
    if path in DOORS:
        return
    room = room_of(path)
    assert room in ROOMS, f"{path} stands in no room of the house"
    bad = [(line, name) for line, name in imports(root, path) if wrong_room(room, name)]
    assert not bad, f"{path} ({room}) reaches down: {bad}"


@pytest.mark.parametrize("path", FILES)
def test_no_undeclared_import(root: Path, path: str) -> None:
    known = declared()
    bad = [(line, name) for line, name in imports(root, path)
           if undeclared(name.split(".")[0], known)]
    assert not bad, f"{path} imports what pyproject.toml does not declare: {bad}"


@pytest.mark.parametrize("path", FILES)
def test_pyg_has_one_door(root: Path, path: str) -> None:
    names = {name.split(".")[0] for _, name in imports(root, path, types=False)}
    assert "torch_geometric" not in names or path == "metanet/graph/pyg.py"


def test_pyg_is_lazy(root: Path) -> None:
    path = root / "metanet" / "graph" / "pyg.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    eager = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
             and "torch_geometric" in ast.unparse(node)]
    assert not eager, "torch_geometric costs seconds: import it inside the function that needs it"


def test_tests_need_only_dev(root: Path) -> None:
    known = declared("dev") | {p.stem for p in (root / "tests").rglob("*.py")}
    known |= {p.name for p in (root / "tests").iterdir()}
    known |= {"tests", "timm", "torchvision"}  # the last two: marker timm
    # Benchmarks are run by name and import peers from checkouts that the caller names.
    files = [path for path in python_files("tests") if not str(path).startswith("tests/bench/")]
    bad = [(path, line, name) for path in files
           for line, name in imports(root, path) if undeclared(name.split(".")[0], known)]
    assert files and not bad


@pytest.mark.parametrize(("room", "target", "wrong"), [
    ("checkpoint", "metanet.symmetry", True),
    ("symmetry", "metanet.checkpoint.names", False),
    ("nn", "metanet.zoo", False),
    ("graph", "metanet.zoo.store", True),
    ("tasks", "metanet.cli.app", True),
    ("cli", "metanet.tasks.demo", False),
    ("errors", "metanet.errors", False),
    ("checkpoint", "metanet.WeightSpace", True),
    ("graph", "metanet.WeightSpace", False),
    ("checkpoint", "metanet.CheckpointError", False),
])
def test_the_rule_itself(room: str, target: str, wrong: bool) -> None:
    assert wrong_room(room, target) is wrong


def test_the_walk_sees_every_form(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "x.py").write_text(
        "import os.path\nfrom . import output\nfrom .errors import A\nfrom metanet import nn\n"
        "def f():\n    import numpy as np\n", encoding="utf-8")
    found = {name for _, name in imports(tmp_path, "cli/x.py")}
    assert {"os.path", "metanet.cli.output", "metanet.cli.errors.A", "metanet.nn",
            "numpy"} <= found


def test_types_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "x.py").write_text(
        "import os\nif TYPE_CHECKING:\n    import json\n", encoding="utf-8")
    assert [name for _, name in imports(tmp_path, "cli/x.py", types=False)] == ["os"]
    assert [name for _, name in imports(tmp_path, "cli/x.py")] == ["os", "json"]
