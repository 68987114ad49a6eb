"""``infer``: module or checkpoint → WeightSpace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from metanet.errors import SymmetryError, TraceError
from metanet.symmetry.emit import emit
from metanet.symmetry.fibre import settle
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.track import track
from metanet.trace.dispatch import dispatch_program
from metanet.trace.experts import batched_experts
from metanet.trace.export import export_program
from metanet.trace.inputs import synthesise
from metanet.trace.program import Program

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint


def infer(
    source: nn.Module | Checkpoint | Mapping[str, Any] | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    arch: str | None = None,
    strict: bool = False,
    verify: bool = False,
    kinds: Iterable[str] = (),
) -> WeightSpace:
    """Find the group of permutations that leaves a network's function unchanged.

    Args:
        source: a live module; or a checkpoint (path, state dict, ``Checkpoint``) with ``arch``, or
            one that tells what it is (see ``resolve``).
        example_inputs: what the module's forward takes: a tensor, a tuple, a mapping of keyword
            arguments or a pair (tuple, mapping); sizes of at least 2, pairwise distinct. Made up
            when None.
        arch: name of the architecture of a checkpoint, such as ``resnet20-cifar``.
        strict: raise where an operation has no rule, instead of freezing what it touches.
        verify: prove the space, so that its status is ``verified``.
        kinds: larger kinds to look for, of ``positive`` and ``signed``: a group gets signs or
            positive scales, with exponents, where random elements prove them.

    Returns:
        A space with status ``inferred`` (or ``verified``).

    Raises:
        TraceError: the forward cannot be recorded.
        SpaceMismatch: the architecture's tensors are not those of the checkpoint.
        SymmetryError: ``strict`` and some operation has no rule, or ``verify`` and it failed.
    """
    opened = None
    if isinstance(source, nn.Module):
        program = record(source, example_inputs)
    else:
        from metanet.symmetry.resolve import Opened, recognised_space

        if arch is None and example_inputs is None and not (verify or strict or kinds):
            known = recognised_space(source)
            if known is not None:
                return known
        opened = Opened.of(source, arch, example_inputs)
        program = opened.program
    space = infer_program(program)
    if strict and space.meta.unsupported:
        found = "; ".join(f"{u.op} at {u.where} ({u.lost} dims lost)"
                          for u in space.meta.unsupported)
        raise SymmetryError(f"no rule for {found}. Register one with metanet.rule, or leave out "
                            "strict to freeze what these operations touch.")
    wanted = tuple(kinds)
    if wanted:
        from metanet.symmetry.enlarge import enlarge

        space = enlarge(program, space, wanted)
    if verify:
        space = _proved(program, space)
    return space if opened is None else opened.fit(space)


def _proved(program: Program, space: WeightSpace) -> WeightSpace:
    from metanet.symmetry.verify import verify_program

    found = verify_program(program, space)
    if not found.ok:
        raise SymmetryError(
            f"the inferred space could not be proved: {found.report()}\nGive example inputs with "
            "sizes of at least 2 that differ from each other, or use infer without verify."
        )
    return space.with_status("verified")


def record(module: nn.Module, example_inputs: Any = None) -> Program:
    """The stream of operations of one forward pass; ``Program.front_end`` says who recorded it.

    ``torch.export`` comes first; what it refuses is recorded operation by operation.

    Raises:
        TraceError: neither front end can record it.
    """
    if example_inputs is None:
        example_inputs = synthesise(module)
    with batched_experts(module):
        try:
            return export_program(module, example_inputs)
        except TraceError as refused:
            try:
                return dispatch_program(module, example_inputs)
            except TraceError as error:
                raise TraceError(f"{refused} Recording it operation by operation failed too: "
                                 f"{error}") from error


def infer_program(program: Program) -> WeightSpace:
    """The space of a recorded program."""
    found = track(program)
    owners = [found.axes[name] for name in program.tensors if name not in program.aliases]
    settle(found.solver, owners, found.values)
    return emit(found)
