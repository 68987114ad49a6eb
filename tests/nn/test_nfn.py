"""NPLinear and HNPLinear: published counts, and what they are equivariant to."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.nn import DWSLinear, HNPLinear, NPLinear, free_ends
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import WeightSpace


def chain(layers: int) -> WeightSpace:
    """A feed-forward net as modules name it, fixed at both ends."""
    axes = ["9!", *(f"g{i}" for i in range(1, layers)), "7!"]
    text = [f"group g{i} = S(8)" for i in range(1, layers)]
    for i in range(layers):
        text += [f"fc{i}.weight: {axes[i + 1]} {axes[i]}", f"fc{i}.bias: {axes[i + 1]}"]
    return WeightSpace.parse("\n".join(["space v1", *text]))


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_published_number_of_terms(layers: int) -> None:
    assert NPLinear(chain(layers), 1, 1).n_terms == 4 * layers ** 2 + 10 * layers - 4


def test_hnp_is_the_complete_hidden_basis() -> None:
    space = chain(3)
    sizes = [sum(w.numel() for w in make(space, 1, 1).weights) for make in (HNPLinear, DWSLinear)]
    assert sizes[0] == sizes[1] and HNPLinear(space, 1, 1).complete
    assert not NPLinear(space, 1, 1).complete


def test_np_commutes_with_permuted_ends() -> None:
    space = chain(3)
    layer, batch = randomised(NPLinear(space, 2, 3)), random_batch(space, 2)
    element = layer.inner.random(seed=1)
    inner = randomised(NPLinear(space, 2, 3))
    moved = random_batch(layer.inner, 2).apply(element)
    out = layer(batch.with_blocks(moved.blocks))
    want = random_batch(layer.inner, 2).with_blocks(inner(batch).blocks).apply(element)
    for name, value in want.blocks.items():
        torch.testing.assert_close(out.blocks[name], value, rtol=0, atol=1e-12)


def test_ends_are_freed_where_they_are_plain() -> None:
    inner = free_ends(SPACES["mlp"])
    assert [g.size for g in inner.groups] == [4, 3, 5, 2]
    assert str(inner).count("end1") == 3  # the group, and rows of fc3.weight and fc3.bias
    conv = free_ends(SPACES["conv"])
    shapes = {b.name: b.shape for n in conv.tensors for b in conv.blocks(n)}
    assert shapes["conv1.weight"] == (4, 2, 3, 3)
    assert sum(g.kind == "S" for g in conv.groups) == 4
