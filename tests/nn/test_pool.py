"""Attention pooling by hand, and pooling layer by layer."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.nn import AttentionPool, InvariantPool
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import Meta, TensorMeta, WeightSpace


def test_attention_by_hand() -> None:
    space = WeightSpace.parse("space v1\ngroup a = S(3)\nw: a 2!")
    layer = randomised(AttentionPool(space, 2, heads=2))
    batch = random_batch(space, 2)
    x = batch.blocks["w"].reshape(2, 3, 4)
    want = []
    for head in range(2):
        share = (x @ layer.queries[0][:, head]).softmax(1)
        value = x @ layer.values[0][:, 2 * head:2 * head + 2]
        want.append((share[..., None] * value).sum(1))
    torch.testing.assert_close(layer(batch), torch.cat(want, -1))
    assert layer.c_out == 4
    plain = AttentionPool(space, 2, heads=1).double()  # a mean at first
    torch.testing.assert_close(plain(batch), x.mean(1) @ plain.values[0])
    with pytest.raises(SymmetryError, match="no such block"):
        AttentionPool(space, 2, blocks=["v"])


def test_layer_by_layer() -> None:
    plain = WeightSpace.parse("space v1\ngroup a = S(3)\nw: a 2!\nb: a\nv: 4! a")
    meta = Meta({"w": TensorMeta(depth=1), "b": TensorMeta("bias", depth=1),
                 "v": TensorMeta(depth=2)})
    space = WeightSpace(plain.normal_groups, plain.tensors, meta=meta)
    batch = random_batch(space, 1)
    w, b, v = (batch.blocks[k][..., 0] for k in "wbv")
    mean = InvariantPool(space, 1, ("mean",), per="layer")
    want = torch.stack([(w.mean((1, 2)) + b.mean(1)) / 2, v.mean((1, 2))], -1)
    assert sorted(mean(batch)[0].tolist()) == pytest.approx(sorted(want[0].tolist()))
    total = InvariantPool(space, 1, ("sum",), blocks=["b"])
    torch.testing.assert_close(total(batch), b.sum(1, keepdim=True))
    with pytest.raises(SymmetryError, match="layer"):
        InvariantPool(SPACES["mlp"], 1, per="depth")
