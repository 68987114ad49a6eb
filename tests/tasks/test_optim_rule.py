"""The rules: the fast path against the plain one, equivariance, what context needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metanet.errors import MetanetError
from metanet.nn.checks import assert_equivariant, random_permutations
from metanet.symmetry import WeightSpace, infer
from metanet.tasks.optimize import LearnedOptimizer, fresh, fresh_structured
from metanet.tasks.optimize import stream as streaming
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.pools import IN, OUT, Pools
from metanet.tasks.optimize.rule import State, Tables, observe, update
from metanet.tasks.optimize.spec import BASE, LEAST, Net, Spec
from metanet.tasks.optimize.structured import Structured, WeightRule, restrict

TEXTS = {
    "mlp": "space v1\ngroup a = S(5)\ngroup b = S(4)\n0.bias: a\n0.weight: a 6!\n2.bias: b\n"
           "2.weight: b a\n4.bias: 3!\n4.weight: 3! b\n",
    "conv": "space v1\ngroup a = S(4)\ngroup b = S(3)\nc.weight: a 2! 3! 3!\nc.bias: a\n"
            "d.weight: b a 3! 3!\nd.bias: b\nf.weight: 5! (b 4!)\nf.bias: 5!\n",
    "heads": "space v1\ngroup h = S(2)\ngroup d = S(3) / h\ngroup v = S(3) / h\ngroup m = S(5)\n"
             "a.in: (h d/h + h d/h + h v/h) m\na.out: m (h v/h)\nn.weight: m\ne: 7! m\n",
}


def random_theta(spec: Spec, seed: int = 0) -> Tensor:
    theta = spec.start(seed).double()
    return theta + 0.4 * torch.randn(len(theta), dtype=torch.float64)


def random_history(spec: Spec, layout: Layout, steps: int = 3) -> tuple[Tensor, list[Tensor]]:
    p = torch.randn(1, layout.total, dtype=torch.float64)
    return p, [torch.randn_like(p) for _ in range(steps)]


def run(spec: Spec, theta: Tensor, tables: Tables, p: Tensor, gradients: list[Tensor]) -> Tensor:
    state = State.zero(spec, tables.layout, p)
    for g in gradients:
        state = observe(spec, g, state)
    return update(spec, theta[None], tables, p, gradients[-1], state)


def moved(space: WeightSpace, layout: Layout, seed: int = 0) -> Callable[[Tensor], Tensor]:
    element = random_permutations(space, seed)
    return lambda flat: layout.pack(list(element.apply(
        {k: v[0] for k, v in layout.named(flat).items()}).values()))[None]


def layout_of(space: WeightSpace) -> Layout:
    return Layout(tuple(space.tensors), tuple(t.shape for t in space.tensors.values()))


SPECS = (Spec("element"), Spec("context"), Spec("context", design=2))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_rules_are_equivariant(name: str, spec: Spec) -> None:
    space = WeightSpace.parse(TEXTS[name])
    layout = layout_of(space)
    tables, theta = Tables.of(spec, layout, space), random_theta(spec)
    p, gradients = random_history(spec, layout)
    act = moved(space, layout)
    want = act(run(spec, theta, tables, p, gradients))
    got = run(spec, theta, tables, act(p), [act(g) for g in gradients])
    assert float((want - got).abs().max() / want.abs().max()) < 1e-10


def alone(layout: Layout, flat: Tensor, tensor: int, axis: int) -> Tensor:
    """One axis of one tensor rolled: no symmetry of the network."""
    views = layout.views(flat)
    views[tensor] = views[tensor].roll(1, axis + 1)
    return layout.pack(views, 1)


def test_context_needs_the_coupling() -> None:
    """Negative control: rows of one tensor moved alone are seen by ``context`` and by it only."""
    space = WeightSpace.parse(TEXTS["mlp"])
    layout = layout_of(space)
    place = layout.names.index("2.weight")
    seen = {}
    for spec in SPECS:
        tables, theta = Tables.of(spec, layout, space), random_theta(spec)
        p, gradients = random_history(spec, layout)
        want = alone(layout, run(spec, theta, tables, p, gradients), place, 0)
        got = run(spec, theta, tables, alone(layout, p, place, 0),
                  [alone(layout, g, place, 0) for g in gradients])
        seen[spec.kind, spec.design] = float((want - got).abs().max() / want.abs().max())
    assert seen["element", 1] < 1e-10
    assert seen["context", 1] > 1e-4
    assert seen["context", 2] > 1e-4


def test_pools_by_hand() -> None:
    space = WeightSpace.parse(TEXTS["mlp"])
    layout = layout_of(space)
    pools = Pools(layout, space)
    flat = torch.randn(1, layout.total, dtype=torch.float64)
    t = {k: v[0] for k, v in layout.named(flat).items()}
    first = pools.ids[OUT][layout.starts[layout.names.index("0.bias")]]
    sums = pools.sums(flat)[0, :, first:first + 5]
    torch.testing.assert_close(sums[OUT], t["0.bias"] + t["0.weight"].sum(1))
    torch.testing.assert_close(sums[IN], t["2.weight"].sum(0))
    heads = Pools(layout_of(WeightSpace.parse(TEXTS["heads"])), WeightSpace.parse(TEXTS["heads"]))
    # 0, seven private rows of e, m(5), h·d (6), h·v (6), and nothing else.
    assert heads.n == 1 + 7 + 5 + 6 + 6


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("block", [4, 40, 4096])
def test_stream_is_the_rule(spec: Spec, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one tensor, of pieces of one, of several: the same numbers as the plain rule."""
    monkeypatch.setattr(streaming, "BLOCK", block)
    space = WeightSpace.parse(TEXTS["conv"])
    layout = layout_of(space)
    tables, theta = Tables.of(spec, layout, space), random_theta(spec)
    p, gradients = random_history(spec, layout)
    want = run(spec, theta, tables, p, gradients)[0]
    own = Tables.of(spec, layout, space)
    stream = streaming.Stream(Net(spec, theta.float()), own, torch.device("cpu"))
    buffers = streaming.Buffers(own, spec.decays, torch.device("cpu"))
    buffers.rows[0] = p[0]
    for g in gradients:
        buffers.rows[1] = g[0]
        streaming.observe(buffers, spec.decays, spec.square)
    found = stream.propose(buffers)
    factor = BASE * found.length / found.own * found.log.exp()
    got = found.raw * layout.spread(factor)
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=float(want.abs().max()) * 2e-4)


