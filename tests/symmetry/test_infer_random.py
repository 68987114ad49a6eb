"""Random compositions of operations: what infer says is always proved, and never clashes."""

from __future__ import annotations

from collections.abc import Callable

import models
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetry_tools import signatures
from torch import Tensor, nn

from metanet.symmetry import WeightSpace
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.verify import verify_program


def _heads(n: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.unflatten(-1, (n, x.shape[-1] // n)).softmax(-1).flatten(-2)


# Steps keep the shape [batch, places, width]; some need a width that two and three divide.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "square": lambda x: x * x,
    "softmax": lambda x: x.softmax(-1),
    "heads2": _heads(2),
    "heads3": _heads(3),
    "turn": lambda x: x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
    "swap": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    "fold": lambda x: torch.cat((x[..., :4].tanh(), x[..., 4:]), -1),
    "centre": lambda x: x - x.mean(-1, keepdim=True),
    "shift": lambda x: F.pad(x, (2, 0))[..., : x.shape[-1]],
    "mix": lambda x: (x @ x.mT) @ x,
    "roll": lambda x: x.roll(1, -1),
    "cumsum": lambda x: x.cumsum(-1),
    "numbered": lambda x: x + torch.arange(x.shape[-1]),
    "write": lambda x: _written(x),
}
LEARNED = ("linear", "residual", "scale", "norm", "gate", "attention", "grouped", "wide")


def _written(x: Tensor) -> Tensor:
    room = torch.zeros_like(x)
    room[..., :6] = x[..., :6]
    return room + x


class Step(nn.Module):
    """One learned step of width 12."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        out = {"gate": 24, "attention": 36, "wide": 18}.get(kind, 12)
        self.a = nn.Linear(12, out) if kind not in ("scale", "norm", "grouped") else None
        self.b = nn.Linear(18, 12) if kind == "wide" else None
        self.norm = nn.LayerNorm(12) if kind == "norm" else None
        self.conv = nn.Conv1d(12, 12, 1, groups=3) if kind == "grouped" else None
        self.scale = nn.Parameter(torch.ones(12)) if kind == "scale" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "scale":
            return x * self.scale
        if self.norm is not None:
            return self.norm(x)
        if self.conv is not None:
            return self.conv(x.transpose(1, 2)).transpose(1, 2)
        y = self.a(x)
        if self.kind == "gate":
            return F.glu(y, -1)
        if self.kind == "attention":
            q, k, v = y.reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.b is not None:
            return self.b(y.relu())
        return x + y if self.kind == "residual" else y


class Chain(nn.Module):
    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.names = steps
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.steps = nn.ModuleList(Step(s) if s in LEARNED else nn.Identity() for s in steps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for name, step in zip(self.names, self.steps, strict=True):
            x = step(x) if name in LEARNED else PLAIN[name](x)
        return self.head(x)


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*PLAIN, *LEARNED, *LEARNED]), min_size=1, max_size=5))
def test_what_is_inferred_is_true(steps: list[str]) -> None:
    program = record(Chain(steps), X)
    space = infer_program(program)
    assert all("rule failed" not in u.op for u in space.meta.unsupported), space.meta.unsupported
    assert WeightSpace.parse(str(space)) == space
    found = verify_program(program, space, samples=1)
    assert found.max_error <= 1e-10, f"{found.report()}\n{space}"


SAFE = [name for name in PLAIN if name not in ("roll", "cumsum", "numbered")]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["relu", "square", "centre", "softmax", "mix", *LEARNED[:5]]),
                min_size=1, max_size=5))
def test_steps_without_order_keep_the_stream_free(steps: list[str]) -> None:
    space = infer_program(record(Chain(steps), X))
    assert space.meta.unsupported == ()
    if "gate" not in steps:
        assert ("S", 12, ()) in signatures(space)
    freed = sum(step in ("linear", "gate") for step in steps) + 1
    halves = sum(step == "gate" for step in steps)
    assert len(space.groups) >= freed - halves
    assert all(group.size > 1 for group in space.groups)


@settings(max_examples=15)
@given(st.lists(st.sampled_from(SAFE), min_size=1, max_size=3), st.integers(0, 3))
def test_the_order_of_tensors_does_not_matter(steps: list[str], seed: int) -> None:
    """Registering the layers in another order gives an equal space."""
    chain, other = Chain(["linear", *steps]), Chain(["linear", *steps])
    modules = list(other._modules.items())
    torch.manual_seed(seed)
    other._modules.clear()
    for i in torch.randperm(len(modules)).tolist():
        other._modules[modules[i][0]] = modules[i][1]
    assert infer_program(record(chain, X)) == infer_program(record(other, X))


def test_golden_models_do_not_depend_on_the_batch() -> None:
    for name in ("encoder", "lstm2", "packed_attention"):
        (x,) = models.MODELS[name].example_inputs
        module = models.make(name)
        longer = torch.randn(x.shape[0] + 1, x.shape[1] + 2, x.shape[2])
        assert infer_program(record(module, x)) == infer_program(record(module, longer))
