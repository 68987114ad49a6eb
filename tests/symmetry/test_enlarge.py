"""Signs and positive scales: which groups get them, their exponents, and that they are true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metanet
from metanet.errors import SymmetryError
from metanet.symmetry import WeightSpace, infer
from metanet.symmetry.enlarge import enlarge
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.nullspace import latest_scaling
from metanet.symmetry.resolve import resolve
from metanet.symmetry.verify import verify_program


def both(module: nn.Module, *inputs: Tensor) -> WeightSpace:
    """The larger space, after its proof and the proof that it contains the smaller one."""
    torch.manual_seed(0)
    program = record(module, inputs)
    space = infer_program(program)
    larger = enlarge(program, space)
    found = verify_program(program, larger)
    assert found.ok, found.report()
    assert [(g.label, g.size, g.over) for g in larger.groups] == [
        (g.label, g.size, g.over) for g in space.groups]
    return larger


def mlp(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), act(), nn.Linear(6, 7), act(), nn.Linear(7, 3))


WRITTEN = "0.weight: a 5!\n0.bias: a\n2.weight: b a{0}\n2.bias: b\n4.weight: 3! b{0}\n4.bias: 3!"


@pytest.mark.parametrize(("act", "kind", "power"), [
    (nn.ReLU, "positive", "^-1"), (nn.LeakyReLU, "positive", "^-1"), (nn.Tanh, "signed", ""),
    (nn.Softsign, "signed", ""), (nn.GELU, "S", ""), (nn.Sigmoid, "S", ""),
])
def test_activations_decide(act: Callable[[], nn.Module], kind: str, power: str) -> None:
    found = both(mlp(act), torch.randn(2, 5))
    groups = f"space v1\ngroup a = {kind}(6)\ngroup b = {kind}(7)\n"
    assert found == WeightSpace.parse(groups + WRITTEN.format(power))


def exponents(space: WeightSpace, label: str) -> dict[str, int]:
    """Exponent of a group by tensor (of its last place there)."""
    return {name: digit.exponent for name in space.tensors for block in space.blocks(name)
            for digit in block.digits if digit.label == label}


def test_behind_a_batch_norm() -> None:
    """Scales before the norm and after it share a permutation: those after it are kept."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    space = both(net, torch.randn(2, 3, 7, 9))
    (group,) = space.groups
    assert group.kind == "positive"
    assert exponents(space, group.label) == {
        "0.weight": 0, "0.bias": 0, "1.running_mean": 0, "1.running_var": 0, "1.weight": 1,
        "1.bias": 1, "3.weight": -1}


class Gated(nn.Module):
    """down(silu(gate x) * up x): the linear half may be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_gated_units_scale_their_linear_half() -> None:
    space = both(Gated(), torch.randn(2, 4))
    (group,) = space.groups
    assert group.kind == "positive"
    assert exponents(space, group.label) == {
        "gate.weight": 0, "gate.bias": 0, "up.weight": 1, "up.bias": 1, "down.weight": -1}


class Stream(nn.Module):
    """A residual stream read through a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 6), norm
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x / x.pow(2).mean(-1, keepdim=True).sqrt())


def test_a_stream_behind_rms_norms_has_signs() -> None:
    space = both(Stream(nn.RMSNorm(6)), torch.randn(2, 4))
    kinds = {g.size: g.kind for g in space.groups}
    assert kinds == {6: "signed", 5: "S"}
    stream = next(g.label for g in space.groups if g.size == 6)
    assert exponents(space, stream) == {
        "embed.weight": 1, "embed.bias": 1, "norm.weight": 0, "up.weight": 1, "down.weight": 1,
        "down.bias": 1, "head.weight": 1}


def test_a_stream_behind_a_layer_norm_has_none() -> None:
    space = both(Stream(nn.LayerNorm(6)), torch.randn(2, 4))
    assert {g.size: g.kind for g in space.groups} == {6: "S", 5: "S"}


