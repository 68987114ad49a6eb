"""Rows of the tables, in the order in which tables show them."""

from __future__ import annotations

from metanet.tasks.predict.rows import data_rows, neural, reference
from metanet.tasks.predict.rows.base import (
    ROWS,
    TRACKS,
    Budget,
    Fitted,
    Row,
    register,
    row,
    suiting,
)

__all__ = ["ROWS", "TRACKS", "Budget", "Fitted", "Row", "data_rows", "neural", "reference",
           "register", "row", "suiting"]
