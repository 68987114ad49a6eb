"""From a checkpoint and the name of its architecture, or a written space, to a WeightSpace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metanet.checkpoint import Checkpoint
from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import printable, some
from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry.enlarge import enlarge
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.meta import Meta, Wire
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.verify import Verification, check_names, verify_program
from metanet.trace.archs import build

_LONGEST_SPEC = 64 << 20


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checkpoint with what is known about it; nothing is known without ``arch`` or ``spec``.

    ``module`` has the architecture and none of the weights; ``space`` has exactly the names of
    the checkpoint's floating tensors.
    """

    checkpoint: Checkpoint
    arch: str | None = None
    space: WeightSpace | None = None
    verification: Verification | None = None
    module: nn.Module | None = None


def resolve(
    src: Any, arch: str | None = None, spec: str | os.PathLike[str] | None = None,
    verify: bool = False, kinds: Iterable[str] = (),
) -> Resolved:
    """Open a checkpoint and find its space.

    Args:
        src: anything that ``metanet.open`` takes.
        arch: name of the architecture, see ``metanet.trace.archs.names()``.
        spec: path of a written space, or its text; it wins over inference.
        verify: prove the space on the architecture (needs ``arch``).
        kinds: larger kinds to look for (see ``infer``); not where a spec says what they are.

    Raises:
        CheckpointError: the checkpoint or the file of the spec cannot be read.
        SpaceMismatch: architecture or spec do not fit the checkpoint.
        SymmetryError: the spec is malformed, or ``verify`` without ``arch``.
    """
    checkpoint = open_checkpoint(src)
    if verify and arch is None:
        raise SymmetryError(
            "nothing to verify against: a space is proved by running the network. Name the "
            "architecture (arch=..., --arch on the command line)."
        )
    space = None if spec is None else _declared(spec, checkpoint)
    if arch is None:
        return Resolved(checkpoint, None, space)
    module, example_inputs = built(checkpoint, arch)
    program = record(module, example_inputs)
    if space is None:
        found = infer_program(program)
        wanted = tuple(kinds)
        space = with_names(enlarge(program, found, wanted) if wanted else found, checkpoint)
    else:
        check_names(program, space)
    if not verify:
        return Resolved(checkpoint, arch, space, None, module)
    verification = verify_program(program, space)
    if verification.ok:
        space = space.with_status("verified")
    return Resolved(checkpoint, arch, space, verification, module)


def built(source: Any, arch: str | None, example_inputs: Any = None) -> tuple[nn.Module, Any]:
    """The module of an architecture for a checkpoint, with the checkpoint's buffers.

    Raises:
        SymmetryError: no architecture is named, for a file of weights does not say what computes
            with them.
    """
    checkpoint = open_checkpoint(source)
    if arch is None:
        raise SymmetryError(
            f"{checkpoint.source.uri} holds weights and not the code that uses them, and nothing "
            "is guessed: name the architecture, e.g. arch='resnet20-cifar' or 'mlp'; "
            "metanet.trace.archs.names() lists them."
        )
    made = build(arch, checkpoint)
    _load_buffers(made.module, checkpoint)
    return made.module, made.example_inputs if example_inputs is None else example_inputs


def _load_buffers(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Whether a buffer is constant decides on symmetry, so the file's own values count."""
    for name, buffer in module.named_buffers():
        if name in checkpoint and buffer.is_floating_point() and not buffer.is_meta:
            with torch.no_grad():
                buffer.copy_(checkpoint.read(name))


def _declared(spec: str | os.PathLike[str], checkpoint: Checkpoint) -> WeightSpace:
    """The written space, which must know every floating tensor of the checkpoint."""
    space = WeightSpace.parse(_spec_text(spec), shapes=checkpoint)
    unknown = [name for name in checkpoint.names if is_floating(checkpoint.dtype(name))
               and name not in space.tensors and name not in space.aliases]
    if unknown:
        raise SpaceMismatch(
            f"the spec does not know {some(unknown)} of {printable(checkpoint.source.uri)}; "
            "write one line for each tensor, e.g. with fixed sizes ('name: 3! 5!')"
        )
    return space


def _spec_text(spec: str | os.PathLike[str]) -> str:
    """The text itself, or the text of the file."""
    if isinstance(spec, str) and ("\n" in spec or spec.lstrip().startswith("space v1")):
        return spec
    path = Path(spec)
    try:
        if path.stat().st_size > _LONGEST_SPEC:
            raise SymmetryError(f"{path} is longer than any written space; is it a checkpoint?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SymmetryError(f"the spec {path} cannot be read as text: {error}. Give the path of "
                            "a file written by inspect --save-spec, or the text itself.") from error


def with_names(space: WeightSpace, checkpoint: Checkpoint) -> WeightSpace:
    """The space under the names that a file has: a file may store one name of a tied tensor."""
    present = {name for name in (*space.tensors, *space.aliases) if name in checkpoint}
    renamed: dict[str, str] = {}
    for alias, owner in space.aliases.items():
        if owner not in present and alias in present:
            renamed.setdefault(owner, alias)
    absent = [a for a in space.aliases if a not in present and a not in renamed.values()]
    if not renamed and not absent:
        return space
    tensors = {renamed.get(name, name): spec for name, spec in space.tensors.items()}
    aliases = {
        alias: renamed.get(owner, owner) for alias, owner in space.aliases.items()
        if alias in present and renamed.get(owner) != alias
    }
    groups = space._declared.values()
    meta = _renamed_meta(space.meta, renamed)
    return WeightSpace(groups, tensors, aliases, status=space.status, meta=meta)


def _renamed_meta(meta: Meta, renamed: Mapping[str, str]) -> Meta:
    def name(old: str | None) -> str | None:
        return None if old is None else renamed.get(old, old)

    return replace(
        meta,
        tensors={str(name(key)): value for key, value in meta.tensors.items()},
        reasons={str(name(key)): value for key, value in meta.reasons.items()},
        wiring=tuple(Wire(w.source, w.target, name(w.tensor)) for w in meta.wiring),
    )
