"""ScaleGMNLayer: commutes with signs and scales, hears the others' inputs, never overflows."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import ScaleGMNLayer, latent
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import GroupElement, WeightSpace, infer

RELU = WeightSpace.parse("space v1\ngroup a = positive(4)\ngroup b = positive(3)\nw1: a 2!\nb1: a\n"
                         "w2: b a^-1\nb2: b\nw3: 2! b^-1\nrunning: a^0")
SINE = WeightSpace.parse("space v1\ngroup a = signed(4)\ngroup b = signed(3)\nw1: a 2!\nb1: a\n"
                         "w2: b a\nb2: b\nw3: 2! b\nb3: 2!")
SPACES_HERE = {"relu": RELU, "sine": SINE, "mixture": SPACES["signed"], "plain": SPACES["mlp"]}


def element_of(home: WeightSpace, space: WeightSpace, seed: int) -> GroupElement:
    """A random element, signs and scales included, carried to the latent space by label."""
    element = space.random(seed)
    return GroupElement(home, element.tables, element.values)


def close(a: WeightBatch, b: WeightBatch) -> None:
    for name, value in a.blocks.items():
        torch.testing.assert_close(value, b.blocks[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPACES_HERE)
def test_commutes_with_signs_and_scales(name: str) -> None:
    space = SPACES_HERE[name]
    home = latent(space)
    layer = torch.nn.Sequential(*(randomised(ScaleGMNLayer(home, 3, 4), seed) for seed in (1, 2)))
    batch = random_batch(home, 3)
    element = element_of(home, space, 3)
    assert name == "plain" or any((v != 1).any() for v in element.values.values())
    out = layer(batch)
    close(out.apply(element), layer(batch.apply(element)))
    assert not any(torch.equal(value, batch.blocks[k]) for k, value in out.blocks.items())


def test_uncoupled_scales_are_seen() -> None:
    """Scaling the neurons of ``a`` in one tensor only is another network."""
    home = latent(RELU)
    layer = randomised(ScaleGMNLayer(home, 3))
    batch = random_batch(home, 3)
    scale = torch.tensor([2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    broken = batch.with_blocks({**batch.blocks, "w2": batch.blocks["w2"] * scale[:, None]})
    a, b = layer(batch).blocks["@b"], layer(broken).blocks["@b"]
    assert (a - b).abs().max() > 1e-3


def test_inferred_signs_of_a_sine_network() -> None:
    from models import Siren

    space = infer(Siren(2, 5, 4, 1), (torch.randn(2, 2),))
    home = latent(space)
    layer = randomised(ScaleGMNLayer(home, 2))
    batch = random_batch(home, 2)
    element = element_of(home, space, 1)
    close(layer(batch).apply(element), layer(batch.apply(element)))


@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e4])
def test_no_overflow(size: float) -> None:
    """Zoo weights of 1e-15 and large ones, in float32, through four layers."""
    home = latent(RELU)
    batch = random_batch(home, 4).map(lambda b: b.float() * size)
    batch = batch.with_blocks({**batch.blocks, "w1": batch.blocks["w1"] * 0})
    leaf = batch.map(lambda b: b.clone().requires_grad_())
    out = leaf
    for seed in range(4):
        layer = randomised(ScaleGMNLayer(home, 4), seed).float()
        out = layer(out).map(lambda b: b / b.detach().abs().max().clamp_min(1.0))
    torch.stack([b.sum() for b in out.blocks.values()]).sum().backward()
    for name, value in out.blocks.items():
        assert torch.isfinite(value).all() and torch.isfinite(leaf.blocks[name].grad).all(), name


def test_starts_as_the_identity_and_refuses() -> None:
    home = latent(RELU)
    batch = random_batch(home, 3)
    for name, value in ScaleGMNLayer(home, 3).double()(batch).blocks.items():
        assert torch.equal(value, batch.blocks[name])
    with pytest.raises(SymmetryError, match="latent"):
        ScaleGMNLayer(RELU, 3)
