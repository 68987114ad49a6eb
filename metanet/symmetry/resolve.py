"""From a checkpoint and the name of its architecture, or a written space, to a WeightSpace.

What a file tells by itself is read from its header: torch is imported where code is traced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint import Checkpoint
from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import natural_key, printable, some
from metanet.errors import SpaceMismatch, SymmetryError, TraceError
from metanet.symmetry.axis import Fixed
from metanet.symmetry.meta import Frozen, Meta, Wire
from metanet.symmetry.recognise import Recognised, looked_up, recognise
from metanet.symmetry.space import TensorSpec, WeightSpace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metanet.symmetry.verify import Verification
    from metanet.trace.archs import Built
    from metanet.trace.archs.stored import Storage
    from metanet.trace.program import Program

_LONGEST_SPEC = 64 << 20


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checkpoint with what is known about it.

    Attributes:
        checkpoint: with exactly the names of the space, and more that are not floating; where a
            file cuts the tensors in another way, a view of it that puts them together.
        arch: name of the architecture, or None.
        space: None where nothing is known.
        verification: where one was asked for.
        module: has the architecture and none of the weights.
        file: the checkpoint as it is stored.
        stored_as: how ``file`` stores the tensors of ``module``; None: as they are.
        route: how the architecture was found: ``arch`` or ``spec`` (named by the caller),
            ``config``, ``timm``, ``adapter``, ``cache``, ``pattern``, ``chain``, or None.
        note: what was recognised and by what, or why nothing was.
    """

    checkpoint: Checkpoint
    arch: str | None = None
    space: WeightSpace | None = None
    verification: Verification | None = None
    module: nn.Module | None = None
    file: Checkpoint | None = None
    stored_as: Storage | None = None
    route: str | None = None
    note: str = ""

    @property
    def stored(self) -> Checkpoint:
        """The checkpoint as it is stored."""
        return self.checkpoint if self.file is None else self.file

    @property
    def storage(self) -> Storage:
        """How ``file`` stores the tensors of ``module``."""
        from metanet.trace.archs.stored import Storage

        return self.stored_as or Storage()

    @property
    def code(self) -> str | None:
        """Name of the architecture, where its code is there to be run."""
        return None if self.module is None else self.arch

    def alike(self, other: Any) -> Checkpoint:
        """Another file of the same network, stored in the same way, seen as ``checkpoint`` is."""
        return self.storage.view(open_checkpoint(other))

    def restore(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of ``checkpoint`` → tensors by those of the file, bit for bit."""
        return self.storage.restore(state)


def resolve(
    src: Any, arch: str | None = None, spec: str | os.PathLike[str] | None = None,
    verify: bool = False, kinds: Iterable[str] = (),
) -> Resolved:
    """Open a checkpoint and find its space.

    Without ``arch`` and ``spec`` the file alone has to tell: a config beside it, the names that a
    known network has, or shapes that chain in one way only (see ``metanet.symmetry.recognise``).

    Args:
        src: anything that ``metanet.open`` takes.
        arch: name of the architecture, see ``metanet.trace.archs.names()``.
        spec: path of a written space, or its text; it wins over inference.
        verify: prove the space on the architecture (named, or told by a config).
        kinds: larger kinds to look for (see ``infer``); not where a spec says what they are.

    Raises:
        CheckpointError: the checkpoint or the file of the spec cannot be read.
        SpaceMismatch: architecture or spec do not fit the checkpoint.
        SymmetryError: the spec is malformed, or ``verify`` without an architecture.
    """
    file = open_checkpoint(src)
    if arch is not None:
        return _traced(file, arch, spec, verify, tuple(kinds))
    if spec is not None:
        _need_network(verify)
        return Resolved(file, None, _declared(spec, file), file=file, route="spec")
    return _alone(file, verify, tuple(kinds))


def _need_network(verify: bool, note: str = "") -> None:
    if verify:
        raise SymmetryError(
            f"nothing to verify against{': ' if note else ''}{note}; a space is proved by running "
            "the network. Name the architecture (arch=..., --arch on the command line)."
        )


def _alone(file: Checkpoint, verify: bool, kinds: tuple[str, ...]) -> Resolved:
    """From the file alone: by the code that its config names, or by what it looks like."""
    found = recognise(file)
    if found.code is not None:
        try:
            told = _traced(file, found.code, None, verify, kinds)
        except (TraceError, SymmetryError) as error:
            if verify:
                raise
            return _untraced(file, found, error)
        return replace(told, route=found.route, note=found.note)
    if found.arch is not None and (verify or kinds):  # the table knows whose code to run
        return replace(_traced(file, found.arch, None, verify, kinds), route=found.route,
                       note=found.note)
    _need_network(verify, found.note)
    unseen = "; signs and scales are not looked for without a network to run" if kinds else ""
    return Resolved(file, found.arch, found.space, file=file, route=found.route,
                    note=found.note + unseen)


def _untraced(file: Checkpoint, found: Recognised, error: Exception) -> Resolved:
    """What is left where a config's code does not fit, or cannot be had: the table, or nothing."""
    note = f"{found.note}; {error}"
    known = looked_up(file) if isinstance(error, TraceError) else ""
    if isinstance(known, str):
        return Resolved(file, file=file, note=note)
    return Resolved(file, known.arch, known.space, file=file, route=known.route,
                    note=f"{known.note} ({note})")


def _traced(
    file: Checkpoint, arch: str, spec: str | os.PathLike[str] | None, verify: bool,
    kinds: tuple[str, ...],
) -> Resolved:
    """From the code that ``arch`` names."""
    from metanet.symmetry.enlarge import enlarge
    from metanet.symmetry.infer import infer_program
    from metanet.symmetry.verify import check_names, verify_program

    opened = Opened.of(file, arch)
    program = opened.program
    declared = None if spec is None else _declared(spec, opened.checkpoint)
    if declared is None:
        found = infer_program(program)
        space = enlarge(program, found, kinds) if kinds else found
    else:
        check_names(program, declared)
        space = declared
    verification = verify_program(program, space) if verify else None
    if verification is not None and verification.ok:
        space = space.with_status("verified")
    if declared is None:
        space = opened.fit(space)
    return Resolved(opened.checkpoint, arch, space, verification, opened.made.module, file,
                    opened.made.storage, "arch")


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint and the recorded network that its tensors belong to, under the same names."""

    made: Built
    checkpoint: Checkpoint
    program: Program

    @classmethod
    def of(cls, source: Any, arch: str | None, example_inputs: Any = None) -> Opened:
        """Build the architecture, or the one that the file's config tells, and record it.

        Raises:
            SymmetryError: no code is known, for a file of weights does not say what computes with
                them.
        """
        from metanet.symmetry.infer import record

        file = open_checkpoint(source)
        made = _made(file, arch)
        checkpoint = made.storage.view(file)
        _load_buffers(made, checkpoint)
        inputs = made.example_inputs if example_inputs is None else example_inputs
        return cls(made, checkpoint, renamed(record(made.module, inputs), made.storage.renamed))

    def fit(self, space: WeightSpace) -> WeightSpace:
        """The space of the program with exactly the tensors of the checkpoint."""
        fitted = with_names(space, self.checkpoint)
        return with_unread(fitted, self.checkpoint, self.made.storage.unread)


def recognised_space(source: Any) -> WeightSpace | None:
    """The space of a file that tells it without any code to trace; None where it does not."""
    found = recognise(open_checkpoint(source))
    return found.space if found.code is None else None


def _made(file: Checkpoint, arch: str | None) -> Built:
    from metanet.trace.archs import build

    if arch is not None:
        return build(arch, file)
    found = recognise(file)
    code = found.code or found.arch
    if code is None:
        raise SymmetryError(
            f"{printable(file.source.uri)} holds weights and not the code that uses them, and "
            f"nothing is guessed ({found.note}): name the architecture, e.g. "
            "arch='resnet20-cifar' or 'mlp'; metanet.trace.archs.names() lists them."
        )
    return build(code, file)


def built(source: Any, arch: str | None, example_inputs: Any = None) -> tuple[nn.Module, Any]:
    """The module of an architecture for a checkpoint, with the checkpoint's buffers.

    Raises:
        SymmetryError: no architecture is named, and the file's config does not tell it.
    """
    file = open_checkpoint(source)
    made = _made(file, arch)
    _load_buffers(made, made.storage.view(file))
    return made.module, made.example_inputs if example_inputs is None else example_inputs


def _load_buffers(made: Built, checkpoint: Checkpoint) -> None:
    """Whether a buffer is constant decides on symmetry, so the file's own values count.

    Running statistics move like parameters, whatever their values: they are not read, and of a
    file on the Hub nothing is downloaded for them.
    """
    import torch
    from torch import nn

    norms = {name for name, child in made.module.named_modules()
             if isinstance(child, nn.modules.batchnorm._NormBase)}
    for name, buffer in made.module.named_buffers():
        seen = made.storage.seen(name)
        if name.rpartition(".")[0] in norms:
            continue
        if seen in checkpoint and buffer.is_floating_point() and not buffer.is_meta:
            with torch.no_grad():
                buffer.copy_(checkpoint.read(seen))


def renamed(program: Program, names: Mapping[str, str]) -> Program:
    """The program with other names for its weights; the first of tied names owns the values."""
    if not names:
        return program
    tensors = {names.get(name, name): told for name, told in program.tensors.items()}
    classes: dict[str, list[str]] = {}
    for name in program.tensors:
        classes.setdefault(program.aliases.get(name, name), []).append(names.get(name, name))
    owners = {name: min(same, key=natural_key) for same in classes.values() for name in same}
    sources = tuple(
        replace(source, name=names.get(source.name, source.name))
        if source.kind in ("parameter", "buffer") else source for source in program.sources)
    aliases = {name: owner for name, owner in owners.items() if name != owner}
    return replace(program, sources=sources, tensors=tensors, aliases=aliases)


def with_unread(
    space: WeightSpace, checkpoint: Checkpoint, unread: Iterable[str]
) -> WeightSpace:
    """The space with the floating tensors that the network does not read, which stay fixed."""
    shapes = {name: checkpoint.shape(name) for name in unread
              if is_floating(checkpoint.dtype(name))}
    if not shapes:
        return space
    tensors = space.tensors | {name: TensorSpec(shape, tuple(map(Fixed, shape)))
                               for name, shape in shapes.items()}
    reasons = {name: {axis: (Frozen(size, "the network does not read this tensor"),)
                      for axis, size in enumerate(shape)} for name, shape in shapes.items()}
    meta = replace(space.meta, reasons={**space.meta.reasons, **reasons})
    return WeightSpace(space._declared.values(), tensors, space.aliases, status=space.status,
                       meta=meta)


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
