"""The coverage table as a page: numbers as measured, every failure by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_ABOUT = """\
# Coverage

Which architectures metanet infers, proves and audits, as measured by

    python -m metanet.symmetry.coverage --timm --transformers --json FILE --card THIS

One row for the smallest variant of each model file of timm, and one for each key of transformers'
`CONFIG_MAPPING` (a tiny config with random weights is made from the names of its fields; caches
off). A row is *verified* only if random elements of the inferred group leave the outputs unchanged
in float64 (relative change at most 1e-10) on two draws of random weights, every negative control
is detected, no axis of a parameter is fixed by an operation without a rule, every axis has a group
or a rule that says why it has none, the network has a live group, at most 30 % of the axes of
parameters lie in those that no output depends on, and an audit of up to 12 sampled digits finds no
swap that was missed. Where digits are fixed because they do not fit together (a view across them),
a swap of each of them was seen to change an output. Rows are taken in an order that was shuffled
once, so a part of them is a sample of all.
"""


def card(rows: Sequence[Row], summary: Mapping[str, Any], total: Mapping[str, int]) -> str:
    """The page. ``total`` says how many rows each library has, measured or not."""
    parts = [_ABOUT, _shares(summary, total), _failures(rows), _table(rows), _excluded(rows)]
    return "\n".join(part for part in parts if part)


def _shares(summary: Mapping[str, Any], total: Mapping[str, int]) -> str:
    lines = ["## Shares", "", "| library | families | measured | built | verified | verified of "
             "built | false claims | rows with missed swaps |", "|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {total.get(name, found['rows'])} | {found['rows']} | {found['built']} "
        f"({found['built share']:.1%}) | {found['verified']} ({found['verified share']:.1%}) | "
        f"{found['verified share of built']:.1%} | {found['false claims']} | "
        f"{found['missed swaps']} |"
        for name, found in summary.items()
    ]
    return "\n".join([*lines, ""])


def _failures(rows: Sequence[Row]) -> str:
    failed = [r for r in rows if not r["verified"] and not r.get("excluded")]
    lines = ["## Not verified", "", "| row | built | why |", "|---|---|---|"]
    lines += [f"| {r['name']} | {'yes' if r['built'] else 'no'} | {_cell(r['failure'])} |"
              for r in failed]
    return "\n".join([*lines, ""])


def _table(rows: Sequence[Row]) -> str:
    lines = ["## Verified", "",
             "`free / total` adds up the lengths of the axes of all tensors; an axis of which a "
             "part is fixed does not count as free.", "",
             "| row | variant | recorded by | groups | free / total | fixed by reason | seconds |",
             "|---|---|---|---|---|---|---|"]
    for r in rows:
        if r["verified"]:
            why = ", ".join(f"{reason} {size}" for reason, size in r["frozen"].items())
            lines.append(f"| {r['name']} | {r['variant']} | {r['front end']} | {r['groups']} | "
                         f"{r['free']} / {r['total']} | {why} | {r['seconds']:.0f} |")
    return "\n".join([*lines, ""])


def _excluded(rows: Sequence[Row]) -> str:
    reasons: dict[str, list[str]] = {}
    for r in rows:
        if r.get("excluded"):
            reasons.setdefault(r["excluded"], []).append(r["name"].partition("/")[2])
    lines = [f"- {reason}: {', '.join(sorted(names))}" for reason, names in reasons.items()]
    return "\n".join(["## Left out, with the reason", "", *lines, ""]) if lines else ""


def _cell(text: Any) -> str:
    """One line of a table cell."""
    flat = " ".join(str(text).split())
    return (flat if len(flat) <= 220 else f"{flat[:217]}...").replace("|", "\\|")
