"""What a page is made of: plain data, no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

Verdict: TypeAlias = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Text:
    """A paragraph. Words between backticks are set as code; nothing else is markup."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Heading:
    """A title inside a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Note:
    """A finding in one line."""

    text: str
    verdict: Verdict = "plain"
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Facts:
    """A row of figures with what they mean: (value, label)."""

    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """Rows of cells, all text.

    Args:
        header: one title per column.
        rows: cells, as many as the header has.
        numbers: columns that are set flush right.
        strong: rows that are set off.
        caption: below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()
    caption: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """One plot in two colour schemes, as SVG files.

    Args:
        light: SVG for a light page.
        dark: SVG for a dark page.
        alt: what it shows, for those who cannot see it.
        caption: below the figure.
    """

    light: bytes = field(repr=False)
    dark: bytes = field(repr=False)
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Fold:
    """Blocks that open on a click."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "fold"


Block: TypeAlias = "Text | Heading | Code | Note | Facts | Table | Figure | Fold"


@dataclass(frozen=True)
class Section:
    """A title, a sentence that says the point, and blocks."""

    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A title, an introduction, sections, and a closing line."""

    title: str
    lead: str
    sections: Sequence[Section]
    foot: str = ""
