"""Cases that went wrong once, or that only fail-closed inference gets right."""

from __future__ import annotations

import models
import pytest
import torch
from symmetry_tools import proved, signatures
from torch import Tensor, nn

import metanet
from metanet.errors import SymmetryError
from metanet.symmetry import Axis, Fixed, Prod, Sum
from metanet.symmetry.infer import infer, infer_program, record
from metanet.symmetry.verify import verify_program
from metanet.trace.dispatch import dispatch_program


class Head(nn.Module):
    """embed -> body -> head; subclasses say what the body is."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 3)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


class CumSum(Head):
    def body(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class Flip(Head):
    def body(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class Sorted(Head):
    def body(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class TopK(Head):
    def body(self, x: Tensor) -> Tensor:
        return x * x.argmax(-1, keepdim=True)


class Strided(Head):
    def body(self, x: Tensor) -> Tensor:
        return x + x[..., ::2].repeat(1, 1, 2)


@pytest.mark.parametrize("kind", [CumSum, Flip, TopK, Strided])
def test_order_of_the_features_counts(kind: type[Head]) -> None:
    space, found = proved(kind(), X)
    assert space.groups == ()
    assert found.empty and not found.ok  # a space that freezes all proves nothing
    assert "embed.weight" in space.meta.reasons


def test_sorting_forgets_the_order() -> None:
    space, found = proved(Sorted(), X)
    assert signatures(space) == models.s(6)  # what comes after is told apart by rank, not by place
    assert found.ok, found.report()
    assert space.tensors["head.weight"].axes[1] == Fixed(6)


class Bessel(Head):
    def body(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_operation_without_a_rule_fails_closed() -> None:
    space = infer(Bessel(), X)
    assert space.groups == ()
    (lost,) = (u for u in space.meta.unsupported if u.op.startswith("aten.special_bessel_j0"))
    assert lost.lost == 6
    assert lost.where.startswith("test_infer_regressions.py:")
    why = space.explain("embed.weight", 0)
    assert "aten.special_bessel_j0" in why and "test_infer_regressions.py" in why
    with pytest.raises(SymmetryError, match="no rule for aten.special_bessel_j0"):
        infer(Bessel(), X, strict=True)


def test_fail_closed_touches_only_what_it_touches() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.plain, self.head = Bessel(), nn.Linear(3, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.plain(self.odd(x)).relu())

    space, found = proved(Both(), X)
    assert signatures(space) == models.s(3, 7)
    assert found.ok


class Cached(Head):
    """Keeps what it computed from its weights, as some eval modes do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(6, 6, bias=False)
        self.cache: Tensor | None = None

    def body(self, x: Tensor) -> Tensor:
        if self.training or self.cache is None:
            self.cache = self.scale.weight.softmax(-1)
        return (x @ self.cache).relu()


def test_stale_cache_does_not_spoil_the_proof() -> None:
    module = Cached()
    space, found = proved(module, X)
    assert signatures(space) == models.s(6, 6)
    assert found.ok, found.report()
    assert module.cache is None


