"""Gains that are kept between visits equal gains that are computed anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metanet.symmetry.gains import collect
from metanet.symmetry.remembered import Memory
from metanet.symmetry.space import WeightSpace
from metanet.testing import random_tensors

CONV = WeightSpace.parse("""space v1
group a = S(12)
group b = S(15)
w1: a 3! 2! 2!
c1: a
w2: b a 2! 2!
w3: b b
head: 4! (b 2!)
""")
LONE = WeightSpace.parse("""space v1
group a = S(12)
group b = S(15)
w1: a 3! 2! 2!
c1: a
w2: b a 2! 2!
head: 4! (b 2!)
""")


def pair_of(space: WeightSpace, seed: int = 0) -> tuple[dict, dict]:
    """Tensors of two models."""
    one, other = (random_tensors(space, seed + i, torch.float64) for i in range(2))
    return one, other


def swapped(table: np.ndarray, places: int, rng: np.random.Generator) -> np.ndarray:
    """Two or more entries of a permutation moved around."""
    out, chosen = table.copy(), rng.choice(len(table), places, replace=False)
    out[chosen] = np.roll(out[chosen], 1)
    return out


@given(seed=st.integers(0, 10**6), places=st.integers(2, 12))
def test_what_is_kept_is_what_is_computed_anew(seed: int, places: int) -> None:
    pair = pair_of(LONE, seed)
    rng, start = np.random.default_rng(seed), LONE.identity()
    memory, tables = Memory(LONE, pair), dict(start.tables)
    group_a, group_b = LONE.group("a"), LONE.group("b")
    for _ in range(4):
        for group, other in ((group_a, "b"), (group_b, "a")):
            found = memory.collect(group, tables, start.values).plain
            fresh = collect(LONE, group, pair, tables, start.values).plain
            assert np.allclose(found, fresh, atol=1e-11)
            tables = {**tables, other: swapped(tables[other], places, rng)}


def test_few_moves_are_added_and_many_are_computed_anew() -> None:
    pair, start = pair_of(LONE), LONE.identity()
    memory, group = Memory(LONE, pair), LONE.group("b")
    first = memory.collect(group, start.tables, start.values)
    before = first.plain.copy()
    few = {**start.tables, "a": np.array([1, 0, *range(2, 12)])}
    assert memory.collect(group, few, start.values) is first
    assert np.abs(first.plain - before).max() > 0.1, "the control: the move is felt"
    many = {**start.tables, "a": np.arange(12)[::-1].copy()}
    assert memory.collect(group, many, start.values) is not first


def test_groups_that_meet_themselves_are_not_kept() -> None:
    memory = Memory(CONV, pair_of(CONV))
    assert memory.lone(CONV.group("a")) and not memory.lone(CONV.group("b"))
    start = CONV.identity()
    one, other = (memory.collect(CONV.group("b"), start.tables, start.values) for _ in range(2))
    assert one is not other and np.array_equal(one.plain, other.plain)


@pytest.mark.parametrize("room", [0, 10**6])
def test_memory_is_bounded(room: int) -> None:
    memory = Memory(LONE, pair_of(LONE))
    memory.room, start = room, LONE.identity()
    for group in LONE.groups:
        memory.collect(group, start.tables, start.values)
    assert len(memory.kept) == (2 if room else 0)
