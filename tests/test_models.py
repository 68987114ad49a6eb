"""The golden models run, are deterministic, and keep the promises of the small ones."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, SMALL, make


@pytest.mark.parametrize("name", MODELS)
def test_runs_and_repeats(name: str) -> None:
    inputs = MODELS[name].example_inputs
    first, second = make(name)(*inputs), make(name)(*inputs)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
    assert first.std() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_small_is_small(name: str) -> None:
    floats = [t for t in make(name).state_dict().values() if t.is_floating_point()]
    assert len(floats) <= 40
    assert sum(t.numel() for t in floats) <= 200_000


def test_inputs_have_distinct_sizes_of_at_least_two() -> None:
    exempt = {"lenet"}  # a flatten fixes 28x28 images of one channel
    for name in MODELS.keys() - exempt:
        sizes = MODELS[name].example_inputs[0].shape
        assert min(sizes) >= 2 and len(set(sizes)) == len(sizes), name


def test_tied_weight_is_one_tensor() -> None:
    module = make("char_lm")
    assert module.lm_head.weight is module.wte.weight
