"""Every snippet of the README is executed, in order, in one empty folder.

What a plain block shows right after a Python block is what that block prints; a block marked
``text`` is a drawing, or the output of a command that takes minutes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from house_source import ROOT
from metanet.cli.app import app
from typer.testing import CliRunner

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLS = re.compile(r"^(pip|git|python|metanet demo)\b")


def snippets() -> list[tuple[str, str]]:
    """Language and text of the fenced blocks, the two installing commands left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(kind, body) for kind, body in BLOCK.findall(text)
            if not INSTALLS.match(body.removeprefix("$ "))]


def test_there_are_snippets() -> None:
    kinds = [kind for kind, _ in snippets()]
    assert kinds.count("python") >= 2
    assert kinds.count("console") >= 1


def test_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed: str | None = None
    for kind, body in snippets():
        if kind == "python":
            exec(compile(body, "README.md", "exec"), names)
            printed = capsys.readouterr().out
        elif kind == "console":
            run_console(body)
        elif not kind and printed is not None:
            assert all(line.strip() in printed for line in body.splitlines()), printed


def run_console(body: str) -> None:
    """Run each ``$ metanet …`` line and look for the output lines shown below it."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        for line in filter(None, map(str.strip, shown.splitlines())):
            assert line == "…" or line in result.output, f"{command}: {line!r} not in the output"
