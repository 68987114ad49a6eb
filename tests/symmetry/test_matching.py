"""Matching: planted elements come back, the objective never falls, controls fail."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry import GroupElement, Match, WeightSpace, distance, match
from metanet.testing import random_tensors
from tests.symmetry.strategies import ALGEBRA, SEEDS, spaces


def parse(text: str) -> WeightSpace:
    return WeightSpace.parse("space v1\n" + text)


MLP = parse("group a = S(40)\ngroup b = S(30)\n0.w: a 20!\n0.b: a\n1.w: b a\n1.b: b\n2.w: 5! b")
CNN = parse("""group a = S(10)
group b = S(20)
group f = S(50)
conv1.weight: a 1! 5! 5!
conv1.bias: a
conv2.weight: b a 5! 5!
conv2.bias: b
fc1.weight: f (b 16!)
fc1.bias: f
fc2.weight: 10! f
fc2.bias: 10!
""")
ATTENTION = parse("""group h = S(4)
group d = S(6) / h
group v = S(7) / h
group m = S(20)
in_proj: (h d/h + h d/h + h v/h) m
in_bias: (h d/h + h d/h + h v/h)
out_proj: m (h v/h)
embed: 30! m
head = embed
""")
EXPERTS = parse("""group e = S(3)
group h = S(3) / e
group d = S(4) / (e h)
group f = fixed(2) "two sides"
group k = S(4) / (f e)
gate: e 5!
q: (e h/e d/(e h)) 6!
side: (f e k/(f e)) 6!
""")
RECURRENT = parse("group h = S(24)\nih: h 8!\nhh: h h\nb: h\no: 5! h")
SIREN = parse(
    "group a = signed(32)\ngroup b = signed(32)\n0.w: a 2!\n0.b: a\n1.w: b a\n1.b: b\n2.w: 1! b"
)
NORM = parse("group a = S(12)\nw: a 9!\nn.weight: a\nn.running_mean: a\nn.running_var: a\no: 4! a")
SPACES = {"mlp": MLP, "cnn": CNN, "attention": ATTENTION, "experts": EXPERTS,
          "recurrent": RECURRENT, "siren": SIREN, "norm": NORM}


def noisy(tensors: dict, size: float, space: WeightSpace) -> dict:
    moved = {k: t + size * torch.randn_like(t) for k, t in tensors.items()}
    return moved | {alias: moved[owner] for alias, owner in space.aliases.items()}


def objective(a: dict, b: dict, element: GroupElement) -> float:
    moved = element.apply(b)
    return sum(float((a[n] * moved[n]).sum()) for n in element.space.tensors)


def rises(found: Match) -> bool:
    return all(y >= x for x, y in zip(found.history, found.history[1:], strict=False))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_elements_come_back(name: str, noise: float) -> None:
    space = SPACES[name]
    for seed in range(3):
        a, g = random_tensors(space, seed), space.random(seed + 10)
        b = noisy(g.apply(a), noise, space)
        found = match(a, b, space)
        assert (found.element @ g).is_identity(), (name, seed)
        assert found.converged and rises(found)
        assert all(cosine > 0.98 for cosine in found.matched.values())
        apart = distance(a, b, space)
        assert apart.relative == pytest.approx(noise, abs=0.03) and apart.naive > 3 * apart.aligned
        if not noise:
            assert apart < 1e-12 and apart <= 0.0


@settings(ALGEBRA, max_examples=80)
@given(spaces("S", "signed", "positive"), SEEDS)
def test_random_spaces(space: WeightSpace, seed: int) -> None:
    """Any space at all: the objective is what it claims, never falls, and beats the identity."""
    a, b = random_tensors(space, seed), random_tensors(space, seed + 1)
    found = match(a, b, space, restarts=2, seed=seed)
    assert rises(found) and found.converged
    assert found.objective == max(found.objectives)
    assert found.objective == pytest.approx(objective(a, b, found.element), abs=1e-9)
    assert found.objective >= objective(a, b, space.identity()) - 1e-9
    same = match(a, a, space, init=space.identity())
    assert same.element.is_identity()  # ties and all: the start is kept unless truly beaten
    assert all(c == pytest.approx(1.0) for c in same.matched.values())


def test_nested_assignment_is_the_optimum() -> None:
    """Heads with their inner orders, against every outer permutation tried by hand."""
    from itertools import permutations

    from scipy.optimize import linear_sum_assignment

    space = parse("group h = S(4)\ngroup d = S(3) / h\nw: (h d/h) 5!")
    a, b = random_tensors(space, 0), random_tensors(space, 1)
    left, right = a["w"].reshape(4, 3, 5).numpy(), b["w"].reshape(4, 3, 5).numpy()
    pairs = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            gain = left[i] @ right[j].T
            pairs[i, j] = gain[linear_sum_assignment(gain, maximize=True)].sum()
    best = max(sum(pairs[i, p[i]] for i in range(4)) for p in permutations(range(4)))
    assert match(a, b, space).objective == pytest.approx(best)


def test_signs_are_the_optimum() -> None:
    """One signed group, against every permutation, each with its best signs."""
    from itertools import permutations

    space = parse("group s = signed(5)\nw: s 3!\nn: s^2")
    a, b = random_tensors(space, 0), random_tensors(space, 1)
    gain = (a["w"] @ b["w"].T).abs() + torch.outer(a["n"], b["n"])
    best = max(float(sum(gain[i, p[i]] for i in range(5))) for p in permutations(range(5)))
    assert match(a, b, space).objective == pytest.approx(best)


def test_restarts_only_help_and_repeat() -> None:
    a, b = random_tensors(RECURRENT, 1), random_tensors(RECURRENT, 2)
    one, several = match(a, b, RECURRENT), match(a, b, RECURRENT, restarts=4, seed=3)
    assert several.objective >= one.objective and len(several.objectives) == 5
    assert several.objectives == match(a, b, RECURRENT, restarts=4, seed=3).objectives
    assert not match(a, b, RECURRENT, max_sweeps=1, init=RECURRENT.identity()).converged


def test_init_is_where_it_starts() -> None:
    a, g = random_tensors(SIREN, 1), SIREN.random(2)
    found = match(a, g.apply(a), SIREN, init=g.inverse())
    assert found.sweeps == 1 and found.element == g.inverse() and len(found.objectives) == 1


def test_unrelated_networks_stay_apart() -> None:
    """The control: nothing is recovered where nothing was planted."""
    a, b = random_tensors(CNN, 1), random_tensors(CNN, 2)
    apart = distance(a, b, CNN)
    assert 1.1 < apart.relative < 2**0.5 and apart.aligned < apart.naive
    assert all(cosine < 0.5 for cosine in apart.match.matched.values())


def test_running_statistics_follow_but_do_not_count() -> None:
    a, g = random_tensors(NORM, 1), NORM.random(5)
    b = g.apply(a)
    b["n.running_var"] = b["n.running_var"] * 1000 + 7
    found = match(a, b, NORM)
    assert (found.element @ g).is_identity() and distance(a, b, NORM).aligned == 0.0


def test_modules_half_precision_and_refusals() -> None:
    space = parse("group a = S(16)\n0.weight: a 6!\n0.bias: a\n2.weight: 3! a\n2.bias: 3!")
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    g = space.random(1)
    moved = g.apply({k: v.detach().to(torch.bfloat16) for k, v in net.state_dict().items()})
    assert (match(net, moved, space, dtype=torch.float32).element @ g).is_identity()
    with pytest.raises(SymmetryError, match=r"0.bias.*finite"):
        match(net, moved | {"0.bias": torch.full((16,), float("nan"))}, space)
    with pytest.raises(SpaceMismatch, match="missing"):
        match(net, {}, space)
    with pytest.raises(SpaceMismatch, match="another space"):
        match(net, net, space, init=MLP.identity())
    with pytest.raises(SymmetryError, match="restarts"):
        match(net, net, space, restarts=0)
    with pytest.raises(SymmetryError, match="cannot be matched"):
        match({"a": torch.ones(4)}, {"a": torch.ones(4)}, parse("group r = GL(4)\na: r"))
    scaled = parse("group p = positive(4)\na: p")
    with pytest.raises(SymmetryError, match="rescale"):
        match({"a": torch.ones(4)}, {"a": torch.ones(4)}, scaled, init=scaled.random(0))


def test_a_wide_mlp_in_a_second() -> None:
    space = parse(
        "group a = S(400)\ngroup b = S(200)\ngroup c = S(100)\n0.w: a 784!\n1.w: b a\n"
        "2.w: c b\n3.w: 10! c"
    )
    a, g = random_tensors(space, 1, torch.float32), space.random(3)
    b = g.apply(a)
    start = time.perf_counter()
    found = match(a, b, space)
    assert time.perf_counter() - start < 5  # 0.3 s where nobody else computes
    assert (found.element @ g).is_identity()


def test_wild_networks(shared_data: Path) -> None:
    """Independently trained networks come closer by matching; a scrambled copy is found."""
    folder = shared_data / "wild_mnist_cnn21k"
    nets = [torch.load(folder / f"net_{i:02}.pth", map_location="cpu", weights_only=True)
            for i in range(4)]
    g = CNN.random(4)
    assert (match(nets[0], g.apply(nets[0]), CNN).element @ g).is_identity()
    for other in (nets[1], nets[3]):
        apart = distance(nets[0], other, CNN)
        again = distance(nets[0], g.apply(other), CNN)
        assert apart.relative > 1.0 and apart.aligned < 0.9 * apart.naive
        assert again.aligned == pytest.approx(apart.aligned, rel=0.02)
    # Two authors, one seed: these two began at the same weights, and a scramble does not hide it.
    hidden = distance(nets[0], g.apply(nets[2]), CNN)
    assert hidden.relative < 0.4 and hidden.naive > 4 * hidden.aligned
    assert hidden.aligned == pytest.approx(distance(nets[0], nets[2], CNN).naive)


def test_sirens_of_one_orbit(shared_data: Path) -> None:
    files = sorted((shared_data / "siren_orbit").glob("*.pth"))[:4]
    space = parse("group a = signed(32)\ngroup b = signed(32)\nseq.0.weight: a 2!\nseq.0.bias: a\n"
                  "seq.1.weight: b a\nseq.1.bias: b\nseq.2.weight: 1! b\nseq.2.bias: 1!")
    first, *others = [torch.load(f, map_location="cpu", weights_only=True) for f in files]
    for other in others:
        apart = distance(first, other, space)
        assert apart.aligned == 0.0 and apart.naive > 0.1
