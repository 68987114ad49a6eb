"""One contract for every method: a reference in few lines, its invariances, blocks or whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from metanet.errors import MetanetError
from metanet.tasks.merge.methods import METHODS, Stack, base, method, register
from metanet.tasks.merge.methods.threshold import keep_count, thresholds

N = 24


def tensors(count: int, n: int = N, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(n, generator=rng)
    return [root + 0.5 * torch.randn(n, generator=rng) for _ in range(count)], root


def run(name: str, models: list[Tensor], root: Tensor | None, whole: dict[str, object],
        each: dict[str, list[float]], seed: int = 0) -> Tensor:
    chosen = method(name)
    rows = [{key: values[i] for key, values in each.items()} for i in range(len(models))]
    stack = Stack(models, root if chosen.base else None, "w", seed)
    return chosen(stack, chosen.values(whole, rows)).reshape(models[0].shape)


# ---------------------------------------------------------------- references, in float64 numpy


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def ref_linear(m: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    return (0.2 * m[0] + 0.5 * m[1] + 0.7 * m[2]) / 1.4


def ref_slerp(m: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    angle = np.arccos(unit(m[0]) @ unit(m[1]))
    return (np.sin(0.7 * angle) * m[0] + np.sin(0.3 * angle) * m[1]) / np.sin(angle)


def ref_multislerp(m: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    w = np.array([0.2, 0.5, 0.7]) / 1.4
    q = unit(sum(wi * unit(v) for wi, v in zip(w, m, strict=True)))
    step = np.zeros_like(q)
    for wi, v in zip(w, m, strict=True):
        angle = np.arccos(q @ unit(v))
        step += wi * angle * unit(unit(v) - (q @ unit(v)) * q)
    size = np.linalg.norm(step)
    point = np.cos(size) * q + np.sin(size) * step / size
    return point * (w @ [np.linalg.norm(v) for v in m])


def ref_karcher(m: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    """By brute force: least weighted sum of squared angles over all directions."""
    w = np.array([0.2, 0.5, 0.7]) / 1.4

    def cost(x: np.ndarray) -> float:
        return float(sum(wi * np.arccos(np.clip(unit(x) @ unit(v), -1, 1)) ** 2
                         for wi, v in zip(w, m, strict=True)))

    best = minimize(cost, sum(m), method="BFGS", options={"gtol": 1e-9}).x
    return unit(best) * (w @ [np.linalg.norm(v) for v in m])


def ref_task(m: list[np.ndarray], b: np.ndarray) -> np.ndarray:
    return b + 0.8 * (0.2 * (m[0] - b) + 0.5 * (m[1] - b) + 0.7 * (m[2] - b))


def ref_ties(m: list[np.ndarray], b: np.ndarray) -> np.ndarray:
    """Element by element, as the paper says it."""
    weights, out = (0.2, 0.5, 0.7), b.copy()
    trimmed = []
    for v in m:
        delta = v - b
        order = np.argsort(-np.abs(delta))
        delta[order[N // 2:]] = 0
        trimmed.append(delta)
    for e in range(N):
        column = [w * d[e] for w, d in zip(weights, trimmed, strict=True)]
        sign = np.sign(sum(column))
        chosen = [(w, c) for w, c in zip(weights, column, strict=True) if c * sign > 0]
        if chosen:
            out[e] += sum(c for _, c in chosen) / sum(w for w, _ in chosen)
    return out


def ref_pass(m: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    return 1.5 * m[0]


W = {"weight": [0.2, 0.5, 0.7]}
HALF = {**W, "density": [0.5, 0.5, 0.5]}
Reference = Callable[[list[np.ndarray], np.ndarray], np.ndarray]
CASES: dict[str, tuple[int, dict[str, object], dict[str, list[float]], Reference]] = {
    "linear": (3, {}, W, ref_linear),
    "slerp": (2, {"t": 0.3}, {}, ref_slerp),
    "multislerp": (3, {}, W, ref_multislerp),
    "karcher": (3, {}, W, ref_karcher),
    "task_arithmetic": (3, {"lambda": 0.8}, W, ref_task),
    "ties": (3, {}, HALF, ref_ties),
    "dare_linear": (3, {"lambda": 0.8}, W, ref_task),  # density 1 drops nothing
    "dare_ties": (3, {"normalize": True}, W, lambda m, b: ref_all_agree(m, b)),
    "passthrough": (1, {}, {"scale": [1.5]}, ref_pass),
}


def ref_all_agree(m: list[np.ndarray], b: np.ndarray) -> np.ndarray:
    weighted = np.array([[0.2], [0.5], [0.7]]) * np.array([v - b for v in m])
    agree = weighted * weighted.sum(0) > 0
    share = (np.array([[0.2], [0.5], [0.7]]) * agree).sum(0)
    return b + (weighted * agree).sum(0) / share


def test_every_method_has_a_case_and_a_source() -> None:
    assert CASES.keys() == METHODS.keys()
    assert all(m.source for m in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_reference(name: str) -> None:
    count, whole, each, reference = CASES[name]
    models, root = tensors(count)
    expected = reference([m.double().numpy() for m in models], root.double().numpy())
    got = run(name, models, root, whole, each)
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", METHODS)
def test_permuting_neurons_permutes_the_result(name: str) -> None:
    count, whole, each, _ = CASES[name]
    models, root = tensors(count)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    plain = run(name, models, root, whole, each)
    moved = run(name, [m[order] for m in models], root[order], whole, each)
    torch.testing.assert_close(moved, plain[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "passthrough"])
def test_order_of_models_does_not_matter(name: str) -> None:
    count, whole, each, _ = CASES[name]
    models, root = tensors(count)
    back = {key: values[::-1] for key, values in each.items()}
    turned = {**whole, "t": 1 - float(whole["t"])} if "t" in whole else whole
    torch.testing.assert_close(run(name, models[::-1], root, turned, back),
                               run(name, models, root, whole, each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "passthrough"])
def test_equal_models_give_that_model(name: str) -> None:
    count, whole, _, _ = CASES[name]
    (model, *_), root = tensors(1)
    share = {"weight": [1 / count] * count} if name != "slerp" else {}
    got = run(name, [model] * count, root, {"t": 0.3} if "t" in whole else {}, share)
    torch.testing.assert_close(got, model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_blocks_equal_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, whole, each, _ = CASES[name]
    if "density" in [p.name for p in METHODS[name].parameters]:
        each = {**each, "density": [0.4] * count}
    models, root = tensors(count, 4096)
    once = run(name, models, root, whole, each)
    monkeypatch.setattr(base, "BLOCK", 512)
    parts = run(name, models, root, whole, each)
    if METHODS[name].element_wise:
        assert torch.equal(parts, once)
    torch.testing.assert_close(parts, once, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_not_written_to(name: str) -> None:
    count, whole, each, _ = CASES[name]
    models, root = tensors(count)
    before = [t.clone() for t in (*models, root)]
    run(name, models, root, whole, each)
    assert all(torch.equal(a, b) for a, b in zip(before, (*models, root), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    count, whole, each, _ = CASES[name]
    models, root = tensors(count)
    half, low = [m.bfloat16() for m in models], root.bfloat16()
    got = run(name, half, low, whole, each)
    assert got.dtype == torch.float32
    assert torch.equal(got, run(name, [m.float() for m in half], low.float(), whole, each))


@pytest.mark.parametrize("name", METHODS)
def test_empty_and_zero_tensors(name: str) -> None:
    count, whole, each, _ = CASES[name]
    assert run(name, [torch.empty(0)] * count, torch.empty(0), whole, each).numel() == 0
    zeros = run(name, [torch.zeros(5)] * count, torch.zeros(5), whole, each)
    assert torch.equal(zeros, torch.zeros(5))


# ---------------------------------------------------------------- single methods


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_two_models_are_slerp_of_directions(name: str) -> None:
    models, root = tensors(2)
    models = [m / m.norm() for m in models]
    torch.testing.assert_close(
        run(name, models, root, {}, {"weight": [0.7, 0.3]}),
        run("slerp", models, root, {"t": 0.3}, {}), rtol=1e-5, atol=1e-6)


def test_multislerp_with_base_acts_on_task_vectors() -> None:
    models, root = tensors(3)
    chosen = method("multislerp")
    values = chosen.values({}, [{"weight": w} for w in W["weight"]])
    with_base = chosen(Stack(models, root), values)
    alone = chosen(Stack([m - root for m in models]), values)
    torch.testing.assert_close(with_base, root + alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 0.93])
def test_threshold_is_that_of_a_full_sort(density: float) -> None:
    x = torch.randn(10_001, generator=torch.Generator().manual_seed(1))
    k = keep_count(x.numel(), density)
    found = thresholds(lambda: iter([[x[:5000]], [x[5000:]]]), [k], len(x))
    for sample in (x[::7], x[:50].abs() + 9, x[:50] * 0, -x[5:6]):  # good ones and misleading ones
        again = thresholds(lambda: iter([[x[:5000]], [x[5000:]]]), [k], len(x), [sample])
        assert again == found
    assert found == [float(x.abs().sort(descending=True).values[k - 1])]
    assert int((x.abs() >= found[0]).sum()) == k


def test_threshold_in_float64_and_with_ties() -> None:
    x = torch.tensor([1.0, -2.0, 2.0, 0.0, 1 + 1e-12], dtype=torch.float64)
    assert thresholds(lambda: iter([[x]]), [3], 5) == [float(x[4])]
    assert thresholds(lambda: iter([[x]]), [1], 5) == [2.0]
    assert thresholds(lambda: iter([[x, x]]), [5, 0], 5) == [0.0, float("inf")]


def test_dare_drops_the_right_share_and_rescales() -> None:
    models, root = [torch.full((20_000,), 3.0)], torch.full((20_000,), 1.0)
    got = run("dare_linear", models, root, {}, {"weight": [1.0], "density": [0.25]})
    assert set(got.tolist()) == {1.0, 9.0}
    assert abs(float((got == 9).float().mean()) - 0.25) < 0.015
    again = run("dare_linear", models, root, {}, {"weight": [1.0], "density": [0.25]})
    other = run("dare_linear", models, root, {}, {"weight": [1.0], "density": [0.25]}, seed=1)
    assert torch.equal(got, again)
    assert not torch.equal(got, other)


def test_density_zero_is_the_base() -> None:
    models, root = tensors(2)
    for name in ("ties", "dare_ties", "dare_linear"):
        got = run(name, models, root, {}, {"weight": [1, 1], "density": [0, 0]})
        assert torch.equal(got, root)


def test_refusals() -> None:
    with pytest.raises(MetanetError, match="no method 'tise'.*'ties'"):
        method("tise")
    with pytest.raises(MetanetError, match="needs the parameter 'weight' of every model"):
        method("linear").values({}, [{}])
    with pytest.raises(MetanetError, match="'t' must be a float from 0 to 1, not 1.5"):
        method("slerp").values({"t": 1.5}, [{}, {}])
    with pytest.raises(MetanetError, match="'normalize' must be a bool"):
        method("linear").values({"normalize": "yes"}, [{"weight": 1}])
    with pytest.raises(MetanetError, match="'weight' must be a float"):
        method("linear").values({}, [{"weight": float("nan")}])
    with pytest.raises(MetanetError, match="sum to zero"):
        run("linear", *tensors(2), {}, {"weight": [1.0, -1.0]})
    with pytest.raises(MetanetError, match="different shapes"):
        Stack([torch.zeros(2), torch.zeros(3)])


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(MetanetError, match="'slerp' already"):
        register(METHODS["slerp"])
