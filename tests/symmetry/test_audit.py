"""The audit finds freedom that was taken away, and none on the golden models."""

from __future__ import annotations

import models
import pytest
import torch
import wirings
from torch import Tensor, nn

from metanet.symmetry import audit
from metanet.symmetry.audit import audit_program, rounds_differently
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.rules import forget, rule
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.registry import rule_for
from metanet.symmetry.verify import Trial

SMALL = {**{k: v for k, v in models.MODELS.items() if v.small}, **wirings.WIRINGS}


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_missed_on_small_models(name: str) -> None:
    torch.manual_seed(0)
    golden = SMALL[name]
    found = audit_program(record(golden.factory(), golden.example_inputs), most=8)
    assert found.missed == ()
    assert found.tried > 0


class Bessel(nn.Module):
    """A pointwise operation that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.special.bessel_j0(self.a(x)))


def test_freedom_that_a_missing_rule_took_is_found() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    found = audit_program(record(Bessel(), x))
    assert found.missed
    (hit, *_) = [m for m in found.missed if m.size == 6]
    assert "a.weight" in hit.tensors
    assert "special_bessel_j0" in hit.reason


def test_a_rule_that_is_too_strict_is_found() -> None:
    known = rule_for("aten.relu.default", "aten.relu")

    def strict(ctx: Context, x: Value) -> Value:
        ctx.freeze(x.axes[-1], "a rule that is too strict")
        return Value(x.axes, depth=x.depth)

    golden = models.MODELS["mlp"]
    forget("aten.relu")
    rule("aten.relu")(strict)
    try:
        found = audit_program(record(golden.factory(), golden.example_inputs), most=40)
    finally:
        forget("aten.relu")
        if known is not None:
            rule("aten.relu", uniform=True)(known)
    assert any("too strict" in m.reason for m in found.missed)


class Winner(nn.Module):
    """Six scores, the largest of which is read by its number; four of them hardly ever win."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(5, 6), nn.Linear(1, 3)
        self.handicap = nn.Buffer(torch.tensor([0.0, 0.1, -3.0, -3.1, -3.2, -3.3]))

    def forward(self, x: Tensor) -> Tensor:
        best = (self.score(x) + self.handicap).argmax(-1, keepdim=True)
        return self.out(best * self.score(x).sum(-1, keepdim=True))


def test_entries_that_are_hardly_ever_chosen_are_no_missed_freedom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    program = record(Winner(), x)
    assert not any(audit_program(program, 40, seed).missed for seed in range(4))
    monkeypatch.setattr(audit, "_stirred", lambda *args: False)  # nothing else refutes them
    assert any(audit_program(program, 40, seed).missed for seed in range(4))


class Skewed(nn.Module):
    """A view across digits: five features of three steps are read as three of five."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().reshape(x.shape[0], 5, 3))


class Summed(Skewed):
    """The same, summed over everything: no order counts, though the rule gives up."""

    def forward(self, x: Tensor) -> Tensor:
        seen = self.a(x).relu().reshape(x.shape[0], 5, 3)
        return self.b(seen.sum((1, 2))[:, None].expand(-1, 3))


@pytest.mark.parametrize(("cls", "missed"), [(Skewed, False), (Summed, True)])
def test_digits_that_do_not_fit_are_all_tried(cls: type[Skewed], missed: bool) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = audit_program(record(cls(), x), most=0)
    assert found.tried == (1 if missed else 2)  # the columns of b do not fit either
    assert bool(found.missed) is missed
    assert found.doubtful == int(missed)


class Floors(nn.Module):
    """What is in order along an axis is rounded; hidden neurons are rounded one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ceil(self.a(x))
        return self.c(torch.ceil(1e-3 * self.b(hidden).cumsum(-1)))


def test_what_is_rounded_tells_order_that_outputs_hide() -> None:
    torch.manual_seed(0)
    program = record(Floors(), torch.randn(3, 5))
    trial = Trial(program, infer_program(program))
    trial.draw(0, 0.3)

    def swapped(first: str, second: str) -> dict[str, Tensor]:
        place = torch.tensor([1, 0, *range(2, trial.state[f"{first}.bias"].shape[0])])
        return trial.state | {
            f"{first}.{leaf}": trial.state[f"{first}.{leaf}"][place] for leaf in ("weight", "bias")
        } | {f"{second}.weight": trial.state[f"{second}.weight"][:, place]}

    ordered, free = swapped("b", "c"), swapped("a", "b")
    assert rounds_differently(trial, ordered)
    assert not rounds_differently(trial, free)
