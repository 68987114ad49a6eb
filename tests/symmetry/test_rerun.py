"""Running a program again after a change gives what a whole run gives, bit for bit."""

from __future__ import annotations

import models
import pytest
import torch
from torch import Tensor, nn

from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.narrow import trivial
from metanet.symmetry.rerun import Rerun, functional
from metanet.symmetry.verify import Trial, lifted, run_doubled, verify_program


@pytest.mark.parametrize("name", ["resnet20a", "lstm2", "grouped", "char_lm"])
def test_as_a_whole_run(name: str) -> None:
    program = record(models.make(name), models.MODELS[name].example_inputs)
    trial = Trial(program, infer_program(program))
    trial.draw(0, 0.3)
    for tensor in list(trial.state)[::5]:
        state = dict(trial.state)
        state[tensor] = state[tensor] * 1.5 + 0.1
        again = trial._run(state)
        whole = run_doubled(program, trial.values(state))
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


class InPlace(nn.Module):
    """Values written to: alone, and through a view that is read afterwards."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.a, self.b, self.view = nn.Linear(5, 6), nn.Linear(6, 3), view

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.view:
            h[:, :3].mul_(2)
        return self.b(h.relu_().add_(1))


@pytest.mark.parametrize("view", [False, True])
def test_values_that_are_written_to(view: bool) -> None:
    program = record(InPlace(view), torch.randn(4, 5))
    values = {n: torch.randn(s, dtype=torch.float64) for n, (s, _) in program.tensors.items()}
    values |= {s.name: s.value.double() for s in program.sources if s.kind == "input"}
    again = Rerun(program)
    with torch.no_grad():
        first = again.run(values, lifted)
        values["a.bias"] = values["a.bias"] + 1
        second = again.again(values, frozenset({"a.bias"}), lifted)
    (whole,) = run_doubled(program, values)
    assert torch.equal(second[0], whole)
    assert not torch.equal(first[0], whole)


def test_random_numbers_are_not_run_in_parts() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + torch.randn_like(x[..., :1])

    assert functional(record(Noisy(), torch.randn(4, 5))) is None


class Attention(nn.Module):
    """Queries from ``x``, keys and values from ``y``; alike values hide queries and keys."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 8) for _ in range(3))
        self.out, self.alike = nn.Linear(8, 3), alike

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(y).transpose(1, 2)
        return self.out(scores.softmax(-1) @ self.v(torch.zeros_like(y) if self.alike else y))


@pytest.mark.parametrize("alike", [False, True])
def test_groups_that_nothing_depends_on_are_silent(alike: bool) -> None:
    """The first attention of a DETR: its targets are zeros, so that all values are one bias."""
    program = record(Attention(alike), (torch.randn(2, 4, 5), torch.randn(2, 3, 5)))
    found = verify_program(program, infer_program(program))
    assert found.ok, found.report()
    assert len(found.silent) == found.controls.dead == int(alike)
    assert found.controls.total == found.controls.detected == 2 - int(alike)


def test_one_key_proves_nothing_about_queries() -> None:
    """A softmax over one entry is trivial: with more keys the group would matter."""
    program = record(Attention(False), (torch.randn(2, 4, 5), torch.randn(2, 1, 5)))
    assert trivial(program) == ("softmax",)
    found = verify_program(program, infer_program(program))
    assert not found.ok
    assert len(found.undetected) == 1
    assert found.silent == ()


class Quantiser(nn.Module):
    """An encoder, the nearest of 16 codes kept in a buffer, a decoder."""

    def __init__(self, learned: bool = True) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(16, 6), persistent=learned)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(self.a(x), self.codes[None]).argmin(-1)
        return self.b(torch.nn.functional.embedding(nearest, self.codes))


def test_codebooks_are_learned() -> None:
    """Six channels, which encoder, codes and decoder share; the codes are told apart by number."""
    program = record(Quantiser(), torch.randn(2, 40, 5))
    space = infer_program(program)
    assert [(g.size, len(g.tensors)) for g in space.groups] == [(6, 4)]
    found = verify_program(program, space)
    assert found.ok, found.report()


def test_buffers_outside_the_state_are_constants() -> None:
    """Codes that are all zero and are not saved hide the encoder: nothing depends on it."""
    program = record(Quantiser(False), torch.randn(2, 40, 5))
    found = verify_program(program, infer_program(program))
    assert found.silent == ("a",)
    assert found.controls.detected == 0
