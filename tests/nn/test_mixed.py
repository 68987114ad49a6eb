"""MixedGMNLayer: dense blocks and edge lists give the same, alone and side by side."""

from __future__ import annotations

import models
import pytest
import torch
from hand_spaces import SPACES
from torch import nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.graph.pyg import dense_batches, mixed_graph
from metanet.nn import MixedGMNLayer
from metanet.nn.checks import random_batch, randomised
from metanet.nn.mixed import ends_of, role_of, states_of, typed
from metanet.symmetry import WeightSpace, infer

GOLDEN = ["lenet", "gru", "encoder", "resnet8a"]


def by_graph(layer: MixedGMNLayer, batches: list[WeightBatch]) -> list[WeightBatch]:
    graph = mixed_graph(batches, states_of, ends_of, role_of)
    return dense_batches(layer.forward_graph(graph), batches, states_of)


def gradient(layer: MixedGMNLayer, found: list[WeightBatch]) -> list[torch.Tensor]:
    total = sum((value ** 2).sum() for batch in found for value in batch.blocks.values())
    layer.zero_grad()
    total.backward()
    return [p.grad.clone() for p in layer.parameters()]


def same(a: WeightBatch, b: WeightBatch) -> None:
    for name, value in a.blocks.items():
        torch.testing.assert_close(value, b.blocks[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("space", SPACES)
def test_edge_lists_give_the_same(space: str) -> None:
    layer = randomised(MixedGMNLayer(3, 4))
    batch = random_batch(typed(SPACES[space]), 3)
    dense = layer(batch)
    (listed,) = by_graph(layer, [batch])
    same(dense, listed)
    for a, b in zip(gradient(layer, [dense]), gradient(layer, [listed]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-8)
    assert not any(torch.equal(dense.blocks[k], v) for k, v in batch.blocks.items())


@pytest.mark.parametrize("name", GOLDEN)
def test_on_golden_modules(name: str) -> None:
    space = infer(models.make(name), models.MODELS[name].example_inputs)
    layer = randomised(MixedGMNLayer(2))
    batch = random_batch(typed(space), 2, n=1)
    with torch.no_grad():
        same(layer(batch), by_graph(layer, [batch])[0])


def test_architectures_side_by_side_are_as_alone() -> None:
    layer = randomised(MixedGMNLayer(3, activation="silu"))
    batches = [random_batch(typed(SPACES[name]), 3, seed=i, n=1 + i)
               for i, name in enumerate(("conv", "attention", "mlp"))]
    together = by_graph(layer, batches)
    for batch, found in zip(batches, together, strict=True):
        same(layer(batch), found)
        (alone,) = by_graph(layer, [batch])
        same(alone, found)


def test_starts_as_the_identity_and_refuses() -> None:
    batch = random_batch(typed(SPACES["mlp"]), 2)
    layer = MixedGMNLayer(2).double()
    same(layer(batch), batch)
    with pytest.raises(SpaceMismatch, match="typed"):
        layer(random_batch(SPACES["mlp"], 2))
    with pytest.raises(SymmetryError, match="activation"):
        MixedGMNLayer(2, activation="tanh")
    with pytest.raises(SymmetryError, match="budget"):
        mixed_graph([batch], states_of, ends_of, role_of, max_edges=10)


def test_typed_keeps_roles_sides_and_every_digit() -> None:
    space = infer(nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
                                nn.Linear(12, 2)), (torch.randn(2, 1, 3, 3),))
    home = typed(space)
    assert home.blocks("0.weight")[0].shape == space.blocks("0.weight")[0].shape
    for name in space.tensors:
        assert home.tensor_meta(name) == space.tensor_meta(name)
    other = WeightSpace.parse(str(space))  # equal, and without meta
    assert other == space and typed(other).tensor_meta("1.running_var").role == "bias"
    assert home.tensor_meta("1.running_var").role == "running_var"
