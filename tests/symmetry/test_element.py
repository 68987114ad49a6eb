"""Group elements: axioms, the action against an entry-by-entry reference, strictness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.action import act, passed_through
from metanet.testing import random_tensors
from tests.symmetry.reference import apply_slowly
from tests.symmetry.strategies import ALGEBRA, spaces

PACKED = """space v1
group h = S(3)
group d = S(2) / h
group v = S(4) / h
group m = S(5)
in_proj: (h d/h + h d/h + h v/h) m
out_proj: m (h v/h)
tied = out_proj
"""
ALL = spaces("S", "signed", "positive")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def close(one: dict, other: dict) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=1e-12, atol=0) for k in one)


@ALGEBRA
@given(ALL)
def test_axioms(space: WeightSpace) -> None:
    g, h, k = (space.random(seed) for seed in (1, 2, 3))
    e = space.identity()
    assert e.is_identity() and e @ g == g == g @ e
    assert (g @ g.inverse()).is_identity() or any(v.size for v in g.values.values())
    left, right = (g @ h) @ k, g @ (h @ k)
    assert all(np.array_equal(left.tables[x], right.tables[x]) for x in left.tables)
    assert all(np.allclose(left.values[x], right.values[x], rtol=1e-12) for x in left.values)


@ALGEBRA
@given(spaces("S", "signed"))
def test_apply_then_inverse_is_bitwise_identity(space: WeightSpace) -> None:
    tensors = random_tensors(space, 1, torch.float32)
    g = space.random(4)
    moved = g.apply(tensors)
    assert same(g.inverse().apply(moved), tensors)
    assert (g @ g.inverse()).is_identity() and (g.inverse() @ g).is_identity()


@ALGEBRA
@given(ALL)
def test_composition_is_application(space: WeightSpace) -> None:
    tensors = random_tensors(space, 1)
    g, h = space.random(4), space.random(5)
    assert close((g @ h).apply(tensors), g.apply(h.apply(tensors)))


@ALGEBRA
@given(ALL)
def test_action_against_the_reference(space: WeightSpace) -> None:
    tensors, g = random_tensors(space, 2), space.random(6)
    moved = g.apply(tensors)
    for name, tensor in tensors.items():
        if tensor.numel() <= 200:
            np.testing.assert_allclose(
                moved[name].numpy(), apply_slowly(g, name, tensor.numpy()), rtol=1e-12
            )


@ALGEBRA
@given(spaces("S", "signed"))
def test_json_of_an_element(space: WeightSpace) -> None:
    g = space.random(7)
    assert GroupElement.from_json(space, g.to_json()) == g


def test_random_is_reproducible_and_moves() -> None:
    space = WeightSpace.parse(PACKED)
    assert space.random(1) == space.random(1) != space.random(2)
    assert space.random(1).tables["d"].shape == (3, 2)
    assert not space.random(1).is_identity()


def test_batch_axes_and_layout() -> None:
    space, g = WeightSpace.parse(PACKED), WeightSpace.parse(PACKED).random(0)
    batch = torch.randn(2, 24, 5)
    moved = act(g, "in_proj", batch, lead=1)
    assert all(torch.equal(moved[i], act(g, "in_proj", batch[i])) for i in range(2))
    transposed = torch.randn(5, 24).T
    assert torch.equal(act(g, "in_proj", transposed), act(g, "in_proj", transposed.contiguous()))
    assert [b.name for b in space.blocks("in_proj")] == ["in_proj#0.0", "in_proj#1.0"]
    assert [b.shape for b in space.blocks("in_proj")] == [(2, 3, 2, 5), (3, 4, 5)]


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex128,
     torch.int8, torch.bool, torch.uint8, torch.int64],
)
def test_bits_move_unchanged(dtype: torch.dtype) -> None:
    space = WeightSpace.parse(PACKED)
    tensors = {k: (t * 4).to(dtype) for k, t in random_tensors(space).items()}
    tensors["tied"] = tensors["out_proj"]
    g = space.random(3)
    back = g.inverse().apply(g.apply(tensors))
    for name, tensor in tensors.items():
        one, other = (t.contiguous().view(torch.uint8) if dtype != torch.bool else t
                      for t in (back[name], tensor))
        assert torch.equal(one, other)


def test_nan_and_infinities_survive() -> None:
    space = WeightSpace.parse("space v1\ngroup g = S(3)\nw: g")
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    g = space.random(1)
    back = g.inverse().apply(g.apply({"w": tensor}))["w"]
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_aliases_stay_tied() -> None:
    space, g = WeightSpace.parse(PACKED), WeightSpace.parse(PACKED).random(0)
    tensors = random_tensors(space)
    moved = g.apply(tensors)
    assert moved["tied"] is moved["out_proj"]
    tensors["tied"] = tensors["out_proj"] + 1
    with pytest.raises(SpaceMismatch, match="'tied' is tied to 'out_proj'"):
        g.apply(tensors)
    untied = g.apply(tensors, untie=True)
    assert torch.equal(untied["tied"], untied["out_proj"] + 1)
    del tensors["out_proj"]
    assert torch.equal(g.apply(tensors)["tied"], untied["tied"])


def test_strictness() -> None:
    space, g = WeightSpace.parse(PACKED), WeightSpace.parse(PACKED).random(0)
    tensors = random_tensors(space)
    with_steps = {**tensors, "steps": torch.tensor(3), "mask": torch.ones(2, dtype=torch.bool)}
    assert torch.equal(g.apply(with_steps)["steps"], torch.tensor(3))
    assert passed_through(space, with_steps) == ("steps", "mask")
    with pytest.raises(SpaceMismatch, match="'extra' is not in the space"):
        g.apply({**tensors, "extra": torch.ones(2)})
    with pytest.raises(SpaceMismatch, match="'in_proj' of the space is missing"):
        g.apply({"out_proj": tensors["out_proj"]})
    with pytest.raises(SpaceMismatch, match=r"in_proj: shape \(2,\)"):
        g.apply({**tensors, "in_proj": torch.ones(2)})


def test_bad_tables_and_values() -> None:
    space = WeightSpace.parse("space v1\ngroup g = signed(3)\ngroup s = S(2)\nw: g s")
    with pytest.raises(SymmetryError, match="not one permutation"):
        GroupElement(space, {"g": np.array([0, 0, 1])})
    with pytest.raises(SymmetryError, match="must be all ±1"):
        GroupElement(space, values={"g": np.array([1.0, 2.0, 1.0])})
    with pytest.raises(SymmetryError, match="takes no values"):
        GroupElement(space, values={"s": np.ones(2)})
    with pytest.raises(SymmetryError, match="no group 'x'"):
        GroupElement(space, {"x": np.arange(2)})
    with pytest.raises(SymmetryError, match="kind 'GL' is not defined"):
        WeightSpace.parse("space v1\ngroup g = GL(3)\nw: g").random()
    with pytest.raises(SpaceMismatch, match="different spaces"):
        space.random(0) @ WeightSpace.parse(PACKED).random(0)
