"""Canonical form: one form per orbit, bit for bit, ties broken or owned up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry import Canonical, WeightSpace
from metanet.testing import random_tensors
from tests.symmetry.strategies import ALGEBRA, SEEDS, spaces

SIREN = """space v1
group h1 = signed(32)
group h2 = signed(32)
seq.0.weight: h1 2!
seq.0.bias: h1
seq.1.weight: h2 h1
seq.1.bias: h2
seq.2.weight: 1! h2
seq.2.bias: 1!
"""
MLP = """space v1
group a = {kind}(6)
group b = {kind}(5)
0.weight: a 3!
0.bias: a
1.weight: b a
1.bias: b
2.weight: 2! b
"""
HEADS = """space v1
group h = S(3)
group d = S(4) / h
group v = {kind}(4) / h
group m = {kind}(5)
in_proj: (h d/h + h d/h + h v/h) m
out_proj: m (h v/h)
norm: m^2
tied = out_proj
"""
RECURRENT = """space v1
group h = {kind}(7)
w_ih: h 2!
w_hh: h h
bias: h
"""
COARSE = st.sampled_from([None, 0.5, 2.0, 1e9])


def parse(groups: str) -> WeightSpace:
    return WeightSpace.parse("space v1\n" + groups)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(bits(one[k]) == bits(other[k]) for k in one)


def coarse(tensors: dict, step: float | None) -> dict:
    """Values rounded to multiples of ``step``: many ties, zeros of both signs."""
    return tensors if step is None else {k: (t / step).round() * step for k, t in tensors.items()}


def agree(space: WeightSpace, tensors: dict, seed: int, **options: int) -> tuple[Canonical, ...]:
    one = space.canonical(tensors) if not options else canonical(space, tensors, **options)
    moved = space.random(seed).apply(tensors)
    other = space.canonical(moved) if not options else canonical(space, moved, **options)
    assert not (one.unique and other.unique) or same(one.state_dict, other.state_dict)
    for start, found in ((tensors, one), (moved, other)):
        applied = found.element.apply(start)
        assert all(torch.equal(applied[k], found.state_dict[k]) for k in applied)
    return one, other


def canonical(space: WeightSpace, tensors: dict, budget: int) -> Canonical:
    from metanet.symmetry import canonical as function

    return function(space, tensors, budget=budget)


@ALGEBRA
@given(spaces("S", "signed"), COARSE, SEEDS)
def test_one_form_per_orbit(space: WeightSpace, step: float | None, seed: int) -> None:
    """Random trees, fibred groups, several occurrences; with and without exact ties."""
    one, other = agree(space, coarse(random_tensors(space, seed), step), seed)
    assert one.unique == other.unique


@settings(ALGEBRA, max_examples=60)
@given(spaces("S", "signed"), st.sampled_from([0.5, 2.0]), SEEDS, st.integers(0, 3))
def test_a_small_budget_is_never_wrong(
    space: WeightSpace, step: float, seed: int, budget: int
) -> None:
    agree(space, coarse(random_tensors(space, seed), step), seed, budget=budget)


@pytest.mark.parametrize("kind", ["S", "signed"])
@pytest.mark.parametrize("text", [MLP, HEADS, RECURRENT])
def test_ties_of_every_sort_are_broken(text: str, kind: str) -> None:
    """Copies, zeros, constants and coupled copies leave a unique form within the budget."""
    space = WeightSpace.parse(text.format(kind=kind))
    for step in (None, 0.5, 1.0, 2.0, 1e9):
        for seed in range(5):
            one, other = agree(space, coarse(random_tensors(space, seed), step), seed + 1)
            assert one.unique and other.unique
    for value in (0.0, 1.0):
        constant = {k: torch.full_like(t, value) for k, t in random_tensors(space).items()}
        constant |= {alias: constant[owner] for alias, owner in space.aliases.items()}
        one, other = agree(space, constant, 1)
        assert one.unique and other.unique


@pytest.mark.parametrize("kind", ["S", "signed"])
def test_duplicate_and_zero_neurons(kind: str) -> None:
    space = WeightSpace.parse(MLP.format(kind=kind))
    tensors = random_tensors(space)
    tensors["0.weight"][1], tensors["0.bias"][1] = tensors["0.weight"][0], tensors["0.bias"][0]
    tensors["1.weight"][:, 1] = tensors["1.weight"][:, 0]
    for name in ("0.weight", "0.bias"):
        tensors[name][3:5] = 0.0
    tensors["1.weight"][:, 3:5] = -0.0
    one, other = agree(space, tensors, 3)
    assert one.unique and other.unique and same(one.state_dict, other.state_dict)


@pytest.mark.parametrize("text", [
    "group s = signed(5)\nw: s s^2", "group s = signed(5)\nw: s s\nv: s^2 3!",
    "group s = signed(3)\ngroup t = signed(4)\nw: s s^2 t", "group s = signed(6)\nw: s s s",
])
def test_signs_that_meet_themselves(text: str) -> None:
    space = parse(text)
    for step in (None, 1.0):
        for seed in range(8):
            one, other = agree(space, coarse(random_tensors(space, seed), step), seed + 1)
            assert one.unique and other.unique


def test_many_dead_neurons_are_quick() -> None:
    space = parse("group h = signed(600)\na: h 8!\nb: 4! h")
    tensors = random_tensors(space)
    tensors["a"][100:], tensors["b"][:, 100:] = 0.0, 0.0
    one, other = agree(space, tensors, 3)
    assert one.unique and other.unique


def test_hidden_symmetry_needs_the_search() -> None:
    """A cycle and two triangles: refinement alone ties all neurons, yet they differ."""
    space = parse("group h = S(6)\nw: h h")
    cycle, triangles = torch.zeros(6, 6), torch.zeros(6, 6)
    for i in range(6):
        cycle[i, (i + 1) % 6] = cycle[(i + 1) % 6, i] = 1.0
        for j in range(6):
            triangles[i, j] = float(i != j and i % 2 == j % 2)
    forms = []
    for matrix in (cycle, triangles):
        one, other = agree(space, {"w": matrix}, 1)
        assert one.unique and other.unique
        forms.append(one.state_dict)
    assert not same(*forms)
    assert not canonical(space, {"w": cycle}, budget=3).unique


def test_different_orbits_have_different_forms() -> None:
    space = WeightSpace.parse(SIREN)
    one, other = random_tensors(space, 1), random_tensors(space, 1)
    other["seq.1.weight"][3, 4] *= -1  # no sign flip of neurons does this to one entry
    assert not same(space.canonical(one).state_dict, space.canonical(other).state_dict)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_idempotence(dtype: torch.dtype) -> None:
    space = WeightSpace.parse(HEADS.format(kind="signed"))
    one, other = agree(space, random_tensors(space, 2, dtype), 9)
    assert one.unique and same(one.state_dict, other.state_dict)
    assert one.state_dict["in_proj"].dtype == dtype
    again = space.canonical(one.state_dict)
    assert same(again.state_dict, one.state_dict) and again.element.is_identity()
    assert one.state_dict["tied"] is one.state_dict["out_proj"]


def test_fp8_nan_complex_and_counters() -> None:
    space = parse("group h = S(5)\na: h 3!\nb: h\nc: 2! h")
    tensors = {
        "a": torch.randn(5, 3).to(torch.float8_e4m3fn),
        "b": torch.tensor([1.0, float("nan"), -0.0, 2.0, float("inf")]),
        "c": torch.randn(2, 5, dtype=torch.complex64),
        "steps": torch.tensor(3),
    }
    one = space.canonical(tensors)
    other = space.canonical(space.random(2).apply(tensors))
    assert one.unique and same(one.state_dict, other.state_dict)
    assert torch.equal(one.state_dict["steps"], tensors["steps"])
    assert not torch.signbit(one.state_dict["b"])[one.state_dict["b"] == 0].any()


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 2e-6), (torch.float64, 1e-8)])
@pytest.mark.parametrize("text", [
    "group h = positive(8)\ngroup k = positive(6)\na: h 3!\nb: h\nw: k h^-1\nc: k\no: 2! k^-1",
    "group h = positive(5)\na: h 3!\nb: h\ngamma: h^-1\nvar: h^0\nw: h h^-1",
    "group h = positive(5)\ngroup s = signed(4)\na: h s\nb: h\no: s h^-1\nbias: s",
])
def test_scales(text: str, dtype: torch.dtype, rtol: float) -> None:
    space = parse(text)
    sure = 0
    for seed in range(5):
        tensors = random_tensors(space, seed, dtype)
        one = space.canonical(tensors)
        other = space.canonical(space.random(seed + 5).apply(tensors))
        if one.unique and other.unique:
            sure += 1
            for name, tensor in one.state_dict.items():
                assert torch.allclose(tensor, other.state_dict[name], rtol=rtol, atol=rtol)
    assert sure >= 4


def test_tied_scales_are_owned_up_to() -> None:
    space = parse("group h = positive(4)\na: h 3!\nb: 2! h^-1")
    assert not space.canonical({"a": torch.ones(4, 3), "b": torch.ones(2, 4)}).unique


def test_refusals() -> None:
    with pytest.raises(SymmetryError, match="r=O"):
        parse("group r = O(4)\na: r").canonical({"a": torch.ones(4)})
    space = parse("group h = S(4)\na: h")
    with pytest.raises(SpaceMismatch, match="shape"):
        space.canonical({"a": torch.ones(5)})
    with pytest.raises(SymmetryError, match="state_dict"):
        space.canonical(3)  # type: ignore[arg-type]


def test_64_sirens_are_one(shared_data: Path) -> None:
    """Permuted and sign-flipped float32 files of one function have one form, bit for bit."""
    space = WeightSpace.parse(SIREN)
    files = sorted((shared_data / "siren_orbit").glob("*.pth"))
    assert len(files) == 64
    read = [torch.load(f, map_location="cpu", weights_only=True) for f in files]
    assert len({bits(t["seq.1.weight"]) for t in read}) == 64
    forms = [space.canonical(tensors) for tensors in read]
    assert all(form.unique for form in forms)
    assert all(same(form.state_dict, forms[0].state_dict) for form in forms)
    only = WeightSpace.parse(SIREN.replace("signed", "S"))
    distinct = {bits(only.canonical(t).state_dict["seq.0.weight"]) for t in read}
    assert len(distinct) > 1  # without the signs they are not one


def test_the_element_tells_the_order() -> None:
    space = parse("group h = S(4)\nb: h")
    form = space.canonical({"b": torch.tensor([3.0, 1.0, 2.0, 1.0])})
    assert form.unique and np.array_equal(np.sort(form.element.tables["h"]), np.arange(4))
    assert sorted(form.state_dict["b"].tolist()) == [1.0, 1.0, 2.0, 3.0]
