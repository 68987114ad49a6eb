"""The second front end sees what export sees, and runs what export refuses."""

from __future__ import annotations

import models
import pytest
import torch
import wirings
from symmetry_tools import signatures
from torch import Tensor, nn

from metanet.symmetry.infer import infer, infer_program, record
from metanet.symmetry.verify import verify_program
from metanet.trace.dispatch import dispatch_program

ROWS = {**{k: v for k, v in models.MODELS.items() if v.small}, **wirings.WIRINGS}
X = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ROWS)
def test_same_groups_as_export(name: str) -> None:
    torch.manual_seed(0)
    golden = ROWS[name]
    program = dispatch_program(golden.factory(), golden.example_inputs)
    space = infer_program(program)
    assert program.front_end == "dispatch"
    assert signatures(space) == golden.groups
    assert verify_program(program, space, samples=1).ok


class Branching(nn.Module):
    """Python decides on a sum over hidden neurons, which no order changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = self.b(h) if h.sum().item() > -1 else self.b(-h)
        return self.c(h.relu())


class Peeking(Branching):
    """Python decides on single neurons."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        first = h.tolist()[0][0]
        return self.c(self.b(h if first > -1 else -h).relu())


def test_infer_picks_the_front_end_and_says_which() -> None:
    assert infer(models.mlp(), torch.randn(2, 8)).meta.front_end == "export"
    program = record(Branching(), X)
    space = infer_program(program)
    assert space.meta.front_end == "dispatch"
    assert signatures(space) == models.s(6, 7)
    assert verify_program(program, space).ok


def test_what_python_looks_at_cannot_move() -> None:
    program = record(Peeking(), X)
    space = infer_program(program)
    assert program.front_end == "dispatch"
    assert signatures(space) == models.s(7)
    assert "Python reads its values" in space.explain("a.weight", 0)


def test_the_module_is_not_touched() -> None:
    module = Branching()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    record(module, X)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training
