"""Kinship: exact p-values are uniform on independent models, and tiny on kin."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import run_command
from safetensors.torch import save_file
from scipy.stats import kstest
from torch import Tensor, nn

import metanet
from metanet.errors import SymmetryError
from metanet.tasks.merge import related
from metanet.tasks.merge.fixed_points import log_tail, order_log_p
from tests.tasks.merge_nets import Attention, mlp, state

SPACE = metanet.infer(mlp(), torch.randn(3, 8))


def drawn(seed: int) -> dict[str, Tensor]:
    """Weights with a signal that all models share, as models of one task do."""
    shared = torch.Generator().manual_seed(99)
    own = torch.Generator().manual_seed(seed)
    order = SPACE.random(seed)
    common = {n: torch.randn(t.shape, generator=shared) for n, t in mlp().state_dict().items()}
    moved = order.apply(common)
    return {n: t + 1.5 * torch.randn(t.shape, generator=own) for n, t in moved.items()}


def tuned(model: dict[str, Tensor], size: float = 0.1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {n: t + size * t.std() * torch.randn(t.shape, generator=rng) for n, t in model.items()}


@pytest.mark.parametrize(("n", "copies"), [(4, 1), (5, 1), (6, 1), (3, 2), (4, 2)])
def test_tails_by_counting(n: int, copies: int) -> None:
    every = [sum(i == j for i, j in enumerate(p)) for p in itertools.permutations(range(n))]
    sums = [sum(c) for c in itertools.product(every, repeat=copies)]
    for count in range(n * copies + 2):
        share = np.mean([s >= count for s in sums])
        found = math.exp(log_tail(count, n, copies))
        assert found == pytest.approx(share, rel=1e-9) if share else found == 0


def test_tails_of_large_groups() -> None:
    assert log_tail(1000, 1000) == pytest.approx(-math.lgamma(1001), rel=1e-6)
    assert log_tail(50, 64, 8) == pytest.approx(50 * math.log(8) - math.lgamma(51))


def test_order_p_of_random_tables_is_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [math.exp(order_log_p(rng.permutation(12)[None], rng, 500)[2]) for _ in range(300)]
    assert kstest(found, "uniform").pvalue > 0.01


def test_independent_models_have_uniform_p() -> None:
    found = [related(drawn(2 * i), drawn(2 * i + 1), SPACE, seed=i).p_value for i in range(120)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert min(found) > 1e-4


@pytest.mark.parametrize("size", [0.0, 0.1, 0.5])
def test_kin_are_told(size: float) -> None:
    a = drawn(0)
    copy = tuned(a, size)
    found = related(a, copy, SPACE)
    assert found.log10_p < -6
    assert found.related
    if size <= 0.1:
        moved = related(a, SPACE.random(4).apply(copy), SPACE)
        assert moved.log10_p < -6
        assert moved.order_p > 1e-4  # the order is lost: the orbit tells
        assert moved.orbit_p < 1e-9


def test_partly_retrained() -> None:
    a = drawn(0)
    copy = a | {n: drawn(7)[n] for n in ("4.weight", "4.bias", "2.weight", "2.bias")}
    assert related(a, copy, SPACE).log10_p < -6
    assert related(a, SPACE.random(4).apply(copy), SPACE).log10_p < -6


def test_a_stem_alone_is_told_whatever_its_order() -> None:
    """Everything after the second layer drawn anew, the rest tuned: halves of a layer bear witness.
    """
    space = metanet.infer(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(),
                                        nn.Linear(40, 4)), torch.randn(3, 8))
    shapes = {n: spec.shape for n, spec in space.tensors.items()}
    a, b = ({n: torch.randn(s, generator=torch.Generator().manual_seed(i + j))
             for i, (n, s) in enumerate(shapes.items())} for j in (0, 100))
    copy = tuned(a, 0.2) | {n: b[n] for n in ("4.weight", "4.bias", "2.bias")}
    assert related(a, space.random(4).apply(copy), space).log10_p < -6
    assert related(a, b, space).orbit_p == 1.0


def test_orbits_do_not_depend_on_order() -> None:
    a, b = drawn(0), drawn(1)
    first = related(a, b, SPACE)
    moved = related(a, SPACE.random(4).apply(b), SPACE)
    assert first.orbit_p == pytest.approx(moved.orbit_p)
    assert [r.agreement for r in first.per_group] == [r.agreement for r in moved.per_group]


def test_fibred_groups() -> None:
    space = metanet.infer(Attention(), torch.randn(2, 3, 6))
    a = state(Attention(0))
    assert related(a, tuned(a), space).log10_p < -6
    found = [related(a, state(Attention(i)), space, seed=i).p_value for i in range(1, 40)]
    assert kstest(found, "uniform").pvalue > 0.01


def test_sorted_models_are_refused() -> None:
    big = nn.Sequential(nn.Linear(8, 60), nn.ReLU(), nn.Linear(60, 4))
    space = metanet.infer(big, torch.randn(3, 8))
    a, b = state(big), {n: torch.randn_like(t) for n, t in big.state_dict().items()}
    order = b["0.weight"].norm(dim=1).argsort().numpy()
    sorted_b = metanet.GroupElement(space, {space.groups[0].label: order}).apply(b)
    sorted_b["0.weight"] *= torch.linspace(1, 9, 60)[:, None]
    found = related(a, sorted_b, space)
    assert found.refused is not None
    assert "order of their norms" in found.refused
    assert found.p_value is None
    assert related(a, b, space).refused is None


def test_nothing_to_permute_is_refused() -> None:
    net = nn.Linear(3, 2)
    found = related(net, net, metanet.infer(net, torch.randn(2, 3)))
    assert found.refused == "the space has no group"


def test_constant_tensors_are_no_evidence() -> None:
    """Norms at one and biases at zero are equal in all models."""
    a, b = (drawn(i) | {"0.bias": torch.zeros(16), "2.bias": torch.zeros(12)} for i in (0, 1))
    assert related(a, b, SPACE).orbit_p == 1.0


def test_few_tensors_are_read() -> None:
    found = related(drawn(0), tuned(drawn(0)), SPACE, budget=4 * (16 * 8 + 16 + 12 + 60))
    assert found.tensors < len(SPACE.tensors)
    assert found.related


def test_by_layer() -> None:
    a = drawn(0)
    copy = a | {n: drawn(7)[n] for n in ("4.weight", "4.bias")}
    rows = {r["tensor"]: r for r in related(a, copy, SPACE, by_layer=True).by_layer}
    assert rows["0.weight"]["p_value"] == 0.005
    assert rows["4.weight"]["p_value"] > 0.01


def test_what_cannot_be_tested(tmp_path: Path) -> None:
    with pytest.raises(SymmetryError, match="which symmetry"):
        related(drawn(0), drawn(1))
    with pytest.raises(SymmetryError, match="finite"):
        related(drawn(0), drawn(1) | {"0.bias": torch.full((16,), math.nan)}, SPACE)
    with pytest.raises(SymmetryError, match="not in one of the models"):
        related(drawn(0), {"0.bias": torch.zeros(16)}, SPACE)


def test_command(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{n}.safetensors" for n in "abc")
    save_file(drawn(0), a)
    save_file(tuned(drawn(0)), b)
    save_file(drawn(1), c)
    kin = run_command("related", a, b, "--arch", "mlp", "--json", "--by-layer")
    assert kin.code == 0
    assert kin.json.keys() >= {"p_value", "statistic", "per_group", "assumptions", "refused"}
    assert kin.json["p_value"] < 1e-6
    text = run_command("related", a, c, "--arch", "mlp")
    assert "no evidence of kinship" in text.out
    assert "assuming that" in text.out


def test_two_public_nets_of_one_initial_seed(shared_data: Path) -> None:
    """Two authors, one tutorial, one seed: kin; a third net is not."""
    folder = shared_data / "wild_mnist_cnn21k"
    files = [folder / f"net_{i}.pth" for i in ("00", "02", "01")]
    assert related(files[0], files[1], arch="mnist-cnn21k").log10_p < -50
    assert related(files[0], files[2], arch="mnist-cnn21k").p_value > 1e-3
