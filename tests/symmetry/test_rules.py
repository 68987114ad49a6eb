"""One small network per operation: its group, proved; and a user's own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from symmetry_tools import proved, signatures
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.symmetry.infer import infer
from metanet.symmetry.rules import coverage, forget, rule

s = models.s


class Body(nn.Module):
    """Linear(5, 12), a function of its output, Linear to 3: features are the last axis."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 12) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(5, 12), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))

# function, width after it, groups and why
BODIES: dict[str, tuple[Callable[[Tensor], Tensor], int, list]] = {
    # entry by entry: the twelve features stay what they are
    "gelu": (F.gelu, 12, s(12)),
    "hardswish": (F.hardswish, 12, s(12)),
    "clamp": (lambda x: x.clamp(-1, 1), 12, s(12)),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 12, s(12)),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.5), 12, s(12)),
    "pow": (lambda x: x**2 + x.abs().sqrt(), 12, s(12)),
    "inplace": (lambda x: x.clone().relu_().mul_(2), 12, s(12)),
    "lerp": (lambda x: torch.lerp(x, x.tanh(), 0.3), 12, s(12)),
    # statistics over the features are symmetric in them
    "normalise": (lambda x: F.normalize(x, dim=-1), 12, s(12)),
    "standardise": (lambda x: (x - x.mean(-1, True)) / x.std(-1, keepdim=True), 12, s(12)),
    "var_mean": (lambda x: x * torch.var_mean(x, -1, keepdim=True)[0], 12, s(12)),
    "logsumexp": (lambda x: x - x.logsumexp(-1, keepdim=True), 12, s(12)),
    "max": (lambda x: x - x.max(-1, keepdim=True).values, 12, s(12)),
    "softmax": (lambda x: x.softmax(-1), 12, s(12)),
    "layer_norm": (lambda x: F.layer_norm(x, (12,)), 12, s(12)),
    "rms_norm": (lambda x: F.rms_norm(x, (12,)), 12, s(12)),
    "cosine": (lambda x: x * F.cosine_similarity(x, x.relu(), dim=-1)[..., None], 12, s(12)),
    # taken apart and put together: each part has its own group
    "chunk": (lambda x: torch.cat(x.chunk(3, -1)[::-1], -1), 12, s(4, 4, 4)),
    "split": (lambda x: torch.cat([p * p for p in x.split([2, 4, 6], -1)], -1), 12, s(2, 4, 6)),
    "halves": (lambda x: x[..., :6] * x[..., 6:], 6, s(6)),
    "glu": (lambda x: F.glu(x, -1), 6, s(6)),
    "narrow": (lambda x: x.narrow(-1, 3, 5), 5, s(3, 4, 5)),
    "repeat": (lambda x: x.repeat(1, 1, 2), 24, s(12) + s(2)),
    "pad": (lambda x: F.pad(x, (2, 3)), 17, s(2, 3, 12)),
    "unbind": (lambda x: torch.stack(x.unflatten(-1, (3, 4)).unbind(-2), -1).flatten(-2), 12,
               s(4)),
    # digits: heads and what is inside them
    "heads": (lambda x: x.unflatten(-1, (3, 4)).softmax(-1).flatten(-2), 12,
              s(3) + s(4, over=(3,))),
    "mean_inside": (lambda x: x.relu().unflatten(-1, (3, 4)).mean(-1), 3, s(3) + s(4, over=(3,))),
    "mean_outside": (lambda x: x.relu().unflatten(-1, (3, 4)).mean(-2), 4, s(3, 4)),
    "turn": (lambda x: x.unflatten(-1, (3, 4)).transpose(-1, -2).flatten(-2), 12,
             s(3) + s(4)),
    "movedim": (lambda x: x.movedim(-1, 0).relu().movedim(0, -1), 12, s(12)),
    "squeeze": (lambda x: x.unsqueeze(1).tanh().squeeze(1), 12, s(12)),
    "expand": (lambda x: x.unsqueeze(-1).expand(-1, -1, -1, 2).flatten(-2), 24,
               s(12) + s(2, over=(12,))),
    "interleave": (lambda x: x.repeat_interleave(2, -1), 24, s(12) + s(2, over=(12,))),
    # contractions
    "einsum": (lambda x: torch.einsum("btc,bsc->bts", x, x) @ x, 12, s(12)),
    "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)) @ x, 12, s(12)),
    "outer": (lambda x: (x[..., :, None] * x[..., None, :]).flatten(-2), 144, s(12)),
    # the order counts
    "roll": (lambda x: x.roll(1, -1), 12, []),
    "tril": (lambda x: x @ torch.ones(12, 12).tril(), 12, []),
    "numbered": (lambda x: x * torch.arange(12.0), 12, []),
    # ranges of constant indices are cut out: 1 and 2 stay together, 4 to 11 are not read at all
    "pick": (lambda x: x[..., [3, 1, 2]], 3, s(2, 8)),
    "scramble": (lambda x: x[..., [3, 1, 7, 5]], 4, []),
    "gather": (lambda x: x.gather(-1, torch.tensor([3, 1]).expand(2, 4, 2)), 2, []),
}


@pytest.mark.parametrize("name", BODIES)
def test_operation(name: str) -> None:
    function, width, groups = BODIES[name]
    torch.manual_seed(0)
    space, found = proved(Body(function, width), X)
    assert space.meta.unsupported == ()
    assert signatures(space) == sorted(groups)
    assert found.max_error <= 1e-12, found.report()
    assert found.undetected == ()
    assert found.ok is bool(groups)


