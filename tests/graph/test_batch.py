"""WeightBatch: bit-exact there and back, the group's action, channels, refusals."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES, random_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metanet.errors import SpaceMismatch
from metanet.graph import WeightBatch
from metanet.symmetry import WeightSpace
from metanet.testing import random_space, random_tensors

TWO = WeightSpace.parse("space v1\ngroup a = S(3)\nw: a 2!\nb: a\nalias = b")


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Names in order, dtypes, and every bit."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape
        and a[k].contiguous().view(torch.uint8).equal(b[k].contiguous().view(torch.uint8))
        if a[k].ndim else a[k].item() == b[k].item() and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16,
                                   torch.float8_e4m3fn])
def test_there_and_back(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name]
    states = [random_state(space, seed, dtype) for seed in range(3)]
    batch = WeightBatch.stack(space, states)
    assert batch.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [b.name for t in space.tensors for b in space.blocks(t)] == list(batch.blocks)
    for state, back in zip(states, batch.unstack(), strict=True):
        assert same_bits(state, back)


@settings(max_examples=500)
@given(st.integers(0, 2**32 - 1))
def test_random_spaces_there_and_back(seed: int) -> None:
    space = random_space(seed, kinds=("S", "signed"))
    states = [random_tensors(space, seed % 1000 + i, torch.float32) for i in range(2)]
    batch = WeightBatch.stack(space, states)
    for state, back in zip(states, batch.unstack(), strict=True):
        assert same_bits(state, back)


@given(st.sampled_from(sorted(SPACES)), st.integers(0, 1000))
def test_action_commutes_with_stacking(name: str, seed: int) -> None:
    space = SPACES[name]
    states = [random_state(space, seed + i, torch.float64) for i in range(2)]
    element = space.random(seed)
    moved = WeightBatch.stack(space, states).apply(element)
    want = WeightBatch.stack(space, [element.apply(state) for state in states])
    assert all(torch.equal(moved.blocks[k], want.blocks[k]) for k in want.blocks)
    assert all(same_bits(element.apply(a), b)
               for a, b in zip(states, moved.unstack(), strict=True))


def test_action_of_an_equal_space_with_other_labels() -> None:
    other = WeightSpace.parse("space v1\ngroup zz = S(3)\nw: zz 2!\nb: zz\nalias = b")
    state = random_state(TWO)
    element = other.random(1)
    got = WeightBatch.stack(TWO, [state]).apply(element).unstack()[0]
    assert same_bits(got, element.apply(state))


def test_mixed_dtypes_order_and_extras() -> None:
    state = {"steps": torch.tensor(7), "b": torch.randn(3, dtype=torch.float64),
             "w": torch.randn(3, 2, dtype=torch.bfloat16)}
    state["alias"] = state["b"]
    batch = WeightBatch.stack(TWO, [state], names=["one"])
    assert batch.dtype == torch.float64 and batch.names == ("one",)
    back = batch.unstack()[0]
    assert same_bits(state, back)
    assert back["alias"] is back["b"]


def test_channels() -> None:
    weight, grad = random_state(TWO, 0), random_state(TWO, 1)
    partial = {"b": grad["b"]}
    batch = WeightBatch.stack(TWO, [(weight, partial), (grad, weight)])
    assert batch.channels == 2 and batch.blocks["w"].shape == (2, 3, 2, 2)
    assert not batch.blocks["w"][0, ..., 1].any()
    (first, second), (third, fourth) = batch.unstack()
    assert same_bits(first, weight) and same_bits(second, partial)
    assert same_bits(third, grad) and same_bits(fourth, weight)


def test_modules_and_checkpoints_stack() -> None:
    space = WeightSpace.parse("space v1\nweight: 2! 3!\nbias: 2!")
    module = nn.Linear(3, 2)
    assert same_bits(WeightBatch.stack(space, [module]).unstack()[0], module.state_dict())


def test_selection_map_cat_to() -> None:
    states = [random_state(TWO, seed) for seed in range(4)]
    batch = WeightBatch.stack(TWO, states, names="abcd")
    part = batch[[2, 0]]
    assert part.names == ("c", "a") and same_bits(part.unstack()[0], states[2])
    assert batch[1:].names == ("b", "c", "d") and batch[torch.tensor(3)].names == ("d",)
    joined = WeightBatch.cat([part, batch[1:2]])
    assert joined.names == ("c", "a", "b") and same_bits(joined.unstack()[2], states[1])
    double = batch.map(lambda x, y: x + y, batch)
    assert torch.equal(double.blocks["w"], 2 * batch.blocks["w"])
    wide = batch.map(lambda x: x.repeat_interleave(2, -1))
    assert len(wide.unstack()[0]) == 2 and same_bits(wide.unstack()[1][1], states[1])
    assert batch.to(torch.float64).dtype == torch.float64


def test_gradients_flow() -> None:
    state = {k: v.requires_grad_() for k, v in random_state(TWO).items() if k != "alias"}
    batch = WeightBatch.stack(TWO, [state])
    sum(block.sum() for block in batch.blocks.values()).backward()
    assert torch.equal(state["w"].grad, torch.ones(3, 2))


@pytest.mark.parametrize(("change", "words"), [
    ({"extra": torch.zeros(2)}, "not in the space"),
    ({"w": torch.zeros(2, 3)}, "shape"),
    ({"alias": torch.ones(3)}, "tied"),
    ({"w": torch.zeros(3, 2, dtype=torch.complex64)}, "real numbers"),
    ({"w": torch.full((3, 2), 2**60 + 1)}, "do not fit"),
])
def test_refusals(change: dict[str, Tensor], words: str) -> None:
    with pytest.raises(SpaceMismatch, match=words):
        WeightBatch.stack(TWO, [{**random_state(TWO), **change}])


def test_refusals_of_the_batch() -> None:
    state = random_state(TWO)
    with pytest.raises(SpaceMismatch, match="missing"):
        WeightBatch.stack(TWO, [{"b": state["b"]}])
    with pytest.raises(SpaceMismatch, match="at least one"):
        WeightBatch.stack(TWO, [])
    with pytest.raises(SpaceMismatch, match="names"):
        WeightBatch.stack(TWO, [state], names=["a", "b"])
    with pytest.raises(SpaceMismatch, match="channels"):
        WeightBatch.stack(TWO, [state, (state, state)])
    batch = WeightBatch.stack(TWO, [state])
    with pytest.raises(SpaceMismatch, match="another space"):
        batch.apply(SPACES["mlp"].identity())
    with pytest.raises(SpaceMismatch, match="no block"):
        WeightBatch(TWO, {**batch.blocks, "z": batch.blocks["w"]})
    with pytest.raises(SpaceMismatch, match=r"\[N, \*factors, c\]"):
        WeightBatch(TWO, {**batch.blocks, "w": batch.blocks["alias"]})
