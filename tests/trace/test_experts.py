"""Mixtures of experts are recorded in their batched form, and left as they were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

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
