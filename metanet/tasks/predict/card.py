"""The card of a suite: its table in Markdown, with what a reader needs to judge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.tasks.predict.rows.base import TRACKS


def card(document: Mapping[str, Any]) -> str:
    """Markdown of a result of :func:`metanet.tasks.predict.bench.bench`."""
    budget = document["budget"]
    lines = [f"# Suite {document['suite']}" + (" (quick size)" if document["quick"] else ""), "",
             str(document["about"]), "",
             f"`{document['command']}` on {document['machine']}. Budget of every row: at most "
             f"{budget['trials']} settings, chosen on validation; {budget['seeds']} seeds (where a "
             "split is iid, each seed has another fifth of the members as its test part, so "
             "mean and deviation are over folds and starts together); at most "
             f"{budget['epochs']} epochs of batches of {budget['batch_size']}, stopped on "
             f"validation after {budget['patience']} without progress; width {budget['width']}. "
             "Seconds are of one fit on one thread.", "",
             "Tracks: " + "; ".join(f"**{k}** {v}" for k, v in TRACKS.items()) + ".", ""]
    for stage, split in dict.fromkeys((r["stage"], r["split"]) for r in document["rows"]):
        rows = [r for r in document["rows"] if (r["stage"], r["split"]) == (stage, split)]
        lines += [f"## {stage}, scored on {split} ({rows[0]['n']} members)", "",
                  *_table(rows), "", *_census(document, stage, split), ""]
    lines += _flags(document)
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    metric = rows[0]["metric"]
    name = {"tau": "Kendall τ", "accuracy": "accuracy"}.get(metric, metric)
    top = "tau_top" in next((r["scores"] for r in rows if r["scores"]), {})
    head = ["row", "track", f"{name} (mean ± sd)", "95 % interval", *(["τ, top half"] if top else
            []), "minus statistics", "p (Holm)", "coverage", "parameters", "seconds", "MiB"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        test = r.get("against_statistics")
        cells = [r["title"], r["track"], _value(r), _interval(r["low"], r["high"]),
                 *([_mean(r["scores"].get("tau_top"))] if top else []),
                 "–" if test is None else f"{test['difference']:+.3f} "
                 f"{_interval(test['low'], test['high'])}",
                 "–" if test is None else f"{test['p_holm']:.3f}",
                 "–" if r["coverage"] is None else f"{r['coverage']:.2f}",
                 f"{r['parameters']:,}" if r["parameters"] else "–", f"{r['seconds']:.0f}",
                 str(r["memory"] or "–")]
        out.append("| " + " | ".join(cells) + " |")
    return out


def _value(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "–"
    spread = f" ± {row['sd']:.3f}" if row["seeds"] > 1 else ""
    return f"{row['mean']:.3f}{spread}" + (f" ({row['seeds']} seeds)" if 1 < row["seeds"] < 5
                                           else "")


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _mean(score: Mapping[str, Any] | None) -> str:
    return "–" if not score or score["mean"] is None else f"{score['mean']:.3f}"


def _census(document: Mapping[str, Any], stage: str, split: str) -> list[str]:
    census = document["census"].get(stage, {})
    parts = ", ".join(f"{k} {v}" for k, v in census.get("parts", {}).items())
    counted = census.get(split, {})
    left = ", ".join(f"{v} {k}" for k, v in counted.items() if k != "members" and v)
    text = [f"Parts: {parts}. Of {counted.get('members', '?')} members, left out and counted here: "
            f"{left or 'none'}."]
    clusters = [r for r in document["rows"] if (r["stage"], r["split"]) == (stage, split)
                and r["split"] == "strangers" and r.get("against_norm_line")]
    text += [f"P({r['title']} > norm) by paired bootstrap over repositories: "
             f"{r['against_norm_line']['above']:.2f}." for r in clusters if r["track"] in ("W", "Q")
             and r["model"] != "norm-line"]
    return text


def _flags(document: Mapping[str, Any]) -> list[str]:
    lines = ["## Out-of-distribution flag", "",
             "AUROC of telling strangers from the test part, and the share that is flagged.", "",
             "| stage | strangers | AUROC | flagged | test part flagged |", "|---|---|---|---|---|"]
    for stage, flag in document["flags"].items():
        lines += [f"| {stage} | {name} | {value:.3f} | {flag['flagged'][name]:.2f} | "
                  f"{flag['flagged']['test']:.2f} |" for name, value in flag["auroc"].items()]
    return lines
