"""MixedMetanet: one net for several architectures, invariant, learnable, stored as plain data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_spaces import SPACES, random_state

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.graph.pyg import dense_batches, mixed_graph
from metanet.models import MixedMetanet
from metanet.nn.checks import random_batch, random_permutations, randomised
from metanet.nn.mixed import ends_of, role_of, states_of
from metanet.symmetry import WeightSpace


def mlp(width: int) -> WeightSpace:
    return WeightSpace.parse(f"space v1\ngroup a = S({width})\nw1: a 3!\nb1: a\nw2: 2! a\nb2: 2!")


@pytest.mark.parametrize("space", SPACES)
def test_invariant(space: str) -> None:
    model = randomised(MixedMetanet(outputs=2, width=4, depth=2, head=8))
    batch = random_batch(SPACES[space], 1)
    moved = batch.apply(random_permutations(SPACES[space]))
    torch.testing.assert_close(model(batch), model(moved), rtol=0, atol=1e-10)
    assert (model(batch)[0] - model(batch)[1]).abs().max() > 1e-6


def test_architectures_together_are_as_alone_dense_and_listed() -> None:
    model = randomised(MixedMetanet(width=4, depth=2, head=8))
    batches = [random_batch(SPACES[name], 1, n=2) for name in ("conv", "attention")]
    together = model(batches)
    torch.testing.assert_close(together, torch.cat([model(batch) for batch in batches]))
    started = [model.states(batch) for batch in batches]
    graph = mixed_graph(started, states_of, ends_of, role_of)
    for layer in model.layers:
        graph = layer.forward_graph(graph)
    listed = dense_batches(graph, started, states_of)
    found = model.head(torch.cat([model._pooled(states) for states in listed]))
    torch.testing.assert_close(found, together, rtol=0, atol=1e-10)


def test_learns_across_widths(tmp_path: Path) -> None:
    """The share of live weights: trained at two widths, tested at a third."""
    def members(width: int, n: int, seed: int) -> tuple[WeightBatch, torch.Tensor]:
        space, states, target = mlp(width), [], []
        for i in range(n):
            state = random_state(space, seed + i)
            live = torch.rand(1, generator=torch.Generator().manual_seed(seed + i)).item()
            state["b1"] = state["b1"] * 0.1 + live
            states.append(state)
            target.append(live)
        return WeightBatch.stack(space, states), torch.tensor(target)

    torch.manual_seed(0)
    model = MixedMetanet(width=8, depth=1, head=16, dropout=0.0)
    sets = [members(6, 24, 0), members(10, 24, 100)]
    target = torch.cat([t for _, t in sets])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (model([b for b, _ in sets])[:, 0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    other, wanted = members(24, 16, 200)
    error = (model(other)[:, 0].detach() - wanted).square().mean()
    assert float(error) < 0.25 * float(wanted.var())
    model.save_pretrained(tmp_path)
    loaded = MixedMetanet.from_pretrained(tmp_path)
    assert torch.equal(loaded(other), model(other)) and loaded.config == model.config
    assert isinstance(MixedMetanet.from_config(model.config), MixedMetanet)


def test_refusals() -> None:
    with pytest.raises(SymmetryError, match="role"):
        MixedMetanet(encoding=("raw", "role"))
    with pytest.raises(SymmetryError, match="width"):
        MixedMetanet(width=0)
    with pytest.raises(SpaceMismatch, match="channels"):
        MixedMetanet()(random_batch(SPACES["mlp"], 2))
