"""Every layer on every small golden space, as inferred from its module."""

from __future__ import annotations

import models
import pytest
import torch
from layer_list import LAYERS

from metanet.graph import ParameterGraph, WeightBatch
from metanet.nn import assert_equivariant
from metanet.symmetry import infer


@pytest.mark.parametrize("name", models.SMALL)
def test_every_layer_is_equivariant(name: str) -> None:
    space = infer(models.make(name), models.MODELS[name].example_inputs)
    worst = {layer: assert_equivariant(make(space)) for layer, make in LAYERS.items()}
    assert max(worst.values()) <= 1e-10, worst


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
