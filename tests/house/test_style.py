"""Size of files and functions, plain words, no leftovers, ruff, types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from house_source import ROOT, python_files

LIBRARY = python_files("metanet", "cli", "zoo")
# Written in pieces, so that this file does not find itself.
FOREIGN = re.compile("|".join(
    ["/wo" "rk/", "/fa" "rm/", "bash" "_jobs", "sub" "agent", r"/\.lib" "rary", "shared/" "design",
     "before" "-stop"]), re.IGNORECASE)
LEFTOVER = re.compile("# *TO" "DO|TO" "DO:|FIX" "ME|X" "XX:|NotImplemented" "Error")


def functions(path: str) -> list[tuple[str, int]]:
    """Name and number of lines, docstring left out, of every function of a file."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            found.append((f"{path}:{node.lineno} {node.name}", length))
    return found


@pytest.mark.parametrize("path", python_files("metanet", "cli", "zoo", "tests"))
def test_file_is_short_and_clean(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 600, f"{path} has more than 600 lines: split it by meaning"
    assert not FOREIGN.search(text), FOREIGN.search(text)
    assert not LEFTOVER.search(text), LEFTOVER.search(text)


@pytest.mark.parametrize("path", LIBRARY)
def test_functions_are_short(path: str) -> None:
    assert not [name for name, length in functions(path) if length > 60]


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.startswith("cli/")])
def test_commands_are_thin(path: str) -> None:
    assert not [name for name, length in functions(path) if length > 40]


@pytest.mark.parametrize("path", LIBRARY)
def test_postponed_annotations(path: str) -> None:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not found or ast.unparse(found[0]) == "from __future__ import annotations"


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "pyproject.toml", ".ci/run"])
def test_words_of_the_other_files(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not FOREIGN.search(text), FOREIGN.search(text)


def test_ruff() -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_types() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout[-3000:]
