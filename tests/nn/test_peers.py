"""What the peers test of their layers, asked of ours.

Adapted from three MIT projects, with their sizes and bounds: AvivNavon/DWSNets
tests/test_layers.py (invariance and equivariance of models in float32), mkofinas/neural-graphs
tests (the same for INRs and CNNs), AllanYangZhou/nfn tests/test_layers.py (equivariance of layers,
and *sensitivity to uncoupled permutations*). Permutations are applied here to plain weights and
biases by indexing, as they do it, not by our group elements.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from metanet.graph import WeightBatch
from metanet.nn import (
    DWSLinear,
    GMNLayer,
    InvariantPool,
    LayerNorm,
    Pointwise,
    Stack,
    UNFLinear,
)
from metanet.symmetry import WeightSpace

Rows = list[tuple[Tensor, Tensor]]  # of every layer: a permutation of its rows and of its columns


def chain(sizes: list[int], taps: list[tuple[int, int]] | None = None) -> WeightSpace:
    """A feed-forward net whose hidden neurons are permuted; ``taps``: sizes of its filters."""
    last = len(sizes) - 1
    axes = [f"g{i}" if 0 < i < last else f"{n}!" for i, n in enumerate(sizes)]
    text = [f"group g{i} = S({sizes[i]})" for i in range(1, last)]
    for i in range(last):
        kernel = f" {taps[i][0]}! {taps[i][1]}!" if taps else ""
        text += [f"w{i}: {axes[i + 1]} {axes[i]}{kernel}", f"b{i}: {axes[i + 1]}"]
    return WeightSpace.parse("\n".join(["space v1", *text]))


def draw(space: WeightSpace, n: int, channels: int) -> WeightBatch:
    return WeightBatch(space, {b.name: torch.randn(n, *b.shape, channels)
                               for name in space.tensors for b in space.blocks(name)})


def coupled(sizes: list[int]) -> Rows:
    """One permutation per hidden layer, acting on the rows and on the next layer's columns."""
    perms = [torch.arange(sizes[0]), *map(torch.randperm, sizes[1:-1]), torch.arange(sizes[-1])]
    return [(rows, columns) for columns, rows in pairwise(perms)]


def moved(batch: WeightBatch, rows: Rows) -> WeightBatch:
    blocks = dict(batch.blocks)
    for i, (out, inp) in enumerate(rows):
        blocks[f"w{i}"] = blocks[f"w{i}"][:, out][:, :, inp]
        blocks[f"b{i}"] = blocks[f"b{i}"][:, out]
    return batch.with_blocks(blocks)


def close(a: WeightBatch, b: WeightBatch, atol: float = 1e-5) -> bool:
    """Their criterion, with the bound relative to the size of the values."""
    return all(torch.allclose(a.blocks[name], b.blocks[name],
                              atol=atol * max(1.0, float(a.blocks[name].abs().max())))
               for name in a.blocks)


Make = Callable[[WeightSpace, int, int], nn.Module]
LINEAR: dict[str, Make] = {
    "unf": UNFLinear,
    "lowrank": lambda s, i, o: UNFLinear(s, i, o, mixing="lowrank", rank=4),
    "role": lambda s, i, o: UNFLinear(s, i, o, mixing="role"),
    "dws": DWSLinear,
    "dws_max": lambda s, i, o: DWSLinear(s, i, o, reduce="max"),
    "gmn": lambda s, i, o: live(GMNLayer(s, i)),
}


def live(layer: nn.Module) -> nn.Module:
    """With random weights: some of ours start as the identity."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[0] ** -0.5)
    return layer


CASES = {"mlp": ([10, 15, 13, 18, 14, 12], None), "mlp2": ([10, 15, 12], None),
         "cnn2": ([10, 15, 12], [(3, 5), (4, 3)])}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_nfn_equivariant_to_coupled_sensitive_to_uncoupled(name: str, case: str) -> None:
    torch.manual_seed(0)
    sizes, taps = CASES[case]
    space = chain(sizes, taps)
    layer = LINEAR[name](space, 3, 4)
    batch = draw(space, 5, 3)
    out = layer(batch)
    for _ in range(3):
        rows = coupled(sizes)
        assert close(moved(out, rows), layer(moved(batch, rows)))
    for place in range(1, 2 * (len(sizes) - 1) - 1):
        rows = coupled(sizes)
        i, (out_rows, in_rows) = place // 2, rows[place // 2]
        rows[i] = ((out_rows, torch.randperm(len(in_rows))) if place % 2 == 0
                   else (torch.randperm(len(out_rows)), in_rows))
        assert not close(moved(out, rows), layer(moved(batch, rows))), f"place {place}"


@torch.no_grad()
def test_nfn_pointwise_is_not_sensitive() -> None:
    sizes = [10, 15, 13, 14, 12]
    space = chain(sizes)
    batch, rows = draw(space, 3, 3), coupled(sizes)
    rows[1] = (torch.randperm(13), torch.randperm(15))
    for layer in (Pointwise(space, 3), LayerNorm(space, 3)):
        assert close(moved(layer(batch), rows), layer(moved(batch, rows)))


def network(space: WeightSpace, name: str, channels: int) -> Stack:
    width = 8
    layers: list[nn.Module] = [LINEAR["unf"](space, channels, width)]
    for _ in range(3):
        layers += [Pointwise(space, width, torch.relu), LINEAR[name](space, width, width)]
    return Stack(*layers)


INR = [2, 32, 32, 32, 32, 3]


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_dws_and_neural_graphs_models_of_inrs(name: str) -> None:
    torch.manual_seed(0)
    space = chain(INR)
    net = network(space, name, 1)
    head = InvariantPool(space, 8, ("mean", "max"))
    batch, rows = draw(space, 4, 1), coupled(INR)
    out, again = net(batch), net(moved(batch, rows))
    assert close(moved(out, rows), again)
    torch.testing.assert_close(head(out), head(again), atol=1e-5, rtol=1e-5)
    assert float((head(out)[0] - head(out)[1]).abs().max()) > 1e-3  # and it is not constant


@pytest.mark.parametrize("name", ["unf", "dws", "gmn"])
@torch.no_grad()
def test_neural_graphs_invariance_for_cnns(name: str) -> None:
    torch.manual_seed(0)
    sizes = [3, 16, 32, 10]
    last = "\n".join(["space v1", "group g1 = S(16)", "group g2 = S(32)", "w0: g1 3! 5! 5!",
                      "b0: g1", "w1: g2 g1 5! 5!", "b1: g2", "w2: 10! g2", "b2: 10!"])
    space = WeightSpace.parse(last)
    net = nn.Sequential(network(space, name, 1), InvariantPool(space, 8))
    batch = draw(space, 4, 1)
    torch.testing.assert_close(net(batch), net(moved(batch, coupled(sizes))), atol=1e-5,
                               rtol=1e-5)
