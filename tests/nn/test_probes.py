"""Probes: invariant answers, equivariant neurons, the same numbers as running each network."""

from __future__ import annotations

import pytest
import torch
from models import Siren
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import Probes, assert_equivariant
from metanet.nn.checks import randomised
from metanet.symmetry import WeightSpace, infer


def small_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3),
                         nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


class Attention(nn.Module):
    """One attention layer with two heads over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (f(x).view(*x.shape[:2], 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = ((q @ k.transpose(-1, -2) / 3 ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(mixed)).tanh())


NETS = {"siren": (lambda: Siren(2, 5, 4, 1, w0=2.0), (2,)), "cnn": (small_cnn, (1, 8, 8)),
        "attention": (Attention, (4, 3))}


def made(name: str) -> tuple[nn.Module, WeightSpace, tuple[int, ...]]:
    torch.manual_seed(0)
    factory, shape = NETS[name]
    module = factory().eval()
    return module, infer(module, (torch.randn(2, *shape),)), shape


def members(module: nn.Module, space: WeightSpace, n: int) -> WeightBatch:
    """Networks of one space; variances stay positive."""
    states = []
    for seed in range(n):
        torch.manual_seed(seed)
        states.append({k: v.abs() + 0.1 if "var" in k else v + 0.3 * torch.randn_like(v)
                       if v.is_floating_point() else v for k, v in module.state_dict().items()})
    return WeightBatch.stack(space, states, dtype=torch.float64)


@pytest.mark.parametrize("name", NETS)
def test_answers_are_those_of_each_network(name: str) -> None:
    module, space, shape = made(name)
    layer = randomised(Probes(space, module, 3, shape))
    batch = members(module, space, 4)
    outputs, _ = layer.answers(batch)
    assert outputs.shape == (4, layer.c_out)
    for row, state in zip(outputs, batch.unstack(), strict=True):
        module.load_state_dict(state)
        want = module(layer.inputs.float()).flatten().double()
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)
    some = Probes(space, module, 3, shape, chunk=3).double()
    some.load_state_dict(layer.state_dict())
    torch.testing.assert_close(some(batch), outputs)


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_invariant_and_neurons_equivariant(name: str) -> None:
    module, space, shape = made(name)
    batch = members(module, space, 3)
    element = space.random(1)
    outputs = randomised(Probes(space, module, 3, shape, generator=4))
    a, neurons = outputs.answers(batch)
    b, moved = outputs.answers(batch.apply(element))
    assert neurons is not None and moved is not None
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    known = {group.label for group in neurons.space.groups}
    assert known <= {group.label for group in space.groups} and known
    tables = {k: v for k, v in element.tables.items() if k in known}
    values = {k: v for k, v in element.values.items() if k in known}
    carried = neurons.apply(type(element)(neurons.space, tables, values))
    for key, value in carried.blocks.items():
        torch.testing.assert_close(value, moved.blocks[key], rtol=0, atol=1e-10)
        assert value.std() > 1e-3
    # Moving one tensor alone is another function.
    name = next(k for k in batch.blocks if batch.blocks[k].ndim > 3)
    broken = batch.with_blocks({**batch.blocks, name: batch.blocks[name].roll(1, 1)})
    assert (outputs(broken) - a).abs().max() > 1e-4


def test_gradients_too() -> None:
    for give in ("outputs", "neurons"):
        module, space, shape = made("siren")
        layer = Probes(space, module, 2, shape, give=give)
        assert assert_equivariant(layer) <= 1e-10


def test_neurons_by_hand() -> None:
    module, space, shape = made("cnn")
    layer = Probes(space, module, 2, shape).double()
    batch = members(module, space, 1)
    _, neurons = layer.answers(batch)
    module.double().load_state_dict(batch.unstack()[0])
    want = module[0](layer.inputs).mean((2, 3)).T
    torch.testing.assert_close(neurons.blocks["0"][0], want)
    assert set(neurons.blocks) == {"0", "1", "3"}  # not the classes, which have no group


def test_inputs_can_be_learned() -> None:
    """An input where a network gives the value that it has at another one."""
    module, space, shape = made("siren")
    batch = members(module, space, 1)
    target = Probes(space, module, 1, shape).double()(batch).detach()
    layer = Probes(space, module, 1, shape).double()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(batch) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 < 1e-2 < losses[0]
    assert not layer._held[0].training and not any(k.startswith("_held") for k in
                                                   layer.state_dict())


def test_refusals() -> None:
    module, space, shape = made("cnn")
    with pytest.raises(SymmetryError, match="takes no input of shape"):
        Probes(space, module, 2, (3, 8, 8))
    with pytest.raises(SymmetryError, match="give"):
        Probes(space, module, 2, shape, give="both")
    with pytest.raises(SymmetryError, match="one tensor"):
        Probes(space, nn.Sequential(module, nn.Flatten(0, 1)), 2, shape)
