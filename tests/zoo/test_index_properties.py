"""The index of a zoo: what is stored comes back, and a condition means what it says."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metanet.zoo import Entry, Zoo

# Characters that SQLite stores: no surrogates, which are no UTF-8.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.integers(-2**62, 2**62), "real": st.floats(allow_nan=False, allow_infinity=False),
    "word": TEXT, "flag": st.booleans()}
ROW = st.fixed_dictionaries({}, optional=KINDS)
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge}
Condition = tuple[str, Callable[[dict[str, Any]], bool | None]]


def entries(rows: list[dict[str, Any]]) -> list[Entry]:
    return [Entry(f"m{i}", row) for i, row in enumerate(rows)]


def filled(path: Path, rows: list[dict[str, Any]]) -> Zoo:
    zoo = Zoo.create(path)
    zoo.add_stacked({"w": torch.zeros(len(rows), 1)}, entries(rows))
    return zoo


@settings(max_examples=500)
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_what_is_stored_comes_back(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zoo = filled(Path(folder) / "zoo", rows)
        found = list(zoo.query().rows())
        for name in {key for row in rows for key in row}:
            assert [row[f"config.{name}"] for row in found] == [row.get(name) for row in rows]
        zoo.close()


def literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def atom(name: str, sign: str, value: Any) -> Condition:
    def holds(row: dict[str, Any]) -> bool | None:
        return None if row.get(name) is None else OPERATORS[sign](row[name], value)

    return f"{name} {sign} {literal(value)}", holds


def inverted(inner: Condition) -> Condition:
    def holds(row: dict[str, Any]) -> bool | None:
        value = inner[1](row)
        return None if value is None else not value

    return f"not ({inner[0]})", holds


def joined(word: str, one: Condition, two: Condition) -> Condition:
    """And, or, with unknown (None) as SQL has it."""
    strong = word == "or"

    def holds(row: dict[str, Any]) -> bool | None:
        values = one[1](row), two[1](row)
        return strong if strong in values else None if None in values else not strong

    return f"({one[0]}) {word} ({two[0]})", holds


ATOMS = st.one_of(*(st.builds(atom, st.just(name), st.sampled_from(sorted(OPERATORS)), values)
                    for name, values in KINDS.items()))
CONDITIONS = st.recursive(ATOMS, lambda inner: st.one_of(
    st.builds(inverted, inner), st.builds(joined, st.sampled_from(["and", "or"]), inner, inner)),
    max_leaves=4)
ROWS: list[dict[str, Any]] = [
    {"whole": i % 5 - 2, **({} if i % 7 == 0 else {"real": (i % 11 - 5) / 4}),
     **({} if i % 6 == 0 else {"word": ("", "a", "it's", "Z", "é\n")[i % 5]}), "flag": i % 3 == 0}
    for i in range(60)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    made = filled(tmp_path_factory.mktemp("zoo") / "z", ROWS)
    yield made
    made.close()


@settings(max_examples=500)
@given(condition=CONDITIONS)
def test_a_condition_means_what_it_says(condition: Condition, zoo: Zoo) -> None:
    text, holds = condition
    want = [f"m{i}" for i, row in enumerate(ROWS) if holds(row)]
    assert list(zoo.query(text).ids) == want
