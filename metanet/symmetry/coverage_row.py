"""One row of the coverage table: build, record, infer, verify and audit one architecture."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from metanet.errors import MetanetError, TraceError
from metanet.symmetry.audit import audit_program
from metanet.symmetry.axis import occurrences
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.verify import AMPLIFIED, verify_program
from metanet.trace.program import Program

_TOO_LARGE = 150_000_000
_UNUSED = 0.3
"""Largest share of the axes that may lie in tensors that no output depends on: with two layers
each, towers of which one layer or a pooler is not read come to a quarter; a modality that is left
out comes to more."""
_CLASSES = (
    ("unsupported", "unsupported operation"), ("digits do not fit", "digits do not fit"),
    ("input", r"^input|^constant|^buffer"), ("output", r"^output"),
    ("lookup", "looked up|read by index|indices"), ("spatial", "spatial|kernel"),
    ("order", "order of|causal|strided|window"), ("told apart", "told apart"),
    ("padding", "padding"), ("made", "made|numbered"), ("complex", "imaginary"),
)

Row = dict[str, Any]


def measure(name: str, note: Callable[[Row], None]) -> Row:
    """The row of ``timm/MODULE`` or ``transformers/TYPE``; ``note`` gets what is known so far."""
    start = time.perf_counter()
    row: Row = {"name": name, "built": False, "verified": False, "failure": None}
    try:
        _measure(name, row, note)
    except Exception as error:
        known = isinstance(error, MetanetError)
        row["failure"] = row["failure"] or (
            f"{row.get('stage', 'build')}: {'' if known else type(error).__name__ + ': '}"
            f"{str(error)[:500]}")
    row.pop("stage", None)
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def _models(name: str) -> Iterator[tuple[str, nn.Module, Any]]:
    library, _, kind = name.partition("/")
    if library == "timm":
        from metanet.trace.archs.families import timm_models

        return timm_models(kind)
    from metanet.trace.archs.tiny import tiny_models

    return ((variant, module, None) for variant, module in tiny_models(kind))


def _measure(name: str, row: Row, note: Callable[[Row], None]) -> None:
    row["stage"] = "build"
    fallback = None
    for variant, module, inputs in _models(name):
        if fallback is not None and _level(variant) != _level(fallback[3]):
            break
        row |= {"built": True, "variant": variant, "stage": "trace"}
        note(row)
        try:
            program = record(module, inputs)
        except TraceError as error:
            row["failure"] = row["failure"] or f"trace: {str(error)[:500]}"
            continue
        space = infer_program(program)
        if fallback is None or _unused(program, space) < fallback[2]:
            fallback = program, space, _unused(program, space), variant
        if fallback[2] <= _UNUSED:
            break
    if fallback is None:
        return
    program, space, _, row["variant"] = fallback
    row["front end"] = program.front_end
    row |= {"failure": None, "stage": "verify"}
    row |= _described(program, space)
    note(row)
    _prove(program, space, row, note)


def _level(variant: str) -> str:
    """How much a model was shrunk, or its image size."""
    return variant.rpartition("(")[2]


def _prove(program: Program, space: WeightSpace, row: Row, note: Callable[[Row], None]) -> None:
    size = sum(_count(shape) for shape, _ in program.tensors.values())
    if size > _TOO_LARGE:
        row["failure"] = f"too large to verify: {size:,} parameters"
        return
    found = verify_program(program, space, samples=2)
    row |= {"sound": found.max_error <= 1e-10, "notes": list(found.notes), "error": found.max_error,
            "controls": found.controls.total, "undetected": list(found.undetected)}
    note({**row, "stage": "audit"})
    audit = audit_program(program)
    row |= {"audited": audit.tried, "doubtful": audit.doubtful,
            "missed": [f"{m.size} on {', '.join(m.tensors[:3])}: {m.reason}" for m in audit.missed]}
    row["failure"] = _failure(row, found.empty)
    row["verified"] = row["failure"] is None


def _failure(row: Row, empty: bool) -> str | None:
    """The first thing that keeps a row from being verified."""
    lost = [u for u in row["unsupported"] if u["lost"] and u["op"] != "digits do not fit"]
    if not row["sound"] and AMPLIFIED in row["notes"]:
        row["sound"] = None  # neither proved nor refuted
        return f"verify: {AMPLIFIED}"
    if not row["sound"]:
        return f"FALSE CLAIM: a random element changes the output by {row['error']:.1e}"
    if lost:
        return f"frozen by {lost[0]['op']} at {lost[0]['where']} ({lost[0]['lost']} lost)"
    if row["frozen"].get("unsupported"):
        return f"{row['frozen']['unsupported']} indices fixed by an unsupported operation"
    if row["doubtful"]:
        return (f"{row['frozen'].get('digits do not fit', 0)} indices fixed because digits do not "
                f"fit, and no swap of {row['doubtful']} digits was seen to count")
    if row["undetected"]:
        return f"negative control not detected: {', '.join(row['undetected'][:4])}"
    if empty:
        return "no live group"
    if row["unexplained"]:
        return f"neither a group nor a reason: {', '.join(row['unexplained'][:4])}"
    if row["missed"]:
        return f"audit: missed swap of {row['missed'][0]}"
    if row["unused"] > _UNUSED:
        return f"{row['unused']:.0%} of all axes lie in tensors that no output depends on"
    return None


def _described(program: Program, space: WeightSpace) -> Row:
    free, total, reasons = 0, 0, Counter[str]()
    for name, spec in space.tensors.items():
        total += sum(spec.shape)
        fixed = space.meta.reasons.get(name, {})
        for parts in fixed.values():
            for part in parts:
                reasons[_class(part.reason)] += part.size
        free += sum(n for at, n in enumerate(spec.shape)
                    if any(True for _ in occurrences(spec.axes[at])) and at not in fixed)
    groups = Counter((g.kind, g.size, tuple(g.over)) for g in space.groups)
    sizes = {g.label: g.size for g in (*space.groups, *space.fixed)}
    listed = Counter[str]()
    for (kind, size, over), count in groups.items():
        below = "".join(f"/[{sizes.get(label, '?')}]" for label in over)
        listed[f"{kind}{size}{below}"] += count
    return {
        "groups": len(space.groups), "group list": dict(listed.most_common(40)),
        "dead": sum(g.dead for g in space.groups), "free": free, "total": total,
        "frozen": dict(reasons), "unexplained": unexplained(space),
        "unused": round(_unused(program, space), 4),
        "unsupported": [{"op": u.op[:200], "where": u.where, "lost": u.lost}
                        for u in space.meta.unsupported][:20],
    }


def unexplained(space: WeightSpace) -> list[str]:
    """Axes, as ``tensor[axis]``, that no group moves and of which no rule says why.

    Groups that are dead count: that no output depends on an axis is a reason.
    """
    labels = {group.label for group in space.groups}
    found = []
    for name, spec in space.tensors.items():
        told = space.meta.reasons.get(name, {})
        for at, size in enumerate(spec.shape):
            moved = any(occ.label in labels for occ in occurrences(spec.axes[at]))
            why = [part.reason for part in told.get(at, ())]
            if size > 1 and not moved and (not why or "fixed" in why):
                found.append(f"{name}[{at}]")
    return found


def _class(reason: str) -> str:
    first = reason.partition("; reached")[0]
    return next((label for label, pattern in _CLASSES if re.search(pattern, first)), "other")


def _unused(program: Program, space: WeightSpace) -> float:
    """Share of the axes of parameters in those of which no output depends on anything."""
    live, known = program.live(), {*space.tensors, *space.aliases}
    own = [s for s in program.sources if s.kind == "parameter" and s.name in known]
    sizes = {space.owner(s.name): sum(s.shape) for s in own}
    used = {space.owner(s.name) for s in own if s.ref.index in live}
    return 1 - sum(sizes[name] for name in used) / max(sum(sizes.values()), 1)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
