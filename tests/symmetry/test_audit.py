"""The audit finds freedom that was taken away, and none on the golden models."""

from __future__ import annotations

import models
import pytest
import torch
import wirings
from torch import Tensor, nn

from metanet.symmetry.audit import audit_program
from metanet.symmetry.infer import record
from metanet.symmetry.rules import forget, rule
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.registry import rule_for

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