IMAGE = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
POOLS: dict[str, nn.Module] = {
    "max": nn.MaxPool2d(2),
    "average": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveAvgPool2d(2),
    "whole": nn.AdaptiveMaxPool2d(1),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "reflect": nn.ReflectionPad2d(1),
    "replicate": nn.ReplicationPad2d(1),
    "zero": nn.ZeroPad2d(1),
    "instance": nn.InstanceNorm2d(6, affine=True),
    "group": nn.GroupNorm(6, 6),
    "batch": nn.BatchNorm2d(6, track_running_stats=False),
    "unfold": nn.Identity(),
}


@pytest.mark.parametrize("name", POOLS)
def test_channels_pass_what_works_on_places(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), POOLS[name], nn.ReLU(), nn.Conv2d(6, 4, 1))
    space, found = proved(module, IMAGE)
    assert space.meta.unsupported == ()
    assert signatures(space) == s(6)
    assert found.ok, found.report()


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions(dims: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    x = torch.randn(2, 3, *(5, 6, 7)[:dims])
    space, found = proved(nn.Sequential(conv(3, 6, 2), nn.ReLU(), back(6, 4, 2)), x)
    assert signatures(space) == s(6)
    assert found.ok


def test_coverage_is_listed() -> None:
    ops = coverage().ops
    assert len(ops) >= 75
    assert {"aten.linear", "aten.conv2d", "aten.scaled_dot_product_attention"} <= set(ops)


def test_parts_that_are_cut_away_are_dead() -> None:
    function, width, _ = BODIES["narrow"]
    space, found = proved(Body(function, width), X)
    assert sorted((g.size, g.dead) for g in space.groups) == [(3, True), (4, True), (5, False)]
    assert (found.controls.dead, found.controls.total) == (2, 1)


# ------------------------------------------------------------ a user's own rules

LIBRARY = torch.library.Library("metanet_tests", "DEF")
LIBRARY.define("double(Tensor x) -> Tensor")
LIBRARY.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
LIBRARY.define("mixed(Tensor x, Tensor w) -> (Tensor, Tensor)")
LIBRARY.impl("mixed", lambda x, w: (x * w, x + w), "CompositeExplicitAutograd")


def double(x: Tensor) -> Tensor:
    return torch.ops.metanet_tests.double(x)


def test_unknown_operation_then_a_rule_for_it() -> None:
    module = Body(double)
    closed = infer(module, X)
    assert closed.groups == ()
    assert closed.meta.unsupported[0].op == "metanet_tests.double.default"
    assert closed.meta.unsupported[0].where.startswith("test_rules.py:")

    @rule("metanet_tests.double")
    def passes(ctx: Any, x: Any) -> Any:
        return x.axes

    try:
        space, found = proved(module, X)
    finally:
        forget("metanet_tests.double")
    assert signatures(space) == s(12) and found.ok
    assert infer(module, X).groups == ()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(5, 12), nn.Linear(12, 3), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        y, z = torch.ops.metanet_tests.mixed(self.a(x), self.w)
        return self.b(y.relu() + z)


def test_rule_with_several_outputs_and_refusal() -> None:
    @rule("metanet_tests.mixed")
    def mixed(ctx: Any, x: Any, w: Any) -> Any:
        ctx.tie(x.axes[-1], w.axes[0])
        return x, x

    try:
        space, found = proved(Mixed(), X)
        assert signatures(space) == s(12) and found.ok

        @rule("metanet_tests.mixed")
        def refuses(ctx: Any, x: Any, w: Any) -> Any:
            raise ctx.refuse("not today")

        closed = infer(Mixed(), X)
        assert closed.groups == ()
        assert "not today" in closed.meta.unsupported[0].op
    finally:
        forget("metanet_tests.mixed")


def test_wrong_rules_fail_closed_or_are_found_out() -> None:
    def wrong_shape(ctx: Any, x: Any) -> Any:
        return x.axes[:-1]

    def crashes(ctx: Any, x: Any) -> Any:
        return x.no_such_thing

    for function in (wrong_shape, crashes):
        rule("metanet_tests.double")(function)
        try:
            assert infer(Body(double), X).groups == ()
        finally:
            forget("metanet_tests.double")

    @rule("aten.roll.default")
    def lie(ctx: Any, x: Any, *args: Any) -> Any:
        return x.axes

    try:
        _, found = proved(Body(lambda x: x.roll(1, -1)), X)
        assert not found.ok and found.max_error > 1e-3
    finally:
        forget("aten.roll.default")


class Odd(nn.Module):
    """Turns the features round twice: only a rule for the whole module can see that they pass."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).flip(-1).tanh().flip(-1)


class WithOdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.odd, self.b = nn.Linear(5, 12), Odd(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.odd(self.odd(self.a(x))))


def test_rule_for_a_whole_module() -> None:
    assert infer(WithOdd(), X).groups == ()

    @rule(Odd)
    def odd(ctx: Any, inputs: Any, parameters: Any) -> Any:
        (x,) = inputs
        ctx.tie(x.axes[-1], parameters["scale"].axes[0])
        return x.axes

    try:
        space, found = proved(WithOdd(), X)
    finally:
        forget(Odd)
    assert signatures(space) == s(12)
    assert found.ok, found.report()
    assert infer(WithOdd(), X).groups == ()


def test_rule_needs_a_target() -> None:
    with pytest.raises(SymmetryError, match="name an operation"):
        rule()
    with pytest.raises(SymmetryError, match="name an operation"):
        rule(3)  # type: ignore[arg-type]
