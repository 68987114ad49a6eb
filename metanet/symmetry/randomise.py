"""Random weights on which a wrong permutation shows, and inputs to run them on."""

from __future__ import annotations

import torch
from torch import Tensor

from metanet.symmetry.learned import codebooks
from metanet.trace.program import Program, Ref

_VARIANCE_AT = {
    "aten.batch_norm": 4, "aten.instance_norm": 4, "aten.native_batch_norm": 4,
    "aten.cudnn_batch_norm": 4, "aten._native_batch_norm_legit_no_training": 4,
}


def fill(program: Program, rng: torch.Generator, gain: float) -> dict[str, Tensor]:
    """Values in float64 for every tensor of the state, by owner's name.

    Matrices and kernels are normal with variance gain²/fan-in, vectors normal around 0 (biases,
    means) or 1 (scales), variances and uses of codes uniform in [0.5, 1.5]; buffers that are not
    learned keep their values.
    """
    means, variances = _statistics(program)
    real = {s.name: s.value for s in program.sources
            if s.kind != "parameter" and s.value is not None}
    by_ref = {s.name: s.ref for s in program.sources}
    learned = codebooks(program)
    drawn: dict[str, Tensor] = {}
    for name, (shape, _) in program.tensors.items():
        owner = program.aliases.get(name, name)
        if owner in drawn:
            continue
        ref = by_ref.get(name)
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        if ref in variances or (ref in learned and len(shape) == 1):
            drawn[owner] = 0.5 + torch.rand(shape, generator=rng, dtype=torch.float64)
        elif ref in means:
            drawn[owner] = 0.3 * noise
        elif name in real and ref not in learned:
            drawn[owner] = _double(real[name])
        elif len(shape) > 1:
            drawn[owner] = gain * noise / max(noise[0].numel(), 1) ** 0.5
        else:
            last = name.rsplit(".", 1)[-1]
            drawn[owner] = 0.3 * noise + (0.0 if "bias" in last else 1.0)
    return drawn


def inputs(program: Program, rng: torch.Generator) -> dict[str, Tensor]:
    """Inputs and constants in float64; constant floating inputs are replaced by noise."""
    found = {}
    for source in program.sources:
        if source.kind == "parameter" or source.name in program.tensors or source.value is None:
            continue
        value = _double(source.value)
        if source.kind == "input" and value.is_floating_point() and _flat(value):
            value = torch.randn(value.shape, generator=rng, dtype=value.dtype)
        found[source.name] = value
    return found


def _statistics(program: Program) -> tuple[set[Ref], set[Ref]]:
    means: set[Ref] = set()
    variances: set[Ref] = set()
    for op in program.ops:
        at = _VARIANCE_AT.get(op.family)
        for found, place in ((means, -1), (variances, 0)):
            if at is not None and at < len(op.args) and isinstance(op.args[at + place], Ref):
                found.add(op.args[at + place])
    return means, variances


def _flat(value: Tensor) -> bool:
    return value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())


def _double(value: Tensor) -> Tensor:
    value = value.detach()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value

