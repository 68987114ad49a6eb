"""Mixtures of experts are recorded in their batched form, and left as they were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from metanet.trace.experts import batched_experts


def mixture(*switches: str | None) -> nn.Sequential:
    """Parts that look like transformers' ones."""
    parts = nn.Sequential(*(nn.Linear(2, 2) for _ in switches))
    for part, switch in zip(parts, switches, strict=True):
        part.config = SimpleNamespace(_experts_implementation=switch)
    return parts


def test_every_part_is_switched_and_restored() -> None:
    parts = mixture("grouped_mm", "eager", None)
    with batched_experts(parts):
        assert [p.config._experts_implementation for p in parts] == ["batched_mm"] * 2 + [None]
    assert [p.config._experts_implementation for p in parts] == ["grouped_mm", "eager", None]


def test_it_is_restored_after_a_failure() -> None:
    parts = mixture("grouped_mm")
    with pytest.raises(RuntimeError), batched_experts(parts):
        raise RuntimeError
    assert parts[0].config._experts_implementation == "grouped_mm"


def test_a_module_without_a_choice_is_left_alone() -> None:
    with batched_experts(nn.Linear(2, 2)):
        pass


def test_a_config_that_refuses_is_left_as_it_is() -> None:
    class Refusing:
        @property
        def _experts_implementation(self) -> str:
            return "eager"

        @_experts_implementation.setter
        def _experts_implementation(self, value: str) -> None:
            if value != "eager":
                raise ValueError(value)

    part = nn.Linear(2, 2)
    part.config = Refusing()
    with batched_experts(part):
        assert part.config._experts_implementation == "eager"


class Looping(nn.Module):
    """One expert after the other, the last of which return what they get."""

    def __init__(self) -> None:
        super().__init__()
        self.num_routed_experts, self.total_experts, self.act_fn = 3, 5, nn.SiLU()
        self.gate_up_proj = nn.Parameter(torch.randn(5, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 4))
        self.identity_expert = nn.Identity()

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for token, row in enumerate(chosen):
            for place, expert in enumerate(row.tolist()):
                x = hidden[token]
                if expert < self.num_routed_experts:
                    gate, up = (self.gate_up_proj[expert] @ x).chunk(2)
                    x = self.down_proj[expert] @ (self.act_fn(gate) * up)
                out[token] += weights[token, place] * x
        return out


def test_experts_that_do_nothing_are_batched_as_well() -> None:
    rng = torch.Generator().manual_seed(0)
    part = Looping()
    hidden, weights = torch.randn(7, 6, generator=rng), torch.rand(7, 2, generator=rng)
    chosen = torch.stack([torch.randperm(5, generator=rng)[:2] for _ in range(7)])
    expected = part(hidden, chosen, weights)
    with batched_experts(nn.ModuleList([part])), torch.no_grad():
        assert "forward" in vars(part)
        torch.testing.assert_close(part(hidden, chosen, weights), expected)
    assert "forward" not in vars(part)
