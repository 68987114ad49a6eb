"""Every layer on every hand-written space: equivariant in float64, gradients too, and sensitive."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_list import LAYERS
from torch import nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import (
    Embed,
    GMNLayer,
    InvariantPool,
    assert_equivariant,
    latent,
)
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import WeightSpace
from metanet.testing import random_space


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_equivariant(layer: str, space: str) -> None:
    made = LAYERS[layer](SPACES[space])
    assert assert_equivariant(made, seed=1) <= 1e-10
    assert type(made).__name__ in repr(made)


@given(st.integers(0, 10_000), st.sampled_from(["unf", "gmn", "gmn_latent", "unf_latent"]))
def test_equivariant_on_random_spaces(seed: int, layer: str) -> None:
    space = random_space(seed, kinds=("S", "signed"))
    assume(space.tensors)
    slots = max(len(block.digits) for name in space.tensors for block in space.blocks(name))
    assume(slots <= 4 or layer.startswith("gmn"))
    assert assert_equivariant(LAYERS[layer](space), seed=seed, coupled=False) <= 1e-10


class Broken(nn.Module):
    """Weights that differ along a permutable axis: what the check must catch."""

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.space, self.c_in = space, 1

    def forward(self, batch: WeightBatch) -> WeightBatch:
        block = batch.blocks["fc1.bias"]
        ramp = torch.arange(block.shape[1], dtype=block.dtype)[:, None]
        return batch.with_blocks({**batch.blocks, "fc1.bias": block * ramp})


class Blind(nn.Module):
    """A pool that hears nothing of the coupling, and claims to."""

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.space, self.c_in = space, 1
        self.pool = InvariantPool(space, 1)

    def forward(self, batch: WeightBatch) -> torch.Tensor:
        return self.pool(batch)


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_equivariant(Broken(SPACES["mlp"]))
    with pytest.raises(AssertionError, match="alone"):
        assert_equivariant(Blind(SPACES["mlp"]))


@pytest.mark.parametrize("space", SPACES)
def test_gmn_starts_as_the_identity_and_moves_states(space: str) -> None:
    home = latent(SPACES[space])
    layer = GMNLayer(home, 3, frozen="batch").double()
    batch = random_batch(home, 3)
    for name, value in layer(batch).blocks.items():
        assert torch.equal(value, batch.blocks[name])
    moved = randomised(layer)(batch)
    assert not any(torch.equal(moved.blocks[name], batch.blocks[name]) for name in batch.blocks)


def test_gmn_equals_its_formula() -> None:
    """One matrix ``w [b, a]`` without states, written out entry by entry."""
    space = WeightSpace.parse("space v1\ngroup a = S(3)\ngroup b = S(2)\nw: b a")
    layer = randomised(GMNLayer(space, 2, hidden=4))
    batch = random_batch(space, 2)
    e, act = batch.blocks["w"], nn.functional.gelu
    seen = e @ layer.edge_in[0] + layer.edge_bias[0]
    message = act(seen)
    after = seen.clone()
    for nodes in layer.nodes:
        label = space.normal_groups[list(layer.nodes).index(nodes)].label
        mean = message.mean(1 if label == "a" else 2)
        state = act(mean @ nodes.collect + nodes.bias) @ nodes.update @ nodes.after
        after = after + (state[:, None] if label == "a" else state[:, :, None])
    root = layer.root
    glob = act(message.mean((1, 2)) @ root.collect + root.bias) @ root.update @ root.after
    gate, change = (act(after + glob[:, None, None]) @ layer.edge_out[0]).chunk(2, -1)
    want = e + gate.sigmoid() * change
    torch.testing.assert_close(layer(batch).blocks["w"], want, rtol=0, atol=1e-12)


def test_latent_space() -> None:
    home = latent(SPACES["conv"])
    assert [b.shape for name in ("conv1.weight", "fc.weight") for b in home.blocks(name)] \
        == [(4,), (5,)]
    assert {name for name in home.tensors if name.startswith("@")} == {"@", "@a", "@b"}
    assert latent(SPACES["attention"]).blocks("@d")[0].shape == (3, 2)
    assert not any(n.startswith("@") for n in latent(SPACES["conv"], nodes=False).tensors)
    clash = WeightSpace.parse('space v1\ngroup a = S(2)\nw: a\n"@a": a')
    with pytest.raises(SymmetryError, match="rename"):
        latent(clash)


def test_embed_tells_folded_and_large_positions_apart() -> None:
    space = SPACES["large_fixed"]
    layer = randomised(Embed(space, 1, 2))
    out = layer(random_batch(space, 1).map(torch.ones_like))
    assert len(out.blocks["w"][0, 0, :, 0].detach().unique()) == 70
    assert out.blocks["stem"].shape == (2, 4, 5, 5, 2)


def test_pool_values() -> None:
    space = WeightSpace.parse("space v1\ngroup a = S(3)\nw: a 2!\nb: a")
    batch = random_batch(space, 1)
    w, b = batch.blocks["w"][..., 0], batch.blocks["b"][..., 0]
    want = torch.cat([b.mean(1, keepdim=True), b.std(1, correction=0, keepdim=True),
                      b.amax(1, keepdim=True), w.mean(1), w.std(1, correction=0), w.amax(1)], -1)
    torch.testing.assert_close(InvariantPool(space, 1)(batch), want)
    assert InvariantPool(space, 1).c_out == 9
    roles = InvariantPool(space, 1, ("mean",), per="role")
    torch.testing.assert_close(roles(batch), torch.stack([b.mean(1), w.mean((1, 2))], -1))
    with pytest.raises(SymmetryError, match="stats"):
        InvariantPool(space, 1, ("median",))


def test_layers_refuse_other_spaces_and_channels() -> None:
    batch = random_batch(SPACES["mlp"], 2)
    for name, make in LAYERS.items():
        anything = ("pointwise", "residual", "mixed", "unf_latent", "gmn_latent", "unembed")
        if name not in anything:
            with pytest.raises(SpaceMismatch):
                make(SPACES["conv"])(batch)
