"""The single sink: data goes to stdout, prose and progress to stderr.

``--json`` writes exactly one JSON document. rich is used on a terminal only; in a pipe the output
is plain text without escape codes. Names that come from files are made printable by the caller
where they stand in a line (:func:`safe`), once more here, and are never read as markup.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO


def safe(text: object) -> str:
    """Text from a file, with control and direction characters written as escapes."""
    from metanet.checkpoint import printable

    return printable(str(text))


class Sink:
    """Where one command writes.

    Args:
        as_json: one JSON document on stdout instead of text.
        quiet: no prose and no progress on stderr.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, document: Any, text: str | Iterable[str]) -> None:
        """The command's data: ``document`` under ``--json``, else ``text``."""
        if self.as_json:
            _write(sys.stdout, json.dumps(plain(document), indent=2, allow_nan=False))
        else:
            _write(sys.stdout, _shown(text if isinstance(text, str) else "\n".join(text)))

    def line(self, text: str) -> None:
        """One line of data while a command runs; prose where stdout must be one document."""
        if self.as_json:
            self.say(text)
        else:
            _write(sys.stdout, _shown(text))

    def say(self, text: str) -> None:
        """Prose for a person, on stderr."""
        if not self.quiet:
            _write(sys.stderr, _shown(text))

    def said(self, written: bool, out: Path) -> None:
        """Prose about a file: written, or found there with the same bytes."""
        self.say(f"{'wrote' if written else 'already there, the same bytes:'} {out}")

    @contextmanager
    def progress(self, label: str) -> Iterator[None]:
        """A spinner while the body runs, on a terminal; nothing in a pipe."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(label)):
            yield


    @contextmanager
    def counter(self) -> Iterator[Callable[[int, int], None]]:
        """Told (done, total), shows them with rate and time to go: on a terminal in one line that
        is written over, in a pipe every half minute."""
        terminal = sys.stderr.isatty() and not self.quiet
        begin = last = time.monotonic()
        first: int | None = None

        def show(done: int, total: int) -> None:
            nonlocal last, first
            now = time.monotonic()
            first = done if first is None else first
            if now - last < (0.5 if terminal else 30) and done < total:
                return
            last, made = now, done - first
            text = f"{done:,} of {total:,}"
            if made:
                rate = made / max(now - begin, 1e-9)
                text += f", {_rate(rate)}"
                text += f", {_time((total - done) / rate)} to go" if done < total else ""
            if terminal:
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()
            else:
                self.say(text)

        try:
            yield show
        finally:
            if terminal:
                sys.stderr.write("\r\x1b[K")


def _rate(per_second: float) -> str:
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{per_second * 60:.1f} a minute"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Columns aligned by spaces, numbers to the right: the same on a terminal and in a pipe."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(_number(row[i]) for row in cells) for i in range(len(header))]
    grid = [list(header), *cells]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    return ["  ".join(cell.rjust(width) if flush else cell.ljust(width)
                      for cell, width, flush in zip(row, widths, right, strict=True)).rstrip()
            for row in grid]


def plain(value: Any) -> Any:
    """Plain JSON data; a number that JSON cannot hold becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        return plain(value.item())
    return str(value) if not isinstance(value, Path) else value.as_posix()


def _number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").isdigit()


def _shown(text: str) -> str:
    """Lines without anything that a terminal would obey, whoever wrote them."""
    return "\n".join(map(safe, text.split("\n")))


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
