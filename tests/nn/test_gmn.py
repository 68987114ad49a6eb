"""GMNLayer: aggregates by hand, the fused step against the plain one, the order of nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_spaces import SPACES

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import GMNLayer, latent, message
from metanet.nn.checks import random_batch, randomised
from metanet.nn.order import levels
from metanet.symmetry import GroupMeta, Meta, WeightSpace

PNA = ("mean", "sum", "max", "std")
CHAIN = WeightSpace.parse("space v1\n" + "".join(f"group g{i} = S(3)\n" for i in range(4))
                          + "w0: g0 2!\nw1: g1 g0\nw2: g2 g1\nw3: g3 g2")


@pytest.mark.parametrize("how", PNA)
def test_aggregates_by_hand(how: str) -> None:
    """``w [b, a]`` on the latent space: what the nodes of ``a`` are after one layer."""
    home = latent(WeightSpace.parse("space v1\ngroup a = S(3)\ngroup b = S(2)\nw: b a"))
    layer = randomised(GMNLayer(home, 2, 4, "batch", "relu", 1, (how,)))
    batch = random_batch(home, 2)
    w, a, b, u = (batch.blocks[k] for k in ("w", "@a", "@b", "@"))
    by_label = {g.label: n for g, n in zip(home.normal_groups, layer.nodes, strict=True)}
    seen = w @ layer.edge_in[0] + layer.edge_bias[0]
    seen = seen + (a @ by_label["a"].before)[:, None] + (b @ by_label["b"].before)[:, :, None]
    seen = (seen + (u @ layer.root.before)[:, None, None]).relu()
    mean = seen.mean(1)
    want = {"mean": mean, "sum": seen.sum(1), "max": seen.amax(1),
            "std": ((seen - mean[:, None]).square().mean(1) + 1e-5).sqrt()}[how]
    nodes = by_label["a"]
    new = want @ nodes.collect + nodes.bias + a @ nodes.own + (u @ nodes.context)[:, None]
    want = a + new.relu() @ nodes.update
    torch.testing.assert_close(layer(batch).blocks["@a"], want, rtol=0, atol=1e-9)


def gradients(layer: GMNLayer, batch: WeightBatch) -> list[torch.Tensor]:
    layer.zero_grad()
    leaf = batch.map(lambda b: b.clone().requires_grad_())
    out = layer(leaf)
    torch.stack([(value ** 3).sum() for value in out.blocks.values()]).sum().backward()
    return [*out.blocks.values(), *(b.grad for b in leaf.blocks.values()),
            *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("space", ["mlp", "attention", "nested", "conv"])
@pytest.mark.parametrize("options", [
    {}, {"messages": 1, "activation": "relu"}, {"aggregate": PNA, "activation": "silu"},
    {"schedule": "forward", "aggregate": ("max", "std"), "messages": 1}])
def test_the_fused_step_is_the_plain_one(space: str, options: dict[str, Any],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    home = latent(SPACES[space])
    layer = randomised(GMNLayer(home, 3, 5, "batch", **options))
    batch = random_batch(home, 3, n=5)
    fused = gradients(layer, batch)
    monkeypatch.setattr(message, "_CACHE", 1 << 11)  # a member or two at a time
    chunked = gradients(layer, batch)
    monkeypatch.setattr(layer, "_diagonal", set(layer.edges))  # takes the plain path
    plain = gradients(layer, batch)
    assert len(fused) == len(chunked) == len(plain)
    for a, b, c in zip(fused, chunked, plain, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-9)


def test_no_gradient_keeps_nothing() -> None:
    home = latent(SPACES["mlp"])
    layer = randomised(GMNLayer(home, 2, frozen="batch", messages=1))
    batch = random_batch(home, 2)
    with torch.no_grad():
        still = layer(batch)
    for name, value in layer(batch).blocks.items():
        assert value.requires_grad and not still.blocks[name].requires_grad
        torch.testing.assert_close(value.detach(), still.blocks[name])


def test_autocast_and_float32() -> None:
    home = latent(SPACES["attention"])
    layer = randomised(GMNLayer(home, 4, frozen="batch", messages=1, aggregate=PNA))
    batch = random_batch(home, 4)
    want = layer(batch)
    single = layer.float()(batch.to(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(batch.to(torch.float32))
    for name, value in want.blocks.items():
        torch.testing.assert_close(single.blocks[name].double(), value, rtol=1e-4, atol=1e-4)
        assert (low.blocks[name].double() - value).abs().mean() < 0.1 * value.abs().mean()


@pytest.mark.gpu
def test_cuda_gives_the_same(gpu: torch.device) -> None:
    home = latent(SPACES["attention"])
    layer = randomised(GMNLayer(home, 4, frozen="batch", aggregate=PNA, schedule="forward"))
    batch = random_batch(home, 4)
    want = gradients(layer, batch)
    found = gradients(layer.to(gpu), batch.to(gpu))
    for a, b in zip(want, found, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-8, atol=1e-8)


def reach(schedule: str) -> dict[str, bool]:
    """Which node states of a chain one layer lets the first weight change."""
    home = latent(CHAIN)
    layer = randomised(GMNLayer(home, 2, frozen="batch", messages=1, schedule=schedule))
    torch.nn.init.zeros_(layer.root.update)  # so that nothing goes by way of the global state
    batch = random_batch(home, 2)
    moved = batch.with_blocks({**batch.blocks, "w0": batch.blocks["w0"] + 1})
    a, b = layer(batch), layer(moved)
    return {name: not torch.equal(a.blocks[name], b.blocks[name])
            for name in ("@g0", "@g1", "@g2", "@g3")}


def test_forward_carries_through_the_depth_in_one_layer() -> None:
    assert reach("forward") == dict.fromkeys(("@g0", "@g1", "@g2", "@g3"), True)
    assert reach("parallel") == {"@g0": True, "@g1": False, "@g2": False, "@g3": False}


def test_levels() -> None:
    assert levels(CHAIN) == (("g0",), ("g1",), ("g2",), ("g3",))
    text = "space v1\ngroup s = S(4)\ngroup h = S(3)\nstem: s 2!\nup: h s\ndown: s h\nhead: 2! s"
    stream = WeightSpace.parse(text)
    labels = {g.label for g in stream.normal_groups}
    assert [set(level) for level in levels(stream)] == [labels]  # they feed each other
    meta = Meta({}, {"s": GroupMeta(None, 1), "h": GroupMeta("relu", 2)})
    known = WeightSpace(stream.normal_groups, stream.tensors, meta=meta)
    assert levels(known) == (("s",), ("h",))


@pytest.mark.parametrize(("options", "words"), [
    ({"aggregate": ("median",)}, "aggregate"), ({"aggregate": ()}, "aggregate"),
    ({"schedule": "backward"}, "schedule"), ({"activation": "tanh"}, "activation"),
    ({"messages": 3}, "messages"), ({"messages": 1}, "latent")])
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SymmetryError, match=words):
        GMNLayer(SPACES["mlp"], 2, **options)
