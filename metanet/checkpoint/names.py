"""Names of tensors: their one order, and how to show them without obeying them.

Torch-free, and used by other rooms.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

_DIGITS = re.compile(r"([0-9]+)")
# Control, format (bidi, zero-width), surrogate, private use, unassigned, line separators.
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

NaturalKey = tuple[tuple[tuple[int, int, str], ...], str]


def _chunk(text: str) -> tuple[int, int, str]:
    """Digits sort before letters and by value; length first, so no huge int is ever built."""
    if text.isdecimal() and text.isascii():
        value = text.lstrip("0")
        return 0, len(value), value
    return 1, 0, text


def natural_key(name: str) -> NaturalKey:
    """Sort key that puts ``layer.2`` before ``layer.10``; a total order on names."""
    return tuple(_chunk(part) for part in _DIGITS.split(name) if part), name


def natural_sorted(names: Iterable[str]) -> tuple[str, ...]:
    """The names in natural order, whatever order the file had them in."""
    return tuple(sorted(names, key=natural_key))


def _escape(char: str) -> str:
    if unicodedata.category(char) not in _UNSHOWABLE:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: object, limit: int | None = None) -> str:
    """``text`` with control, bidirectional and invisible characters escaped.

    A name read from a file can move the cursor, reorder a line or hide; this cannot. ``limit``
    cuts after that many characters and says so. Rich markup (``[bold]``) is not touched: escape it
    where markup is rendered.
    """
    raw = str(text)
    cut = raw if limit is None or len(raw) <= limit else raw[:limit] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(map(_escape, cut))


def no_such(what: str, name: object, known: Iterable[str]) -> str:
    """The text of an error: there is no ``what`` of that name; the nearest, and all that are."""
    words = list(known)
    near = difflib.get_close_matches(str(name)[:200], words, 1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    return f"no {what} {printable(name, 80)!r}; {hint} {', '.join(words)}"


def some(names: Iterable[str], limit: int = 6) -> str:
    """A short, safe listing for messages: ``a, b, c and 9 more``."""
    ordered = list(names)
    shown = ", ".join(repr(printable(name, 80)) for name in ordered[:limit])
    rest = len(ordered) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
