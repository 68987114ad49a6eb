"""Every layer on every small golden space, as inferred from its module."""

from __future__ import annotations

import models
import pytest
import torch
from layer_list import LAYERS

from metanet.graph import ParameterGraph, WeightBatch
from metanet.nn import GMNLayer, UNFLinear, assert_equivariant, latent
from metanet.symmetry import infer


@pytest.mark.parametrize("name", models.SMALL)
def test_every_layer_is_equivariant(name: str) -> None:
    space = infer(models.make(name), models.MODELS[name].example_inputs)
    worst = {layer: assert_equivariant(make(space)) for layer, make in LAYERS.items()}
    assert max(worst.values()) <= 1e-10, worst


LARGE = {
    "unf_lowrank": lambda s: UNFLinear(s, 2, 2, mixing="lowrank", rank=3),
    "unf_role": lambda s: UNFLinear(s, 2, 2, mixing="role"),
    "role_latent": lambda s: UNFLinear(latent(s), 2, 2, mixing="role", frozen="batch"),
    "gmn": lambda s: GMNLayer(s, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", LARGE)
@pytest.mark.parametrize("name", sorted(set(models.MODELS) - set(models.SMALL)))
def test_deep_layers_on_larger_spaces(name: str, layer: str) -> None:
    space = infer(models.make(name), models.MODELS[name].example_inputs)
    assert assert_equivariant(LARGE[layer](space), n=1) <= 1e-10


def test_small_spaces_are_all_there() -> None:
    """Forty tensors, 200 thousand parameters: none is left out by hand."""
    for name, golden in models.MODELS.items():
        state = [t for t in models.make(name).state_dict().values() if t.is_floating_point()]
        fits = len(state) <= 40 and sum(t.numel() for t in state) <= 200_000
        assert golden.small == fits == (name in models.SMALL), name


@pytest.mark.parametrize("name", ["lenet", "gru", "encoder", "resnet8a"])
def test_golden_modules_come_back_bit_for_bit(name: str) -> None:
    module = models.make(name)
    space = infer(module, models.MODELS[name].example_inputs)
    state = module.state_dict()
    back = WeightBatch.stack(space, [state, module]).unstack()[1]
    again = ParameterGraph.from_checkpoint(space, state).state_dict()
    assert list(back) == list(again) == list(state)
    for key, value in state.items():
        assert torch.equal(value, back[key]) and torch.equal(value, again[key])