@pytest.mark.parametrize("kind", ["element", "context"])
def test_steps_on_wider_matrices_are_shorter(kind: str) -> None:
    """A net of width 3: a matrix of 6 columns moves half as far, one of 3 columns as before."""
    space = WeightSpace.parse("space v1\ngroup a = S(4)\nx: a 6!\ny: 3! a\nz: a 3!\nb: a\n")
    layout, free = layout_of(space), Spec(kind)
    bound, theta = Spec(kind, width=3), random_theta(free)
    p, gradients = random_history(free, layout)
    changes = [layout.named(run(spec, theta, Tables.of(spec, layout, space), p, gradients))
               for spec in (free, bound)]
    factors = {name: changes[1][name] / changes[0][name] for name in layout.names}
    for name, factor in {"x": 1 / 2, "y": 3 / 4, "z": 1, "b": 1}.items():
        torch.testing.assert_close(factors[name], torch.full_like(factors[name], factor))


@pytest.mark.parametrize("kind", ["element", "context"])
def test_steps_reach_no_further_than_told(kind: str) -> None:
    """Steps of more than a share of a tensor's size are as long as that; shorter ones stay."""
    space = WeightSpace.parse("space v1\ngroup a = S(4)\nx: a 6!\ny: 3! a\nz: a 3!\nb: a\n")
    layout, free = layout_of(space), Spec(kind)
    theta = random_theta(free)
    p, gradients = random_history(free, layout)
    p = p * layout.spread(torch.tensor([[1.0, 1e-2, 3.0, 0.0]]))
    tables = Tables.of(free, layout, space)
    before = run(free, theta, tables, p, gradients)
    length, size = ((layout.mean(v * v)).sqrt() for v in (before, p))
    middle = float((length / size.clamp(min=LEAST)).median())
    after = run(replace(free, reach=middle), theta, tables, p, gradients)
    most = middle * size.clamp(min=LEAST)
    want = before * layout.spread((most / length).clamp(max=1))
    torch.testing.assert_close(after, want, rtol=1e-6, atol=0)
    assert 0 < int((length > most).sum()) < length.numel()


