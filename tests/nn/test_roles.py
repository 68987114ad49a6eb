"""UNFLinear(mixing="role"): weights shared by structural position, for nets of repeated blocks."""

from __future__ import annotations

import pytest
import torch
from deep_spaces import gpt2
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.nn import UNFLinear, assert_equivariant
from metanet.nn.checks import random_batch, randomised
from metanet.nn.roles import split_name
from metanet.symmetry import WeightSpace

SMALL = {"width": 4, "heads": 2, "vocab": 3, "positions": 2}


def exchanged(batch: WeightBatch) -> WeightBatch:
    """The contents of blocks ``h.0`` and ``h.1`` exchanged."""
    swap = {"h.0.": "h.1.", "h.1.": "h.0."}
    return batch.with_blocks({
        name: batch.blocks[swap.get(name[:4], name[:4]) + name[4:]] for name in batch.blocks})


def without_positions(layer: UNFLinear) -> UNFLinear:
    for parameter in (layer.bias, *layer.positional.values()):
        assert parameter is not None
        torch.nn.init.zeros_(parameter)
    return layer


def test_names() -> None:
    assert split_name("h.3.mlp.c_fc.weight#0.1") == ("h.*.mlp.c_fc.weight#0.1", "h.3")
    assert split_name("layer1.0.conv2.weight") == ("layer1.*.conv2.weight", "layer1.0")
    assert split_name("fc1.bias") == ("fc1.bias", "")
    assert split_name("layers.2.experts.11.w") == ("layers.*.experts.*.w", "layers.2.experts.11")


def test_equal_blocks_are_treated_alike() -> None:
    """Biases aside, the layer commutes with exchanging blocks, and sees which numbers share one."""
    space = gpt2(2, **SMALL)
    layer = without_positions(randomised(UNFLinear(space, 2, 3, mixing="role")))
    batch = random_batch(space, 2)
    out, moved = layer(batch), layer(exchanged(batch))
    for name, value in exchanged(out).blocks.items():
        torch.testing.assert_close(moved.blocks[name], value, rtol=0, atol=1e-12)
    half = {**batch.blocks, **{n: v for n, v in exchanged(batch).blocks.items() if "mlp" in n}}
    other = layer(batch.with_blocks(half)).blocks["h.0.ln_1.weight"]
    assert not torch.allclose(other, out.blocks["h.0.ln_1.weight"])
    exact = randomised(UNFLinear(space, 2, 3))
    a, b = exchanged(exact(batch)), exact(exchanged(batch))
    assert not torch.allclose(a.blocks["h.0.ln_1.weight"], b.blocks["h.0.ln_1.weight"])


def test_labels_spelling_does_not_matter() -> None:
    """Roles come from places, so that a group named out of order shares weights all the same."""
    text = str(gpt2(3, **SMALL))
    other = WeightSpace.parse(text.replace("f1", "zz").replace("q2", "aa"))
    sizes = [[tuple(w.shape) for w in UNFLinear(s, 1, 1, mixing="role").weights]
             for s in (gpt2(3, **SMALL), other)]
    assert sizes[0] == sizes[1]


def test_equivariant_and_sensitive() -> None:
    layer = UNFLinear(gpt2(2, **SMALL), 2, 2, mixing="role")
    assert not layer.complete
    assert assert_equivariant(layer) <= 1e-10


def test_dense_terms_are_the_layer() -> None:
    """The effective matrix of every signature, set into an exact layer, gives the same outputs."""
    space = gpt2(2, **SMALL)
    shared = randomised(UNFLinear(space, 2, 3, mixing="role"))
    exact = UNFLinear(space, 2, 3).double()
    with torch.no_grad():
        for weight, found in zip(exact.weights, shared._matrices(), strict=True):
            weight.copy_(found.dense())
        exact.bias.copy_(shared.bias)
        for key, table in shared.positional.items():
            exact.positional[key].copy_(table)
    batch = random_batch(space, 2)
    want = exact(batch)
    for name, value in shared(batch).blocks.items():
        torch.testing.assert_close(value, want.blocks[name], rtol=0, atol=1e-12)


def n_weights(layer: UNFLinear) -> int:
    return sum(w.numel() for w in (*layer.weights, *layer.first.values()))


def test_twelve_blocks_need_no_more_weights_than_three() -> None:
    deep, flat = (gpt2(blocks, **SMALL) for blocks in (12, 3))
    sizes = {mixing: n_weights(UNFLinear(deep, 8, 8, mixing=mixing))
             for mixing in ("exact", "lowrank", "role")}
    assert sizes["role"] == n_weights(UNFLinear(flat, 8, 8, mixing="role"))
    assert sizes["role"] < sizes["lowrank"] and 25 * sizes["role"] < sizes["exact"], sizes


def test_init_keeps_the_variance() -> None:
    space = gpt2(6, **SMALL)
    layer = UNFLinear(space, 32, 32, mixing="role")
    constant = WeightBatch(space, {
        b.name: torch.randn(64, 32).reshape(64, *(1,) * len(b.shape), 32).expand(
            64, *b.shape, 32) for n in space.tensors for b in space.blocks(n)})
    assert 0.3 < float(torch.cat([v.detach().flatten() for v in layer(
        constant).blocks.values()]).var()) < 3


def test_gradients_are_right() -> None:
    space = gpt2(2, **SMALL)
    layer = randomised(UNFLinear(space, 1, 1, mixing="role"))
    batch = random_batch(space, 1, n=1)

    def f(*weights: Tensor) -> Tensor:
        state = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        out = torch.func.functional_call(layer, state, (batch,))
        return torch.stack([v.square().sum() for v in out.blocks.values()]).sum()

    weights = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradcheck(f, weights, fast_mode=True)


@pytest.mark.slow
def test_the_real_gpt2_shape() -> None:
    """124 million parameters, twelve blocks: one float32 member goes through."""
    space = gpt2()
    assert space.n_parameters == 124_439_808
    layer = UNFLinear(space, 1, 1, mixing="role")
    batch = WeightBatch(space, {b.name: torch.randn(1, *b.shape, 1)
                                for n in space.tensors for b in space.blocks(n)})
    with torch.no_grad():
        assert all(torch.isfinite(v).all() for v in layer(batch).blocks.values())
