"""ProductWalk: its numbers by loops, the order in which neurons are visited, what it refuses."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.models import Editor
from metanet.nn import ProductWalk
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import WeightSpace

CHAIN = WeightSpace.parse("space v1\ngroup a = S(4)\ngroup b = S(5)\nw1: a 3!\nb1: a\nw2: b a\n"
                          "w3: b")


def by_loops(walk: ProductWalk, batch: WeightBatch) -> dict[str, Tensor]:
    """The first round on CHAIN, a neuron and an edge at a time."""
    w1, b1, w2, w3 = (batch.blocks[k] for k in ("w1", "b1", "w2", "w3"))
    nets = {visit.label: visit.net for visit in walk.visits}
    n = len(w1)
    first = w1.reshape(n, 4, -1)  # the three inputs are folded
    blocks = {"w1": first, "b1": b1, "w2": w2, "w3": w3}
    means = {label: [one for one in batch.blocks if one in wanted] for label, wanted in
             {"a": ("b1", "w1", "w2"), "b": ("w2", "w3"), "": ("b1", "w1", "w2", "w3")}.items()}
    a, b = (torch.zeros(n, size, 3, dtype=torch.float64) for size in (4, 5))
    for k in range(n):
        for i in range(4):
            seen = {"w1": first[k, i], "b1": b1[k, i], "w2": w2[k, :, i].mean(0)}
            a[k, i] = nets["a"](torch.cat([seen[name] for name in means["a"]]))
        for j in range(5):
            seen = {"w2": w2[k, j].mean(0), "w3": w3[k, j]}
            total = sum(torch.outer(w2[k, j, i], a[k, i]).flatten() for i in range(4)) / 2
            b[k, j] = nets["b"](torch.cat([*(seen[name] for name in means["b"]), total]))
    products = {"b1": [("b1", a)], "w1": [("w1", a)], "w2": [("w2", b), ("w2", a)],
                "w3": [("w3", b)]}
    whole = []
    for k in range(n):
        found = [blocks[name][k].reshape(-1, blocks[name].shape[-1]).mean(0)
                 for name in means[""]]
        for name in means[""]:
            for _, h in products[name]:
                size = h.shape[1]
                edge = blocks[name][k]
                if name == "w2":
                    edge = edge.mean(1 if size == 5 else 0)
                found.append(sum(torch.outer(edge[i], h[k, i]).flatten() for i in range(size))
                             / size ** 0.5)
        whole.append(nets[""](torch.cat(found)))
    return {"@a": a, "@b": b, "@": torch.stack(whole)}


def test_numbers_by_loops() -> None:
    walk = randomised(ProductWalk(CHAIN, 2, 3))
    batch = random_batch(CHAIN, 2)
    found = walk(batch)
    want = by_loops(walk, batch)
    for name, value in want.items():
        torch.testing.assert_close(found.blocks[name], value, rtol=0, atol=1e-12)


def test_the_first_round_sees_what_feeds_and_later_ones_all() -> None:
    """The weights ``b ← a`` change the states of ``a`` by their mean alone in the first round."""
    batch = random_batch(CHAIN, 2)
    turned = batch.with_blocks({**batch.blocks, "w2": batch.blocks["w2"].flip(1)})
    for rounds, differs in ((1, False), (2, True)):
        walk = randomised(ProductWalk(CHAIN, 2, 3, rounds=rounds))
        change = (walk(turned).blocks["@a"] - walk(batch).blocks["@a"]).abs().max()
        assert bool(change > 1e-6) == differs, change
        assert (walk(turned).blocks["@b"] - walk(batch).blocks["@b"]).abs().max() > 1e-6


def test_wiring_is_seen_where_no_statistic_of_a_tensor_changes() -> None:
    """Two rows of ``w2`` exchange one entry each in two columns: all means stay the same."""
    batch = random_batch(CHAIN, 1)
    w2 = batch.blocks["w2"].clone()
    w2[:, 0, 0] += 1
    w2[:, 0, 1] -= 1
    w2[:, 1, 0] -= 1
    w2[:, 1, 1] += 1
    walk = randomised(ProductWalk(CHAIN, 1, 4))
    other = batch.with_blocks({**batch.blocks, "w2": w2})
    torch.testing.assert_close(w2.mean(1), batch.blocks["w2"].mean(1))
    assert (walk(other).blocks["@"] - walk(batch).blocks["@"]).abs().max() > 1e-4


def test_wide_edges_are_brought_to_the_rank() -> None:
    walk = ProductWalk(SPACES["conv"], 2, 4, rank=3)
    assert {p.shape[1] for p in walk.narrow.values()} == {3}
    blocks = list(walk.basis.grids)
    assert {blocks[int(i)] for i in walk.narrow} == {
        name for name, grid in walk.basis.grids.items() if grid.width * 2 > 3}


@pytest.mark.parametrize("name", ["c_in", "c", "rounds", "rank"])
def test_refuses_numbers_below_one(name: str) -> None:
    sizes = {"c_in": 1, "c": 2, "rounds": 1, "rank": 1, name: 0}
    with pytest.raises(SymmetryError, match=f"{name}=0"):
        ProductWalk(CHAIN, **sizes)


def test_dropout_is_for_training_alone() -> None:
    walk, batch = randomised(ProductWalk(CHAIN, 2, 8, dropout=0.5)), random_batch(CHAIN, 2)
    walk.train()
    assert not torch.equal(walk(batch).blocks["@"], walk(batch).blocks["@"])
    walk.eval()
    assert torch.equal(walk(batch).blocks["@"], walk(batch).blocks["@"])
    with pytest.raises(SymmetryError, match="dropout"):
        ProductWalk(CHAIN, 1, 2, dropout=1.0)


def test_states_cannot_edit() -> None:
    with pytest.raises(SymmetryError, match="edit"):
        Editor(SPACES["mlp"], kind="product")
