"""Every snippet of the README and of the card on extending is executed, in order, in one empty
folder each.

What a plain block shows right after a Python block is what that block prints; a block marked
``text`` is a drawing, or the output of a command that takes minutes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_source import ROOT
from metanet.cli.app import app
from typer.testing import CliRunner

from metanet.symmetry.rules import forget
from metanet.tasks.merge.methods import METHODS
from metanet.trace.archs.registry import _REGISTRY

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"^(pip|git|python|metanet demo|ray start)\b")  # .ci/run, tests/zoo
PAGES = ("README.md", "zoo/cards/extend.md")


def snippets(page: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks, those left out that run elsewhere."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(kind, body) for kind, body in BLOCK.findall(text)
            if not ELSEWHERE.match(body.removeprefix("$ "))]


@pytest.mark.parametrize("page", PAGES)
def test_there_are_snippets(page: str) -> None:
    kinds = [kind for kind, _ in snippets(page)]
    assert kinds.count("python") >= 2
    assert kinds.count("console") >= 1


@pytest.fixture
def _taken_back() -> Iterator[None]:
    """What the card on extending registers."""
    yield
    METHODS.pop("largest", None)
    forget("mylib.softcap")
    _REGISTRY.pop("three-layers", None)


@pytest.mark.usefixtures("_taken_back")
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed: str | None = None
    for kind, body in snippets(page):
        if kind == "python":
            exec(compile(body, page, "exec", dont_inherit=True), names)
            printed = capsys.readouterr().out
        elif kind == "console":
            run_console(body)
        elif not kind and printed is not None:
            assert all(line.strip() in printed for line in body.splitlines()), printed


def run_console(body: str) -> None:
    """Run each ``$ …`` line and look for the output lines shown below it."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        code, output = run(shlex.split(command))
        assert code == 0, output
        for line in filter(None, map(str.strip, shown.splitlines())):
            assert line == "…" or line in output, f"{command}: {line!r} not in the output"


def run(words: list[str]) -> tuple[int, str]:
    """``metanet`` in this process, ``torchrun`` of this Python in others."""
    if words[0] == "metanet":
        result = CliRunner().invoke(app, words[1:])
        return result.exit_code, result.output
    assert words[0] == "torchrun"
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], text=True,
                          capture_output=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr
