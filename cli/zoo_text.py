"""How the verbs of ``metanet zoo`` look in a terminal and in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import safe, table

if TYPE_CHECKING:
    from metanet.zoo import ZooVerification

_HIDDEN = ("layout", "hash", "space", "shard", "row")


def info_text(found: Mapping[str, Any]) -> Iterator[str]:
    """Members and size, then spaces, metrics and parts as tables."""
    state = "complete" if found["complete"] else "not complete"
    yield (f"{found['members']} members in {found['shards']} shards, {found['bytes']:,} bytes, "
           f"{state}, licence {safe(found['license'])}")
    if found["recipe_hash"]:
        yield f"recipe {found['recipe_hash'][:12]}"
    yield ""
    yield from table(("space", "layout", "members", "tensors", "parameters", "status"), [
        ((s["space"] or "unknown")[:12], s["layout"][:12], s["members"], s["tensors"],
         s["parameters"], s["status"] or "") for s in found["spaces"]])
    if found["metrics"]:
        yield ""
        yield from table(("metric", "min", "mean", "max", "missing"), [
            (safe(name), *(_number(m.get(k)) for k in ("min", "mean", "max")), m["missing"])
            for name, m in found["metrics"].items()])
    if found["splits"]["parts"]:
        yield ""
        yield from table(("part", "members"),
                         [(safe(a), n) for a, n in found["splits"]["parts"].items()])


def query_text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per member; the columns that are nowhere empty, without the long hashes."""
    if not rows:
        return ["no member"]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    if len(rows[0]) > len(_HIDDEN):
        names = [name for name in names if name not in _HIDDEN]
    return table([safe(name) for name in names],
                 [[_number(row[name]) for name in names] for row in rows])


def verify_document(found: ZooVerification) -> dict[str, Any]:
    """The fixed fields first, then every check of the gate."""
    checks = found.gate.checks if found.gate is not None else ()
    return {"members": found.members, "ok": found.ok, "missing": found.missing,
            "corrupt": found.corrupt, "leaks": found.leaks, "orphans": found.orphans,
            "deep": found.deep, "complete": found.complete, "checks": checks,
            "skipped": dict(found.gate.skipped) if found.gate is not None else {}}


def verify_text(found: ZooVerification) -> Iterator[str]:
    """A verdict, what is wrong, then the gate as a table."""
    yield (f"{found.members} members: " + ("ok" if found.ok else "NOT ok")
           + ("" if found.deep else " (sizes and headers only)"))
    for what, lines in (("missing", found.missing), ("corrupt", found.corrupt),
                        ("leak", found.leaks), ("left by a killed writer", found.orphans)):
        yield from (f"{what}: {safe(line)}" for line in lines)
    if found.gate is None:
        return
    if found.gate.checks:
        yield ""
        yield from table(
            ("evidence", "label", "classifier", "members", "accuracy", "chance", "band", "p", ""),
            [(c.evidence, safe(c.label), c.classifier, c.members, f"{c.accuracy:.3f}",
              f"{c.chance:.3f}", f"{c.band[0]:.3f}-{c.band[1]:.3f}", f"{c.p_all:.4f}",
              "LEAK" if not c.ok else f"declared: {safe(c.reason)}" if c.reason else "ok")
             for c in found.gate.checks])
    yield from (f"not checked: {safe(what)}: {safe(why)}"
                for what, why in found.gate.skipped.items())


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else safe(value)
