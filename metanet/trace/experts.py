"""Mixtures of experts of transformers, run as one batched product while they are recorded.

Their default sorts tokens by expert, or runs one expert after the other in Python, which shows the
order of the entries and so hides every symmetry behind it. The batched form is the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

_SWITCH, _BATCHED = "_experts_implementation", "batched_mm"
_IDENTITIES = ("identity_expert", "num_routed_experts", "total_experts", "gate_up_proj",
               "down_proj", "act_fn")
"""What parts have some of whose experts do nothing, and which know one implementation alone."""


def batch_experts(config: Any) -> None:
    """Choose batched products in a config that has the choice and takes it."""
    if hasattr(config, _SWITCH):
        with suppress(AttributeError, ValueError):
            setattr(config, _SWITCH, _BATCHED)


@contextmanager
def batched_experts(module: nn.Module) -> Iterator[None]:
    """Within it every part that can uses batched products; restored afterwards."""
    parts = [getattr(part, "config", None) for part in module.modules()]
    configs: dict[int, Any] = {id(c): c for c in parts if getattr(c, _SWITCH, None) is not None}
    before = {key: getattr(config, _SWITCH) for key, config in configs.items()}
    looping = [part for part in module.modules() if _loops(part)]
    try:
        for config in configs.values():
            batch_experts(config)
        for part in looping:
            part.forward = MethodType(with_identities, part)
        yield
    finally:
        for key, config in configs.items():
            setattr(config, _SWITCH, before[key])
        for part in looping:
            del part.forward


def _loops(part: nn.Module) -> bool:
    return "forward" not in vars(part) and all(
        getattr(part, name, None) is not None for name in _IDENTITIES)


def with_identities(
    part: Any, hidden: Float[Tensor, "N H"], chosen: Int64[Tensor, "N k"],
    weights: Float[Tensor, "N k"],
) -> Float[Tensor, "N H"]:
    """Experts with a gated layer each, and behind them experts that return what they get."""
    one_hot = torch.nn.functional.one_hot(chosen, part.total_experts).to(weights.dtype)
    gates = (one_hot * weights[..., None]).sum(1)
    routed, idle = gates.split(
        [part.num_routed_experts, part.total_experts - part.num_routed_experts], dim=-1)
    gate, up = torch.einsum("nh,eih->nei", hidden, part.gate_up_proj).chunk(2, dim=-1)
    inner = (part.act_fn(gate) * up)[:, : part.num_routed_experts]
    out = torch.einsum("nei,ehi->neh", inner, part.down_proj)
    mixed: Tensor = (out * routed[..., None]).sum(1) + hidden * idle.sum(-1, keepdim=True)
    return mixed.to(hidden.dtype)
