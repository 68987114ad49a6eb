"""NGTLayer: by hand, and blind to what a neuron does not touch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.nn import NGTLayer, latent
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import WeightSpace

SMALL = WeightSpace.parse("space v1\ngroup a = S(3)\ngroup b = S(2)\nw: b a\nv: a")


def test_by_hand() -> None:
    """What neuron 1 of ``a`` collects, entry by entry."""
    home = latent(SMALL)
    layer = randomised(NGTLayer(home, 2, heads=2))
    batch = random_batch(home, 2)
    sets = {nodes.state.block: nodes for nodes in layer.nodes}
    messages = {}
    for name, weight, bias in zip(layer.edges, layer.edge_in, layer.edge_bias, strict=True):
        total = batch.blocks[name] @ weight + bias
        for state, nodes in sets.items():
            mixed = F.layer_norm(batch.blocks[state], (2,)) @ nodes.give
            for i, piece in enumerate(nodes.incoming):
                part = mixed[..., 2 * i:2 * i + 2]
                if piece.block == name:
                    if state == "@":
                        part = part.reshape(2, *(1,) * (total.ndim - 2), 2)
                    elif name == "w":
                        part = part[:, :, None] if state == "@b" else part[:, None]
                    total = total + part
        messages[name] = total
    nodes = sets["@a"]
    state = batch.blocks["@a"][:, 1]
    got = torch.zeros(2, 2, dtype=torch.float64)
    for head in range(2):
        scores, values = [], []
        for i, piece in enumerate(nodes.incoming):
            query = F.layer_norm(state, (2,)) @ nodes.query[i][:, 2 * head:2 * head + 2]
            seen = messages["w"][:, :, 1] if piece.block == "w" else messages["v"][:, 1:2]
            scores.append((seen * query[:, None]).sum(-1) / 2 ** 0.5)
            values.append(seen @ nodes.value[i][head])
        share = torch.cat(scores, 1).softmax(1)
        got = got + (share[..., None] * torch.cat(values, 1)).sum(1)
    state = state + got @ nodes.update
    want = state + F.gelu(F.layer_norm(state, (2,)) @ nodes.widen) @ nodes.narrow
    torch.testing.assert_close(layer(batch).blocks["@a"][:, 1], want, rtol=0, atol=1e-10)


def test_respects_adjacency() -> None:
    """A weight reaches the neurons at its ends and the global state, not the others."""
    home = latent(WeightSpace.parse("space v1\ngroup a = S(3)\ngroup b = S(2)\ngroup d = S(4)\n"
                                    "w1: b a\nw2: d b"))
    layer = randomised(NGTLayer(home, 2, heads=1))
    batch = random_batch(home, 2)
    value = batch.blocks["w1"].clone()
    value[:, 0, 1] += 1
    moved = layer(batch.with_blocks({**batch.blocks, "w1": value}))
    plain = layer(batch)
    changed = {k: (moved.blocks[k] != v).any(-1)[0].nonzero().tolist()
               for k, v in plain.blocks.items()}
    assert changed["@a"] == [[1]] and changed["@b"] == [[0]] and changed["@d"] == []
    assert changed["w1"] == [[0, 1]] and changed["w2"] == [] and changed["@"] == [[]]


@pytest.mark.parametrize("space", ["mlp", "attention", "scalars"])
def test_starts_as_the_identity(space: str) -> None:
    home = latent(SPACES[space])
    batch = random_batch(home, 4)
    for name, value in NGTLayer(home, 4).double()(batch).blocks.items():
        assert torch.equal(value, batch.blocks[name])


def test_refuses_a_space_without_states() -> None:
    with pytest.raises(SymmetryError, match="latent"):
        NGTLayer(SPACES["mlp"], 4)
