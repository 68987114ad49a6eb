"""The sink: one document, plain numbers, aligned columns, nothing that escapes."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from metanet.cli.output import Sink, plain, safe, table


@dataclass(frozen=True)
class Row:
    name: str
    value: float


def test_plain_takes_what_results_are_made_of() -> None:
    value = {"row": Row("a", float("inf")), 1: (1, 2.5), "p": Path("x/y"), "n": np.float32(0.5),
             "none": None, "flag": True}
    assert plain(value) == {"row": {"name": "a", "value": None}, "1": [1, 2.5], "p": "x/y",
                            "n": 0.5, "none": None, "flag": True}


def test_table_aligns_and_puts_numbers_right() -> None:
    assert table(("name", "n"), [("a", 5), ("long", 1000)]) == [
        "name     n", "a        5", "long  1000"]
    assert table(("name", "n"), []) == ["name  n"]


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink(as_json=True)
    sink.line("prose while it runs")
    sink.result({"x": float("nan")}, "text")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"x": None}
    assert err == "prose while it runs\n"


def test_text_goes_to_stdout_and_prose_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink()
    sink.say("prose")
    sink.result({}, ["one", "two"])
    assert capsys.readouterr() == ("one\ntwo\n", "prose\n")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink(quiet=True)
    sink.say("prose")
    with sink.progress("working"):
        pass
    assert capsys.readouterr() == ("", "")


def test_progress_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink().progress("working"):
        pass
    assert capsys.readouterr() == ("", "")


def test_progress_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Sink().progress("[bold]not markup[/bold]"):
        pass
    assert "[bold]not markup[/bold]" in screen.getvalue()


def test_a_poor_terminal_gets_escapes_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Sink().result({}, "é")
    assert raw.getvalue() == b"\\xe9\n"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u202eb", "a\nb", "a\x07"])
def test_names_cannot_move_the_cursor(name: str) -> None:
    assert safe(name).isprintable()
