"""Groups that turn (kinds O, O1, SO): the algebra, the action, matching, proof."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from metanet import WeightSpace
from metanet.errors import SymmetryError
from metanet.symmetry import GroupElement, distance, match, verify
from metanet.symmetry.rotations import across_ones, procrustes, random_rotation
from metanet.testing import random_tensors
from tests.symmetry.strategies import ALGEBRA, spaces

TURNING = ("O", "O1", "SO")
MIXED = spaces("S", "signed", *TURNING)
HEADS = """space v1
group h = S(3)
group v = O(4) / h
group pair = fixed(2)
group c = SO(2) / (h pair)
group m = O1(6)
group n = S(7)
q.weight: (h c/(h pair)@0 pair) m
k.weight: (h c/(h pair)@0 pair) m
v.weight: (h v/h) m
o.weight: m (h v/h)
up.weight: n m
up.bias: n
down.weight: m n
down.bias: m
embed: 11! m
"""


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=1e-9, atol=1e-11) for k in one)


# ---------------------------------------------------------------- matrices


@pytest.mark.parametrize("kind", TURNING)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_random_rotations_are_of_their_kind(kind: str, size: int) -> None:
    found = random_rotation(kind, size, np.random.default_rng(0))
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    if kind == "O1":
        np.testing.assert_allclose(found.sum(1), 1)
    if kind == "SO":
        assert np.linalg.det(found) > 0
    assert across_ones(size).shape == (size, size - 1)


@pytest.mark.parametrize("kind", TURNING)
def test_procrustes_is_the_best_of_its_kind(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        gain = rng.standard_normal((4, 4))
        best, worth = procrustes(kind, gain)
        assert worth == pytest.approx(float((best * gain).sum()))
        GroupElement(WeightSpace.parse(f"space v1\ngroup a = {kind}(4)\nw: a"), values={"a": best})
        for _ in range(50):  # others far away, and others near by
            other = random_rotation(kind, 4, rng)
            near, _ = procrustes(kind, best + 0.1 * other)
            assert max(float((other * gain).sum()), float((near * gain).sum())) <= worth + 1e-12


@pytest.mark.parametrize(("kind", "value", "told"), [
    ("O", np.ones((2, 2)), "not matrices of kind O"),
    ("O", np.eye(3), "shape"),
    ("O", np.full((2, 2), np.nan), "finite"),
    ("O1", np.diag([1.0, -1.0]), "keeping the ones"),
    ("SO", np.diag([1.0, -1.0]), "without a reflection"),
])
def test_matrices_of_other_kinds_are_refused(kind: str, value: np.ndarray, told: str) -> None:
    space = WeightSpace.parse(f"space v1\ngroup a = {kind}(2)\nw: a")
    with pytest.raises(SymmetryError, match=told):
        GroupElement(space, values={"a": value})
    with pytest.raises(SymmetryError, match="takes no table"):
        GroupElement(space, {"a": np.array([1, 0])})


# ---------------------------------------------------------------- algebra and action


@settings(ALGEBRA, max_examples=60)
@given(MIXED)
def test_axioms(space: WeightSpace) -> None:
    g, h, k = (space.random(seed) for seed in (1, 2, 3))
    tensors = random_tensors(space, 1)
    assert close((g @ h).apply(tensors), g.apply(h.apply(tensors)))
    assert close(g.inverse().apply(g.apply(tensors)), tensors)
    assert close(((g @ h) @ k).apply(tensors), (g @ (h @ k)).apply(tensors))
    assert space.identity().is_identity() and space.identity().apply(tensors).keys()
    assert GroupElement.from_json(space, g.to_json()) == g
    assert WeightSpace.parse(str(space)) == space


def test_action_against_sums() -> None:
    space = WeightSpace.parse(HEADS)
    tensors, g = random_tensors(space, 2), space.random(3)
    moved = g.apply(tensors)
    heads, head_turn, pair_turn = g.tables["h"], g.values["v"], g.values["c"]
    stream, old = g.values["m"], tensors["v.weight"].numpy().reshape(3, 4, 6)
    want = np.zeros((3, 4, 6))
    for h, i, a in product(range(3), range(4), range(6)):
        want[h, i, a] = sum(head_turn[h, i, j] * stream[a, b] * old[heads[h], j, b]
                            for j in range(4) for b in range(6))
    np.testing.assert_allclose(moved["v.weight"].numpy(), want.reshape(12, 6), atol=1e-12)
    old, want = tensors["q.weight"].numpy().reshape(3, 2, 2, 6), np.zeros((3, 2, 2, 6))
    for h, i, p, a in product(range(3), range(2), range(2), range(6)):
        want[h, i, p, a] = sum(pair_turn[h, p, i, j] * stream[a, b] * old[heads[h], j, p, b]
                               for j in range(2) for b in range(6))
    np.testing.assert_allclose(moved["q.weight"].numpy(), want.reshape(12, 6), atol=1e-12)


def test_turned_in_the_precision_of_the_tensor() -> None:
    space = WeightSpace.parse("space v1\ngroup a = O(8)\nw: 5! a")
    g, w = space.random(0), torch.randn(5, 8)
    want = w.double() @ torch.from_numpy(g.values["a"]).T
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        moved = g.apply({"w": w.to(dtype)})["w"]
        assert moved.dtype == dtype
        assert float((moved.double() - want).abs().max()) < 8 * torch.finfo(dtype).eps


def test_what_has_no_neurons_is_refused() -> None:
    space = WeightSpace.parse(HEADS)
    with pytest.raises(SymmetryError, match="no neurons"):
        space.select("m", [0, 1])
    with pytest.raises(SymmetryError, match="no canonical form"):
        space.canonical(random_tensors(space))
    with pytest.raises(SymmetryError, match="no indices"):
        WeightSpace.parse("space v1\ngroup a = O(2)\ngroup b = S(2) / a\nw: a b/a")


# ---------------------------------------------------------------- matching


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_rotation_comes_back(seed: int) -> None:
    space = WeightSpace.parse(HEADS)
    a, g = random_tensors(space, seed), space.random(seed)
    b = g.apply(a)
    found = match(a, b, space, restarts=3)
    assert close(found.element.apply(b), a)
    assert all(x <= y + 1e-9 for x, y in zip(found.history, found.history[1:], strict=False))
    assert float(distance(a, b, space, restarts=3)) < 1e-5


def test_permutations_do_not_bring_a_rotation_back() -> None:
    turning = WeightSpace.parse(HEADS)
    still = WeightSpace.parse(HEADS.replace("O1(6)", "S(6)").replace("O(4)", "S(4)"
                                            ).replace("SO(2)", "fixed(2)"))
    a = random_tensors(turning, 0)
    b = turning.random(0).apply(a)
    assert distance(a, b, turning, restarts=3).relative < 1e-6
    assert distance(a, b, still, restarts=3).relative > 0.5


def test_noise_is_no_hindrance() -> None:
    space = WeightSpace.parse(HEADS)
    a, g = random_tensors(space, 5), space.random(5)
    noise = random_tensors(space, 6)
    b = {k: v + 0.05 * noise[k] for k, v in g.apply(a).items()}
    found = (match(a, b, space, restarts=3).element @ g)
    assert all((t == np.arange(t.shape[-1])).all() for t in found.tables.values())
    assert all(np.abs(v - np.eye(v.shape[-1])).max() < 0.2 for v in found.values.values())


# ---------------------------------------------------------------- proof


class Normed(nn.Module):
    """A stream that is written twice and read through norms without gains."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.inside, self.up = nn.Linear(5, 8), nn.Linear(8, 6)
        self.down, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = norm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.out(self.norm(x))


@pytest.mark.parametrize(("norm", "kind", "good"), [
    (nn.RMSNorm, "O", True), (nn.RMSNorm, "O1", True), (nn.LayerNorm, "O1", True),
    (nn.LayerNorm, "O", False)])
def test_kinds_are_proved_and_refuted(norm: type[nn.Module], kind: str, good: bool) -> None:
    space = WeightSpace.parse(
        f"space v1\ngroup m = {kind}(8)\ngroup n = S(6)\ninside.weight: m 5!\ninside.bias: m\n"
        "up.weight: n m\nup.bias: n\ndown.weight: m n\ndown.bias: m\n"
        "out.weight: 3! m\nout.bias: 3!")
    found = verify(Normed(norm), space, torch.randn(4, 5))
    assert found.ok is good
    assert (found.max_error < 1e-12) is good
    assert found.controls.detected == (2 if good else 0)  # amid errors nothing is told apart


def test_neurons_behind_an_activation_do_not_turn() -> None:
    space = WeightSpace.parse("space v1\ngroup n = O(6)\n0.weight: n 4!\n0.bias: n\n"
                              "2.weight: 3! n\n2.bias: 3!")
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert not verify(net, space, torch.randn(5, 4)).ok