@pytest.mark.parametrize("name", ["packed_attention", "grouped", "separable", "resnet8a", "gru"])
def test_golden_models(name: str) -> None:
    golden = models.MODELS[name]
    space = both(golden.factory().eval(), *golden.example_inputs)
    expected = {
        # q and k scale against each other, v against the output; heads permute
        "packed_attention": {("S", 3): 1, ("positive", 4): 2},
        "grouped": {("S", 4): 1, ("positive", 3): 1, ("positive", 2): 1},
        "separable": {("positive", 8): 1, ("positive", 12): 1},
        "resnet8a": {("positive", 4): 4, ("positive", 8): 1, ("positive", 2): 2,
                     ("positive", 16): 1},
        "gru": {("S", 12): 1},  # a gate's sigmoid is neither odd nor homogeneous
    }[name]
    found: dict[tuple[str, int], int] = {}
    for group in space.groups:
        found[group.kind, group.size] = found.get((group.kind, group.size), 0) + 1
    assert found == expected


def test_a_key_s_bias_goes_with_its_weight() -> None:
    golden = models.MODELS["packed_attention"]
    space = both(golden.factory().eval(), *golden.example_inputs)
    label = next(g.label for g in space.groups if g.over and sum(
        d.label == g.label for b in space.blocks("qkv.bias") for d in b.digits) == 2)
    for name in ("qkv.weight", "qkv.bias"):
        signs = [d.exponent for b in space.blocks(name) for d in b.digits if d.label == label]
        assert signs == [1, -1]


def test_sirens_of_the_orbit(shared_data: Path) -> None:
    """Inferred from a stranger's file, the space is the one written by hand, with signs."""
    file = next((shared_data / "siren_orbit").glob("*.pth"))
    found = resolve(file, arch="siren", verify=True, kinds=("positive", "signed"))
    assert found.verification is not None and found.verification.ok
    assert found.space == WeightSpace.parse("""space v1
group h1 = signed(32)
group h2 = signed(32)
seq.0.weight: h1 2!
seq.0.bias: h1
seq.1.weight: h2 h1
seq.1.bias: h2
seq.2.weight: 1! h2
seq.2.bias: 1!
""")


def test_asking_for_one_kind() -> None:
    net, x = mlp(nn.ReLU), (torch.randn(2, 5),)
    assert {g.kind for g in infer(net, x).groups} == {"S"}
    assert {g.kind for g in infer(net, x, kinds=["signed"]).groups} == {"S"}
    space = infer(net, x, kinds=["positive"], verify=True)
    assert space.status == "verified" and {g.kind for g in space.groups} == {"positive"}
    with pytest.raises(SymmetryError, match="'GL'"):
        infer(net, x, kinds=["GL"])


def test_a_scaled_network_computes_the_same() -> None:
    net = mlp(nn.ReLU).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    space = metanet.infer(net, (x,), kinds=["positive"])
    moved = space.random(seed=3).apply(net.state_dict())
    assert not torch.allclose(moved["0.weight"].abs().sort().values,
                              net[0].weight.abs().sort().values)
    before = net(x)
    net.load_state_dict(moved)
    assert torch.allclose(net(x), before, rtol=1e-12, atol=1e-12)


def test_vectors_of_the_null_space() -> None:
    rng = np.random.default_rng(0)
    # before a norm (1, 1, -1, 0, 0), after it (0, 0, 1, 1, -1)
    null = np.array([[1.0, 1, -1, 0, 0], [0, 0, 1, 1, -1]])
    others = np.linalg.svd(null)[2][2:]
    matrix = rng.normal(size=(40, 3)) @ others
    assert latest_scaling(matrix, [4]) == [0, 0, 1, 1, -1]
    assert latest_scaling(rng.normal(size=(40, 5)), [4]) is None
    assert latest_scaling(matrix[:3], [4]) is None  # too few rows prove nothing
    assert latest_scaling(matrix * np.array([1, 1, 0.3, 1, 1]), [4]) is None  # not whole
    silent = np.insert(matrix, 2, 0.0, axis=1)
    assert latest_scaling(silent, [5]) == [0, 0, None, 1, 1, -1]
