"""What share of real architectures is inferred, verified and audited: one row per family.

``python -m metanet.symmetry.coverage --timm --transformers --json FILE`` writes a row for the
smallest variant of each timm module and for each key of transformers' CONFIG_MAPPING (with a tiny
random config). Rows are measured in processes of their own, in an order that is shuffled once and
for all, so that a part of the sweep is a fair sample, and are appended to ``FILE.jsonl`` as they
come, so that ``--resume`` continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from metanet.symmetry.coverage_card import card
from metanet.symmetry.coverage_excluded import excluded

Row = dict[str, Any]
_CPU_SECONDS = 200
_WALL_SECONDS = 600


def names(timm: bool, transformers: bool) -> list[str]:
    """``timm/MODULE`` and ``transformers/TYPE``, shuffled the same way each time."""
    found: list[str] = []
    if timm:
        from metanet.trace.archs.families import timm_families

        found += [f"timm/{name}" for name in timm_families()]
    if transformers:
        from metanet.trace.archs.tiny import model_types

        found += [f"transformers/{name}" for name in model_types()]
    return sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def sweep(wanted: Iterable[str], path: Path, done: dict[str, Row]) -> dict[str, Row]:
    """Measure what ``done`` lacks, appending each row to ``path``."""
    rows = dict(done)
    with path.open("a", encoding="utf-8") as out:
        for name in wanted:
            if name in rows:
                continue
            rows[name] = row = _isolated(name)
            out.write(json.dumps(row) + "\n")
            out.flush()
            sys.stdout.write(f"{len(rows):4d} {_line(row)}\n")
            sys.stdout.flush()
    return rows


def _line(row: Row) -> str:
    state = ("excluded" if row.get("excluded") else "verified" if row["verified"] else
             "built" if row["built"] else "not built")
    return f"{row['name']:42s} {state:9s} {row['seconds']:6.1f}s {(row['failure'] or '')[:150]}"


def _isolated(name: str) -> Row:
    """One row, measured in a fork that may use so much time and no more."""
    reason = excluded(name)
    empty: Row = {"name": name, "built": False, "verified": False, "failure": None, "seconds": 0.0}
    if reason is not None:
        return {**empty, "excluded": reason}
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, theirs), daemon=True)
    start, partial = time.perf_counter(), dict(empty)
    child.start()
    theirs.close()
    deadline = time.monotonic() + _WALL_SECONDS
    finished = False
    while not finished and ours.poll(max(deadline - time.monotonic(), 0)):
        try:
            kind, row = ours.recv()
        except EOFError:
            break
        partial.update(row)
        finished = kind == "row"
    if not finished:
        child.kill()
    child.join(5)
    if not finished:
        late = f"more than {_CPU_SECONDS} s of CPU or {_WALL_SECONDS} s"
        stage = partial.pop("stage", "build")
        partial["failure"] = f"{stage}: {late}"
    partial.pop("stage", None)
    partial["seconds"] = round(time.perf_counter() - start, 2)
    return partial


def _child(name: str, out: Connection) -> None:
    import os

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 5))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.dup2(sink, 1)
    from metanet.symmetry.coverage_row import measure

    def note(row: Row) -> None:
        out.send(("note", row))

    out.send(("row", measure(name, note)))
    out.close()


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts and shares for each library, excluded rows left out."""
    found: dict[str, Any] = {}
    for library in ("timm", "transformers"):
        own = [r for r in rows if r["name"].startswith(library) and not r.get("excluded")]
        built = [r for r in own if r["built"]]
        verified = [r for r in own if r["verified"]]
        if own:
            found[library] = {
                "rows": len(own), "built": len(built), "verified": len(verified),
                "false claims": sum(r.get("sound") is False for r in own),
                "missed swaps": sum(bool(r.get("missed")) for r in own),
                "built share": round(len(built) / len(own), 4),
                "verified share of built": round(len(verified) / max(len(built), 1), 4),
                "verified share": round(len(verified) / len(own), 4),
                "failures": Counter(_short(r["failure"]) for r in own
                                    if r["failure"]).most_common(),
            }
    return found


def _short(failure: str) -> str:
    """A failure without the numbers and names that are its own."""
    return re.sub(r"'.*?'|\(.*?\)|\d+", "…", failure)[:100]


def read_rows(path: Path) -> dict[str, Row]:
    """Rows of an earlier sweep by name; the last one counts."""
    if not path.exists():
        return {}
    lines = path.read_text("utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, filter(None, lines))}


def write(path: Path, rows: dict[str, Row]) -> None:
    """Summary and rows as one JSON file."""
    listed = [rows[name] for name in sorted(rows)]
    path.write_text(json.dumps({"summary": summary(listed), "rows": listed}, indent=1) + "\n",
                    encoding="utf-8")


def _write_card(path: Path, rows: dict[str, Row]) -> None:
    listed = [rows[name] for name in sorted(rows)]
    libraries = {name.partition("/")[0] for name in rows}
    every = [n for n in names("timm" in libraries, "transformers" in libraries)
             if excluded(n) is None]
    total = Counter(name.partition("/")[0] for name in every)
    path.write_text(card(listed, summary(listed), total), encoding="utf-8")


def _warm(with_timm: bool, with_transformers: bool) -> None:
    """Import once, before forking, what every row needs."""
    import torch

    from metanet.symmetry import audit, coverage_row  # noqa: F401
    from metanet.trace.archs.vision import prepare_torchvision

    torch.set_num_threads(1)
    prepare_torchvision()
    if with_timm:
        import timm  # noqa: F401
    if with_transformers:
        import transformers
        import transformers.modeling_utils

        transformers.logging.set_verbosity_error()


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when the sweep ran, whatever it found."""
    parser = argparse.ArgumentParser(prog="python -m metanet.symmetry.coverage",
                                     description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--timm", action="store_true", help="measure timm's modules")
    parser.add_argument("--transformers", action="store_true", help="measure CONFIG_MAPPING")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write")
    parser.add_argument("--card", type=Path, metavar="FILE", help="also write a page")
    parser.add_argument("--limit", type=int, help="measure at most so many rows")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name has this")
    parser.add_argument("--resume", action="store_true", help="keep the rows of FILE.jsonl")
    given = parser.parse_args(arguments)
    lines = given.json.with_suffix(given.json.suffix + "l")
    if not given.resume:
        lines.unlink(missing_ok=True)
    done = read_rows(lines)
    _warm(given.timm, given.transformers)
    wanted = [n for n in names(given.timm, given.transformers) if re.search(given.only, n)]
    rows = sweep(wanted[: given.limit], lines, done)
    write(given.json, rows)
    if given.card:
        _write_card(given.card, rows)
    sys.stdout.write(json.dumps(summary(rows.values()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