class Constant(Head):
    """An attention bias buffer between two layers: it matters whether it is constant."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", value)

    def body(self, x: Tensor) -> Tensor:
        return (x + self.bias).relu()


@pytest.mark.parametrize(("value", "groups"), [(torch.zeros(6), models.s(6)),
                                               (torch.full((6,), 0.5), models.s(6)),
                                               (torch.arange(6.0), [])])
def test_constant_buffers_freeze_nothing(value: Tensor, groups: list) -> None:
    space, found = proved(Constant(value), X)
    assert signatures(space) == groups
    assert found.ok is bool(groups)


def test_constant_buffer_that_is_written_to_is_no_constant() -> None:
    class Filled(Constant):
        def body(self, x: Tensor) -> Tensor:
            room = self.bias.clone()
            room[:2] += 1
            return (x + room).relu()

    space, found = proved(Filled(torch.zeros(6)), X)
    assert signatures(space) == models.s(2, 4)
    assert found.ok, found.report()


def test_unused_parameters_are_dead() -> None:
    class Side(Head):
        def __init__(self) -> None:
            super().__init__()
            self.pooler, self.never = nn.Linear(6, 4), nn.Parameter(torch.zeros(3))

        def body(self, x: Tensor) -> Tensor:
            self.pooler(x).tanh()
            return x.relu()

    space, found = proved(Side(), X)
    dead = {g.label: g.size for g in space.groups if g.dead}
    assert dead == {"pooler": 4, "never": 3}
    assert found.ok, found.report()
    assert (found.controls.total, found.controls.dead) == (1, 2)


def test_every_output_is_frozen() -> None:
    class Two(Head):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            hidden = self.embed(x)
            return self.head(hidden), {"hidden": hidden}

    space = infer(Two(), X)
    assert space.groups == ()
    assert "output 1" in space.explain("embed.weight", 0)


def test_grouped_convolution_of_the_input_is_fibred_over_a_fixed_base() -> None:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 3, groups=3), nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    space, found = proved(Depth(), torch.randn(2, 3, 7, 9))
    assert signatures(space) == models.s(4, over=(3,))
    (base,) = space.fixed
    assert base.size == 3 and "input" in (base.reason or "")
    assert found.ok, found.report()


def test_casts_to_float32_are_lifted() -> None:
    class Low(Head):
        def body(self, x: Tensor) -> Tensor:
            return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, True))).half().to(x.dtype)

    space, found = proved(Low(), X)
    assert signatures(space) == models.s(6)
    assert found.max_error < 1e-13


def test_softmax_over_heads_couples_them() -> None:
    """The axis stays, but its entries are mixed: what lies inside may not differ by head."""

    class Mixed(Head):
        def __init__(self) -> None:
            super().__init__(12)

        def body(self, x: Tensor) -> Tensor:
            return x.unflatten(-1, (3, 4)).softmax(-2).flatten(-2)

    space, found = proved(Mixed(), X)
    assert signatures(space) == models.s(3, 4)
    assert found.ok, found.report()


def test_two_readings_of_one_axis_that_do_not_fit() -> None:
    class Clash(Head):
        def __init__(self) -> None:
            super().__init__(12)

        def body(self, x: Tensor) -> Tensor:
            a = x.unflatten(-1, (3, 4)).softmax(-1).flatten(-2)
            return a + x.unflatten(-1, (4, 3)).softmax(-1).flatten(-2)

    space = infer(Clash(), X)
    assert space.groups == ()
    assert space.meta.unsupported[0].op == "digits do not fit"


def test_transposing_in_place_fails_closed() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).clone()
            x.transpose_(1, 2)
            return self.head(x)

    space = infer(Turned(), X)
    assert space.groups == ()


def test_reasons_lead_from_the_axis_to_the_cause() -> None:
    space = infer(models.make("resnet8a"), models.MODELS["resnet8a"].example_inputs)
    assert space.explain("conv1.weight", 1).endswith(
        "3 fixed: input 'x', axis 1; reached through conv2d (conv1)")
    assert "output 0, axis 1" in space.explain("linear.bias", 0)
    assert "kernel axis at conv2d (layers.0.conv1)" in space.explain("layers.0.conv1.weight", -1)
    free = space.explain("layers.0.conv1.weight", 0)
    assert "any S(4), through relu" in free and "fixed" not in free
    with pytest.raises(SymmetryError, match="has 4 axes; there is no axis 4"):
        space.explain("conv1.weight", 4)
    with pytest.raises(SymmetryError, match="no tensor 'conv9.weight'"):
        space.explain("conv9.weight", 0)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_frozen_part_has_a_reason(name: str) -> None:
    space = infer_program(record(models.make(name), models.MODELS[name].example_inputs))
    for key, spec in space.tensors.items():
        for axis, tree in enumerate(spec.axes):
            parts = space.meta.reasons.get(key, {}).get(axis, ())
            assert all(part.reason and part.size for part in parts)
            if spec.shape[axis] > 1 and pinned(tree):
                assert parts, (key, axis)
            else:  # slots of a packed projection are told apart, though nothing in them is fixed
                assert all("told apart" in part.reason for part in parts)


def pinned(axis: Axis) -> bool:
    """Whether some index of an axis cannot move."""
    if isinstance(axis, Fixed):
        return axis.size > 1
    return isinstance(axis, (Prod, Sum)) and any(map(pinned, axis.parts))


def test_public_names() -> None:
    assert metanet.infer is infer
    assert callable(metanet.verify) and callable(metanet.rule)
    space = infer(models.make("mlp"), models.MODELS["mlp"].example_inputs, verify=True)
    assert space.status == "verified"


def test_inputs_are_made_up_where_none_are_given() -> None:
    assert signatures(infer(models.make("mlp"))) == models.MODELS["mlp"].groups


def test_dropout_and_pooling_in_any_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                           nn.Linear(6, 2)).train()
    space, found = proved(module, torch.randn(2, 3, 7, 9))
    assert signatures(space) == models.s(6)
    assert found.ok
    assert module.training


class EmptyPart(nn.Module):
    """Joins an empty part to the rest, as rotary embeddings without a class token do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        k = torch.cat([k[:, :0], k[:, 0:].tanh()], dim=1)
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(read).sum(1)


