"""select and widen: shapes, values, and preserved functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.symmetry import WeightSpace
from metanet.testing import random_tensors

MLP = """space v1
group a = S(5)
group b = S(4)
l1.bias: a
l1.weight: a 3!
l2.bias: b
l2.weight: b a
l3.bias: 2!
l3.weight: 2! b
"""
HEADS = """space v1
group h = S(2)
group v = S(3) / h
o.weight: 4! (h v/h)
v.weight: (h v/h) 4!
"""


def mlp(p: dict[str, Tensor], x: Tensor) -> Tensor:
    for layer in ("l1", "l2"):
        x = torch.relu(x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"])
    return x @ p["l3.weight"].T + p["l3.bias"]


def test_widen_preserves_the_function() -> None:
    space = WeightSpace.parse(MLP)
    tensors, x = random_tensors(space), torch.randn(7, 3, dtype=torch.float64)
    wide = space.widen("a", [0, 1, 2, 3, 4, 4, 0, 0])
    moved = wide.apply(tensors)
    assert wide.space.group("a").size == 8
    assert {n: tuple(t.shape) for n, t in moved.items()} == {
        n: spec.shape for n, spec in wide.space.tensors.items()
    }
    torch.testing.assert_close(mlp(moved, x), mlp(tensors, x), rtol=1e-12, atol=1e-12)
    wide.space.random(0).apply(moved)


def test_select_drops_dead_neurons_exactly() -> None:
    space = WeightSpace.parse(MLP)
    tensors, x = random_tensors(space), torch.randn(7, 3, dtype=torch.float64)
    tensors["l2.weight"][:, [1, 3]] = 0
    small = space.select("a", [4, 0, 2])
    moved = small.apply(tensors)
    assert moved["l1.weight"].shape == (3, 3)
    torch.testing.assert_close(mlp(moved, x), mlp(tensors, x), rtol=1e-12, atol=1e-12)
    kept = space.select("a", [4, 0, 1]).apply(tensors)
    assert not torch.allclose(mlp(kept, x), mlp(tensors, x))


def test_select_undoes_widen() -> None:
    space = WeightSpace.parse(MLP)
    tensors = random_tensors(space)
    wide = space.widen("b", [0, 1, 2, 3, 3])
    back = wide.space.select("b", [0, 1, 2, 4]).apply(wide.apply(tensors))
    assert torch.equal(back["l2.weight"], tensors["l2.weight"])
    assert torch.equal(back["l3.weight"][:, 3] * 2, tensors["l3.weight"][:, 3])


def test_fibres_per_copy_and_bases() -> None:
    space = WeightSpace.parse(HEADS)
    tensors = random_tensors(space)
    small = space.select("v", [[0, 1], [2, 0]])
    moved = small.apply(tensors)["v.weight"].reshape(2, 2, 4)
    full = tensors["v.weight"].reshape(2, 3, 4)
    assert torch.equal(moved, torch.stack([full[0, [0, 1]], full[1, [2, 0]]]))
    one_head = space.select("h", [1])
    assert one_head.space == WeightSpace.parse(
        "space v1\ngroup v = S(3)\no.weight: 4! v\nv.weight: v 4!"
    )
    assert torch.equal(one_head.apply(tensors)["v.weight"], full[1])
    wide = space.widen("v", np.array([[0, 1, 2, 0], [0, 1, 2, 2]]))
    before = tensors["o.weight"] @ tensors["v.weight"]
    after = wide.apply(tensors)
    torch.testing.assert_close(after["o.weight"] @ after["v.weight"], before)


@pytest.mark.parametrize(
    ("index", "message"),
    [([0, 0], "stands twice"), ([7], "leaves 0"), ([], "at least one"), ([0.5], "at least one")],
)
def test_bad_selections(index: list, message: str) -> None:
    with pytest.raises(SymmetryError, match=message):
        WeightSpace.parse(MLP).select("a", index)


def test_bad_widenings() -> None:
    with pytest.raises(SymmetryError, match="neuron 3 has no copy"):
        WeightSpace.parse(MLP).widen("b", [0, 1, 2, 2])
    with pytest.raises(SymmetryError, match="has shape"):
        WeightSpace.parse(HEADS).widen("v", [[0, 1, 2]])
