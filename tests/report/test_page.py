from __future__ import annotations

import re
from pathlib import Path

import pytest

from metanet.errors import MetanetError
from metanet.report import (
    Block,
    Code,
    Facts,
    Fold,
    Heading,
    Note,
    Page,
    Section,
    Table,
    Text,
    intervals,
    lines,
    render,
    scatter,
    write,
)

EVIL = '<script>alert("x")</script>'


def page(*blocks: Block, text: str = "plain") -> Page:
    return Page(text, text, [Section(text, text, blocks)], text)


def figures() -> list[Block]:
    ends = ([0.0, 1.0], [1.0, 2.0])
    return [
        lines([("A", "y", {"one": ends, "two": ends}), ("B", "y", {"one": ends})], "x", "lines"),
        scatter([("A", [0.1], [0.2]), ("B", [0.1], [0.3])], "x", "y", "points"),
        intervals([("a", 0.5, 0.4, 0.6), ("b", 0.2, 0.1, 0.3)], (0.9, "top"), "x", "bars"),
    ]


def test_every_text_is_escaped() -> None:
    inner: list[Block] = [
        Text(EVIL), Heading(EVIL), Code(EVIL), Note(EVIL), Facts([(EVIL, EVIL)]), Text(f"`{EVIL}`"),
        Table([EVIL], [[EVIL]], caption=EVIL),
    ]
    html = render(page(*inner, Fold(EVIL, inner), text=EVIL))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 20


def test_figure_texts_are_escaped() -> None:
    ends = ([0.0, 1.0], [1.0, 2.0])
    figure = lines([(EVIL, EVIL, {EVIL: ends})], EVIL, EVIL, EVIL)
    html = render(page(figure))
    assert "<script" not in html
    assert b"<script" not in figure.light + figure.dark


def test_words_between_backticks_are_code() -> None:
    html = render(page(Text("call `f<x>` and `g` or `h")))
    assert "call <code>f&lt;x&gt;</code> and <code>g</code> or `h" in html


def test_page_loads_nothing() -> None:
    html = render(page(*figures(), Text("see https://example.org")))
    sources = re.findall(r'(?:src|srcset|href|action)="([^"]*)"', html)
    assert sources
    assert [s for s in sources if not s.startswith(("data:image/svg+xml;base64,", "#"))] == []
    assert "url(" not in html
    assert "@import" not in html
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_page_serves_dark_paper_phones_and_those_who_do_not_see() -> None:
    html = render(page(*figures()))
    assert html.count('<source srcset="data:') == 3
    assert html.count("prefers-color-scheme: dark") == 4  # three pictures and the style sheet
    assert 'name="viewport"' in html
    for alt in ("lines", "points", "bars"):
        assert f'alt="{alt}"' in html


def test_figures_hold_two_schemes_and_do_not_change() -> None:
    for first, second in zip(figures(), figures(), strict=True):
        assert first == second
        assert first.light != first.dark
        assert b"<svg" in first.light


def test_table_marks_numbers_and_strong_rows() -> None:
    html = render(page(Table(["name", "n"], [["a", "1"], ["b", "2"]], frozenset({1}),
                             frozenset({1}))))
    assert html.count('class="n"') == 3
    assert '<tr class="strong"><td>b</td>' in html


def test_write_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    write(page(Text("first")), target)
    write(page(Text("second")), target)
    assert "second" in target.read_text(encoding="utf-8")
    assert [p.name for p in target.parent.iterdir()] == ["page.html"]


def test_write_says_where_it_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(MetanetError, match="choose another place"):
        write(page(), tmp_path / "file" / "page.html")
