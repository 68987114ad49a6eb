"""Orbit, Noise and ChannelDropout: identities at evaluation, what they say in training."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import ChannelDropout, Noise, Orbit
from metanet.nn.checks import random_batch, random_permutations
from metanet.nn.pool import InvariantPool


@pytest.mark.parametrize("space", ["mlp", "attention", "nested", "streams"])
def test_orbit_keeps_invariants_and_moves_members_apart(space: str) -> None:
    one = random_batch(SPACES[space], 1, n=1)
    batch = WeightBatch.cat([one] * 6)
    layer = Orbit(SPACES[space], 1).train()
    moved = layer(batch)
    pool = InvariantPool(SPACES[space], 1, ("mean", "std", "max", "min"))
    torch.testing.assert_close(pool(moved), pool(batch), rtol=0, atol=1e-12)
    widest = max(moved.blocks.values(), key=torch.Tensor.numel)
    assert len(widest.flatten(1).unique(dim=0)) > 1
    shared = Orbit(SPACES[space], 1, share=3).train()(batch)
    for value in shared.blocks.values():
        assert torch.equal(value[0], value[2]) and torch.equal(value[3], value[5])
    assert layer.eval()(batch) is batch


def test_orbit_scales_and_signs() -> None:
    space = SPACES["signed"]
    batch = random_batch(space, 1)
    moved = Orbit(space, 1, permute=False).train()(batch)
    w1, b1 = (moved.blocks[k] / batch.blocks[k] for k in ("w1", "b1"))
    torch.testing.assert_close(w1.abs(), torch.ones_like(w1))
    torch.testing.assert_close(w1[:, :, 0], b1)                       # one sign per neuron
    w2, w3 = (moved.blocks[k] / batch.blocks[k] for k in ("w2", "w3"))
    product = w2[:, :, 0] * w3.reshape(2, 3, 1)                        # scale times its inverse
    torch.testing.assert_close(product.abs(), torch.ones_like(product))
    still = Orbit(space, 1, permute=False, scale=0.0).train()(batch)
    assert all(torch.equal(still.blocks[k], v) for k, v in batch.blocks.items())


def test_orbit_follows_the_global_seed() -> None:
    batch = random_batch(SPACES["mlp"], 1)
    layer = Orbit(SPACES["mlp"], 1).train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(layer(batch).blocks["fc2.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_noise_has_the_size_of_the_block() -> None:
    space = SPACES["large_fixed"]
    batch = random_batch(space, 2, n=4).map(lambda b: b * 100)
    noisy = Noise(space, 2, size=0.1).train()(batch)
    change = (noisy.blocks["w"] - batch.blocks["w"]).std()
    assert 0.08 < float(change / batch.blocks["w"].std()) < 0.12
    dropped = Noise(space, 2, size=0.0, drop=0.5).train()(batch).blocks["w"]
    gone = (dropped == 0).double().mean()
    assert 0.4 < float(gone) < 0.6 and torch.equal(dropped[..., 0] == 0, dropped[..., 1] == 0)
    assert Noise(space, 2).eval()(batch) is batch


def test_channel_dropout_is_equivariant_in_training() -> None:
    space = SPACES["attention"]
    layer = ChannelDropout(space, 8, p=0.5).train()
    batch = random_batch(space, 8)
    element = random_permutations(space)
    torch.manual_seed(3)
    plain = layer(batch)
    torch.manual_seed(3)
    moved = layer(batch.apply(element))
    for name, value in plain.apply(element).blocks.items():
        assert torch.equal(value, moved.blocks[name])
    zero = plain.blocks["embed"].abs().sum((1, 2)) == 0
    assert zero.any() and not zero.all()
    assert layer.eval()(batch) is batch


def test_refusals() -> None:
    with pytest.raises(SymmetryError, match="share"):
        Orbit(SPACES["mlp"], 1, share=0)
    with pytest.raises(SymmetryError, match="size"):
        Noise(SPACES["mlp"], 1, size=-1.0)
    with pytest.raises(SymmetryError, match="p=1"):
        ChannelDropout(SPACES["mlp"], 1, p=1.0)