def test_rule_can_be_differentiated() -> None:
    space = WeightSpace.parse(TEXTS["mlp"])
    layout, spec = layout_of(space), Spec("context")
    theta = random_theta(spec).requires_grad_()
    p, gradients = random_history(spec, layout)
    run(spec, theta, Tables.of(spec, layout, space), p, gradients).square().sum().backward()
    assert theta.grad is not None
    assert bool(theta.grad.isfinite().all())
    assert float(theta.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["unf", "gmn", "mlp"])
def test_weight_rules_are_equivariant(kind: str) -> None:
    space = WeightSpace.parse(TEXTS["mlp"])
    assert_equivariant(WeightRule(Spec(kind, 6, 2), space), coupled=kind != "mlp")


@pytest.mark.parametrize("kind", ["unf", "gmn", "mlp"])
@pytest.mark.parametrize("base", ["adam", "momentum"])
def test_weight_optimizers_are_equivariant(kind: str, base: str) -> None:
    space = WeightSpace.parse(TEXTS["conv"])
    layout = layout_of(space)
    spec = Spec(kind, 6, 2, base)
    one = Structured(spec, layout, space)
    one.module.double()
    theta = torch.randn(1, sum(q.numel() for q in one.module.parameters()), dtype=torch.float64)
    p, gradients = random_history(spec, layout)
    act = moved(space, layout)

    def go(start: Tensor, seen: list[Tensor]) -> Tensor:
        state = State.zero(spec, layout, start)
        for g in seen:
            state = observe(spec, g, state)
        return one.update(theta / 3, start, seen[-1], state)

    want, got = act(go(p, gradients)), go(act(p), [act(g) for g in gradients])
    assert float((want - got).abs().max() / want.abs().max()) < 1e-10


@pytest.mark.parametrize("kind", ["unf", "gmn"])
def test_weight_optimizer_trains_and_stays_with_its_network(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    twin = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    twin.load_state_dict(model.state_dict())
    space = infer(model)
    net = fresh_structured(kind, space, hidden=4, depth=2)
    x, y = torch.randn(32, 6), torch.randn(32, 3)
    pairs = [(model, LearnedOptimizer(model, net)),
             (twin, torch.optim.Adam(twin.parameters(), lr=1e-3))]
    for m, optimizer in pairs:
        for _ in range(5):
            optimizer.zero_grad()
            (m(x) - y).square().mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)  # untrained, it is Adam
    other = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = LearnedOptimizer(other, net)
    other(x).sum().backward()
    with pytest.raises(MetanetError, match="another network"):
        optimizer.step()


def test_restrict_leaves_running_statistics_out() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    space = infer(model)
    names = tuple(name for name, _ in model.named_parameters())
    assert set(restrict(space, names).tensors) == set(names)
    with pytest.raises(MetanetError, match="does not know"):
        restrict(space, (*names, "absent"))


def test_context_reads_batchnorm_models() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = LearnedOptimizer(model, fresh("context"))
    model(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    assert "1 groups" in optimizer.structure
