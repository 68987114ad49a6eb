"""Small helpers of the symmetry tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from metanet.symmetry import WeightSpace
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.verify import Verification, verify_program

Signature = tuple[str, int, tuple[int, ...]]


def signatures(space: WeightSpace) -> list[Signature]:
    """(kind, size, sizes of over) of all groups, sorted."""
    sizes = {g.label: g.size for g in (*space.groups, *space.fixed)}
    return sorted((g.kind, g.size, tuple(sizes[b] for b in g.over)) for g in space.groups)


def proved(module: nn.Module, inputs: Any, samples: int = 2) -> tuple[WeightSpace, Verification]:
    """Inferred space and its verification, from one recording."""
    program = record(module, inputs)
    space = infer_program(program)
    return space, verify_program(program, space, samples=samples)
