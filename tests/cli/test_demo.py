"""The demo's command: the first line at once, the story on stdout, one document under --json.

What the demo computes is tested beside it, in tests/tasks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Run

from metanet.tasks import demo


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path, *, quick: bool, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
        say("a line of the story")
        out.write_text("<html></html>", encoding="utf-8")
        return {"quick": quick, "seed": seed, "rows": [{"tau": float("nan")}]}

    monkeypatch.setattr(demo, "run", run)


def test_story_on_stdout(run: Run, tmp_path: Path) -> None:
    done = run("demo", "-o", tmp_path / "page.html")
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("metanet demo")
    assert done.out.splitlines()[1:] == ["a line of the story", str(tmp_path / "page.html")]


def test_one_document_under_json(run: Run, tmp_path: Path) -> None:
    done = run("demo", "-o", tmp_path / "page.html", "--quick", "--seed", 3, "--json")
    assert done.json == {"out": (tmp_path / "page.html").as_posix(), "quick": True, "seed": 3,
                         "rows": [{"tau": None}]}
    assert "a line of the story" in done.err


def test_first_line_comes_at_once(tmp_path: Path) -> None:
    """In a process of its own, stopped after its first line; the goal is five seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "metanet", "demo", "-o", str(tmp_path / "page.html")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = process.stdout.readline()
        waited = time.perf_counter() - start
        process.kill()
    assert first.startswith(b"metanet demo")
    assert waited < 5