def test_empty_parts_vanish() -> None:
    space, found = proved(EmptyPart(), torch.randn(2, 5, 6))
    assert signatures(space) == models.s(6, 6)
    assert found.ok and not space.meta.unsupported


class Masked(nn.Module):
    """Keeps the places of a sequence where its input is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).tanh()[marked])


def test_what_a_mask_picks_keeps_its_channels() -> None:
    marked = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    program = dispatch_program(Masked(), (torch.randn(2, 5, 4), marked))
    space = infer_program(program)
    assert signatures(space) == models.s(6) and not space.meta.unsupported
    assert verify_program(program, space).ok


class Blurred(nn.Module):
    """A blur before striding: one fixed kernel, written out for every channel."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        scale = torch.ones(6) if alike else torch.arange(1.0, 7)
        self.register_buffer("kernel", kernel.expand(6, 1, 3, 3) * scale[:, None, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(self.one(x).relu(), self.kernel, stride=2, groups=6)
        return self.two(x)


@pytest.mark.parametrize("alike", [True, False])
def test_a_constant_that_repeats_ties_nothing_down(alike: bool) -> None:
    space, found = proved(Blurred(alike), torch.randn(2, 3, 15, 19))
    assert found.ok == alike  # a space without a live group proves nothing
    assert signatures(space) == (models.s(6) if alike else [])


class Points(nn.Module):
    """Three heads of four points each, with one scale for each point."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.where, self.what, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(3, 2)
        self.scale = nn.Buffer(scale)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.where(x).unflatten(-1, (3, 4)) * self.scale).softmax(-1)
        return self.out((weights * self.what(x).unflatten(-1, (3, 4))).sum(-1))


@pytest.mark.parametrize(("scale", "groups"), [
    (torch.full((4,), 0.5), models.s(3) + models.s(4, over=(3,))),
    (torch.arange(4.0) + 1, models.s(3)),
])
def test_a_constant_does_not_bind_points_of_one_head_to_those_of_others(
    scale: Tensor, groups: list
) -> None:
    space, found = proved(Points(scale), torch.randn(2, 7, 5))
    assert signatures(space) == sorted(groups)
    assert found.ok, found.report()


class Turning(nn.Module):
    """Queries and keys of which pairs of digits turn with the place, some at no speed at all."""

    def __init__(self, speeds: Tensor) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 3)
        self.speeds = nn.Buffer(speeds)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.speeds
        turn = torch.cat([angles, angles], -1)

        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * turn.cos() + torch.cat([-b, a], -1) * turn.sin()

        scores = turned(self.q(x)) @ turned(self.k(x)).transpose(1, 2)
        return self.out(scores.softmax(-1) @ x)


@pytest.mark.parametrize(("speeds", "groups"), [
    (torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0]), models.s(4)),
    (torch.tensor([1.0, 0.5, 0.25, 0.2, 0.1, 0.05]), []),
])
def test_digits_that_never_turn_may_move(speeds: Tensor, groups: list) -> None:
    space, found = proved(Turning(speeds), torch.randn(2, 7, 5))
    assert signatures(space) == sorted(groups)
    assert found.max_error < 1e-11 and found.ok is bool(groups), found.report()


class Registers(nn.Module):
    """Four learned tokens before the tokens of the input, all attending under one mask."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start
        self.extra, self.inner, self.out = (
            nn.Parameter(torch.randn(4, 6)), nn.Linear(5, 6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.extra.expand(len(x), 4, 6), self.inner(x)], 1)
        place = torch.arange(y.shape[1]) + 0
        mask = (place[None, :, None] >= self.start).expand(len(x), -1, y.shape[1])
        z = nn.functional.scaled_dot_product_attention(y, y, y, attn_mask=mask)
        return self.out(z[:, 4:])


@pytest.mark.parametrize(("start", "groups"), [(0, models.s(4, 6)), (2, models.s(6))])
def test_a_mask_that_holds_everywhere_tells_no_tokens_apart(start: int, groups: list) -> None:
    """With start 2 the first two rows see nothing, and what they give is cut off anyway."""
    space, found = proved(Registers(start), torch.randn(2, 7, 5))
    assert signatures(space) == sorted(groups)
    assert found.max_error < 1e-11
