"""Reports: one self-contained HTML page from plain blocks and plots."""

from __future__ import annotations

from metanet.report.blocks import (
    Block,
    Code,
    Facts,
    Figure,
    Fold,
    Heading,
    Note,
    Page,
    Section,
    Table,
    Text,
)
from metanet.report.page import render, write
from metanet.report.plots import draw, intervals, lines, scatter

__all__ = [
    "Block", "Code", "Facts", "Figure", "Fold", "Heading", "Note", "Page", "Section", "Table",
    "Text", "draw", "intervals", "lines", "render", "scatter", "write",
]
