"""Encoding: the contract of every feature, and values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import ENCODINGS, Encoding, assert_equivariant
from metanet.nn.checks import random_batch
from metanet.nn.encoding import ValueFeature, fan_in
from metanet.symmetry import GroupMeta, Meta, TensorMeta, WeightSpace


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_contract(name: str, space: str) -> None:
    # Beside the number itself, since places and ranks have no gradient.
    assert assert_equivariant(Encoding(SPACES[space], 2, ("raw", name))) <= 1e-12
    layer = Encoding(SPACES[space], 2, (name,))
    batch = random_batch(SPACES[space], 2)
    out = layer(batch)
    again = Encoding(SPACES[space], 2, (name,))(batch)
    for key, value in out.blocks.items():
        assert value.shape == (*batch.blocks[key].shape[:-1], layer.c_out)
        assert torch.isfinite(value).all() and torch.equal(value, again.blocks[key])
        assert value.dtype == batch.dtype
        if not isinstance(ENCODINGS[name], ValueFeature):  # of the place alone
            assert torch.equal(value[0], value[1])


def space_with_meta() -> WeightSpace:
    plain = WeightSpace.parse("space v1\ngroup a = S(2)\nconv: a 3! 2!\nfc: 4! a")
    meta = Meta({"conv": TensorMeta(depth=1), "fc": TensorMeta("head", depth=2)},
                {"a": GroupMeta("relu", 1)})
    return WeightSpace(plain.normal_groups, plain.tensors, meta=meta)


def encoded(*names: str) -> dict[str, torch.Tensor]:
    space = space_with_meta()
    conv = torch.tensor([[-1.0, 0.0, 1.0, 2.0, -2.0, 5.0], [1e-3, -1e-3, 3.0, 3.0, 3.0, 0.0]])
    batch = WeightBatch(space, {"conv": conv.reshape(1, 2, 3, 2, 1), "fc": torch.zeros(1, 4, 2, 1)})
    return Encoding(space, 1, names)(batch).blocks


def test_values() -> None:
    conv = encoded("raw", "signlog", "fan_in", "quantile", "standard")["conv"][0]
    assert conv[0, 0, 0].tolist()[:2] == [-1.0, -1.0]
    assert conv[0, 1, 0, :3].tolist() == pytest.approx([1.0, 1.0, 6 ** 0.5])
    # 3.0 stands three times above eight others and below 5.0.
    assert conv[1, 1, 0, 3] == pytest.approx((8 + 11) / 12 - 1)
    assert conv[0, 2, 1, 3] == pytest.approx((11 + 12) / 12 - 1)
    assert conv[..., 4].mean().abs() < 1e-6
    assert conv[..., 4].std(correction=0) == pytest.approx(1)
    fourier = encoded("fourier")["conv"][0, 0, 2, 1]  # x = 5
    want = [*(torch.tensor(5 * torch.pi / 2 * 2 ** i).sin() for i in range(4)),
            *(torch.tensor(5 * torch.pi / 2 * 2 ** i).cos() for i in range(4))]
    torch.testing.assert_close(fourier, torch.stack(want), atol=1e-5, rtol=0)
    assert fan_in(space_with_meta(), "fc") == 2 and fan_in(SPACES["mlp"], "fc1.bias") == 1


def test_places() -> None:
    out = encoded("depth", "role", "activation", "neuron", "tap", "position")
    conv, fc = out["conv"][0], out["fc"][0]
    assert conv[0, 0, 0, :3].tolist() == [0.5, 0.0, 1.0]
    assert fc[0, 0, :3].tolist() == [1.0, 1.0, 0.0]
    relu = 3
    assert conv[0, 0, 0, relu] == 1 and conv[0, 0, 0, 3:35].sum() == 1  # feeds relu neurons
    assert fc[0, 0, relu + 16] == 1 and fc[0, 0, 3:35].sum() == 1       # is fed by them
    neurons = slice(35, 35 + 18)
    assert conv[0, 0, 0, 35] == 0 and conv[0, 0, 0, 44] == 1            # fixed inputs
    assert fc[0, 0, 35] == 1 and fc[0, 0, 44] == 0                      # fixed outputs
    assert len(conv[0, :, 0, neurons].unique(dim=0)) == 3
    assert len(conv[0, 0, :, neurons].unique(dim=0)) == 1
    taps = slice(53, 53 + 24)
    assert len(conv[0, 0, :, taps].unique(dim=0)) == 2 and not fc[..., taps].any()
    assert len(conv[0, :, :, 77:].flatten(0, 1).unique(dim=0)) == 6
    assert torch.equal(conv[0], conv[1])  # free neurons are alike


def test_quantile_has_no_gradient_and_fan_in_has() -> None:
    space = SPACES["mlp"]
    batch = random_batch(space, 1).map(lambda b: b.requires_grad_())
    total = sum(b.sum() for b in Encoding(space, 1, ("quantile", "fan_in"))(batch).blocks.values())
    total.backward()
    assert float(batch.blocks["fc2.weight"].grad.mean()) == pytest.approx(2)


def test_refusals() -> None:
    with pytest.raises(SymmetryError, match="'log'"):
        Encoding(SPACES["mlp"], 1, ("log",))
    with pytest.raises(SymmetryError, match="empty"):
        Encoding(SPACES["mlp"], 1, ())
