"""From spaces and checkpoints to JSON documents and to text. Fields as in the public interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .output import safe, table

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.symmetry import Group, Resolved, Verification, WeightSpace

NAME_AN_ARCHITECTURE = (
    "a file of weights does not say what computes with them: name the architecture to see its "
    "symmetry, e.g. --arch resnet20-cifar, --arch mlp, --arch timm:NAME, --arch hf:FOLDER, "
    "--arch file.py:factory, or --spec FILE"
)


def header_document(resolved: Resolved) -> dict[str, Any]:
    """JSON of ``inspect`` where no symmetry is known: the header, and why nothing is guessed."""
    checkpoint = resolved.stored
    names = list(checkpoint.names)
    return {
        "source": str(checkpoint.source.uri),
        "arch": None,
        "route": None,
        "note": resolved.note,
        "status": None,
        "n_tensors": len(names),
        "n_parameters": checkpoint.n_parameters,
        "groups": [],
        "frozen": [],
        "unsupported_ops": [],
        "verification": None,
        "tensors": [{"name": name, "shape": list(checkpoint.shape(name)),
                     "dtype": str(checkpoint.dtype(name))} for name in names],
        "aliases": dict(checkpoint.aliases),
    }


def header_text(resolved: Resolved) -> Iterator[str]:
    """Text of ``inspect`` where no symmetry is known."""
    checkpoint = resolved.stored
    yield _title(checkpoint)
    rows = [(safe(name), "x".join(map(str, checkpoint.shape(name))) or "scalar",
             checkpoint.dtype(name)) for name in checkpoint.names]
    yield from table(("tensor", "shape", "dtype"), rows)
    for alias, owner in checkpoint.aliases.items():
        yield f"{safe(alias)} = {safe(owner)}"
    yield f"not recognised: {safe(resolved.note)}"


def space_document(resolved: Resolved) -> dict[str, Any]:
    """JSON of ``inspect`` where the space is known, and by what."""
    space, checkpoint = resolved.space, resolved.checkpoint
    return {
        "source": str(checkpoint.source.uri),
        "arch": resolved.arch,
        "route": resolved.route,
        "note": resolved.note,
        "status": space.status,
        "n_tensors": len(checkpoint.names),
        "n_parameters": checkpoint.n_parameters,
        "groups": [group_document(group) for group in space.groups],
        "frozen": list(frozen(space)),
        "unsupported_ops": [{"op": op.op, "where": op.where, "lost": op.lost}
                            for op in space.meta.unsupported],
        "verification": verification_document(resolved.verification),
    }


def space_text(resolved: Resolved) -> Iterator[str]:
    """Text of ``inspect`` where the space is known, and by what."""
    space = resolved.space
    yield _title(resolved.checkpoint)
    yield f"{len(space.groups)} groups, {space.status} {_origin(resolved)}"
    if resolved.stored_as is not None and resolved.storage.parts:
        cut = sum(len(part.stored) for part in resolved.storage.parts)
        yield (f"{cut} tensors of the file are seen as "
               f"{sum(len(part.names) for part in resolved.storage.parts)}, and written back so")
    yield ""
    yield from map(safe, str(space).splitlines())
    yield ""
    yield from groups_table(space)
    for op in space.meta.unsupported:
        yield f"no rule for {safe(op.op)} at {safe(op.where)}: {op.lost} dims frozen"
    if resolved.verification is not None:
        yield ""
        yield verification_line(resolved.verification)


def _origin(resolved: Resolved) -> str:
    """Where a space comes from, in words."""
    if resolved.route == "spec":
        return "in the given spec"
    if resolved.route == "arch":
        return f"from {safe(resolved.arch)}"
    return f"from the file alone ({safe(resolved.route)}): {safe(resolved.note)}"


def group_document(group: Group) -> dict[str, Any]:
    """JSON of a group."""
    return {"label": group.label, "size": group.size, "kind": group.kind,
            "over": list(group.over), "copies": group.copies, "dead": group.dead,
            "tensors": list(group.tensors)}


def groups_table(space: WeightSpace) -> list[str]:
    """One row per group."""
    rows = [(g.label, g.kind, g.size, " ".join(g.over) or "-", g.copies,
             "dead" if g.dead else "live", len(g.tensors)) for g in space.groups]
    return table(("group", "kind", "size", "over", "copies", "state", "tensors"), rows)


def frozen(space: WeightSpace) -> Iterator[dict[str, Any]]:
    """Every part of an axis without freedom, with its reason."""
    for name, spec in space.tensors.items():
        known: Mapping[int, Any] = space.meta.reasons.get(name, {})
        for axis in range(len(spec.shape)):
            for size, reason in ([(part.size, part.reason) for part in known.get(axis, ())]
                                 or _declared(space, name, axis)):
                yield {"tensor": name, "axis": axis, "size": size, "reason": reason}


def _declared(space: WeightSpace, name: str, axis: int) -> list[tuple[int, str]]:
    """Fixed digits of an axis of which only the text form is known."""
    found: dict[tuple[int, str], None] = {}
    for block in space.blocks(name):
        for digit in block.digits:
            if digit.axis != axis:
                continue
            group = space.group(digit.label) if digit.label is not None else None
            if group is None:
                found[digit.size, "written as fixed in the space"] = None
            elif group.kind == "fixed":
                found[digit.size, group.reason or "written as fixed in the space"] = None
    return list(found)


def verification_document(v: Verification | None) -> dict[str, Any] | None:
    """JSON of a verification."""
    if v is None:
        return None
    controls = {key: getattr(v.controls, key) for key in ("total", "detected", "dead", "single")}
    return {"ok": v.ok, "max_error": v.max_error, "samples": v.samples, "dtype": str(v.dtype),
            "controls": controls}


def verification_line(v: Verification) -> str:
    """One sentence that says what was proved."""
    c = v.controls
    return (f"{'verified' if v.ok else 'NOT VERIFIED'}: {v.samples} random elements change the "
            f"outputs by at most {v.max_error:.1e} in {v.dtype}; {c.detected} of {c.total} "
            f"negative controls detected ({c.single} groups in one tensor only, {c.dead} dead)")


def _title(checkpoint: Checkpoint) -> str:
    return (f"{safe(checkpoint.source.uri)}: {len(checkpoint.names)} tensors, "
            f"{checkpoint.n_parameters:,} parameters")
