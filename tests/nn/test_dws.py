"""DWSLinear: the published dimension, brute-force orbits, max reduction."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.nn import DWSLinear, UNFLinear
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import WeightSpace

SIREN = WeightSpace.parse("space v1\ngroup a = S(32)\ngroup b = S(32)\nw1: a 2!\nb1: a\n"
                          "w2: b a\nb2: b\nw3: 1! b\nb3: 1!")


def test_dimension_of_the_siren() -> None:
    assert DWSLinear(SIREN, 1, 1).dimension == DWSLinear(SIREN, 3, 2).dimension == 75
    assert "dimension 75" in repr(DWSLinear(SIREN, 1, 1))


def test_fixed_axes_are_folded_however_large() -> None:
    layer = DWSLinear(SPACES["large_fixed"], 1, 1)
    assert layer.complete and not UNFLinear(SPACES["large_fixed"], 1, 1).complete


def test_max_by_hand() -> None:
    space = WeightSpace.parse("space v1\ngroup a = S(3)\nw: a")
    layer = randomised(DWSLinear(space, 1, 1, reduce="max"))
    x = random_batch(space, 1)
    w = x.blocks["w"]
    top, own = layer.weights
    want = w.amax(1, keepdim=True) * top[0, 0] + layer.bias[0] + w * own[0, 0]
    torch.testing.assert_close(layer(x).blocks["w"], want, rtol=0, atol=1e-12)
    with pytest.raises(SymmetryError, match="reduce"):
        DWSLinear(space, 1, 1, reduce="median")
