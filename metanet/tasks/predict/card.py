"""The card of a suite: its table in Markdown, with what a reader needs to judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metanet.tasks.predict.rows.base import TRACKS


def card(document: Mapping[str, Any]) -> str:
    """Markdown of a result of :func:`metanet.tasks.predict.bench.bench`."""
    budget = document["budget"]
    lines = [f"# Suite {document['suite']}" + (" (quick size)" if document["quick"] else ""), "",
             str(document["about"]), "",
             f"`{document['command']}` on {document['machine']}. Budget of every row: at most "
             f"{budget['trials']} settings, chosen on validation; {budget['seeds']} seeds (where a "
             "split is iid, each seed has other members as its test part, so "
             "mean and deviation are over folds and starts together); at most "
             f"{budget['epochs']} epochs of batches of {budget['batch_size']}, stopped on "
             f"validation after {budget['patience']} without progress; width {budget['width']}. "
             "Seconds are of one fit on one thread.", "",
             "Tracks: " + "; ".join(f"**{k}** {v}" for k, v in TRACKS.items()) + ".", ""]
    for stage, split in dict.fromkeys((r["stage"], r["split"]) for r in document["rows"]):
        rows = [r for r in document["rows"] if (r["stage"], r["split"]) == (stage, split)]
        name = stage if stage.endswith(split) else f"{stage}, scored on {split}"
        lines += [f"## {name} ({rows[0]['n']} members)", "",
                  *_table(rows), "", *_census(document, stage, split), ""]
    lines += [*_verdict(document), *_flags(document)]
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
    text = [f"Parts: {parts}. Of {counted['members']} members, left out and counted here: "
            f"{left or 'none'}."] if counted else []
    told = [f"{r['title']} {r['against_norm_line']['above']:.2f}" for r in document["rows"]
            if (r["stage"], r["split"]) == (stage, split) and split == "strangers"
            and r["track"] in ("W", "Q") and r.get("against_norm_line")]
    if told:
        text += ["", "P(τ of a row > τ of the weight norm), paired bootstrap over repositories: "
                 + ", ".join(told) + "."]
    return text


def _verdict(document: Mapping[str, Any]) -> list[str]:
    """Each target with what was measured, and what could have been told at all."""
    found = [line for stage, split in dict.fromkeys(
        (r["stage"], r["split"]) for r in document["rows"])
        for line in _judged({r["model"]: r for r in document["rows"]
                             if (r["stage"], r["split"]) == (stage, split)},
                            stage if stage.endswith(split) else f"{stage}, {split}")]
    notes = [f"- {note}" for note in document.get("notes", ())]
    return ["## Targets", "", *found, *notes, ""] if found or notes else []


def _judged(rows: Mapping[str, Mapping[str, Any]], where: str) -> list[str]:
    out = []
    reader, queries = rows.get("flagship-w"), rows.get("flagship-q")
    if reader and "against_statistics" in reader and "strangers" not in where:
        out.append(_line(f"{where}: flagship W above weight statistics, boosted",
                         reader["against_statistics"], lambda t: t["low"] > 0))
    if reader and "against_norm_line" in reader and "strangers" in where:
        out.append(_line(f"{where}: flagship W above the weight norm (P ≥ 0.9)",
                         reader["against_norm_line"], lambda t: t["above"] >= 0.9)
                   + f" P = {reader['against_norm_line']['above']:.2f}.")
    for wanted, least in (("images-100", 0.0), ("render-cnn", -0.005)):
        if not queries or wanted not in rows or (wanted == "images-100"
                                                 and "strangers" not in where):
            continue
        mine, other = queries["mean"], rows[wanted]["mean"]
        if mine is not None and other is not None:
            out.append(f"- {where}: flagship Q at least {rows[wanted]['title']}"
                       f"{' less half a point' if least else ''}: "
                       f"{'held' if mine - other >= least else 'missed'}, {mine:.3f} against "
                       f"{other:.3f}.")
    return out


def _line(what: str, test: Mapping[str, Any], held: Callable[[Mapping[str, Any]], bool]) -> str:
    told = f"{test['difference']:+.3f} {_interval(test['low'], test['high'])}"
    if held(test):
        return f"- {what}: held, {told}."
    half = (test["high"] - test["low"]) / 2
    return (f"- {what}: missed, {told}; with so few members a difference below about {half:.2f} "
            "cannot be told from none.")


def _flags(document: Mapping[str, Any]) -> list[str]:
    lines = ["## Out-of-distribution flag", "",
             "AUROC of telling strangers from the test part, and the share that is flagged.", "",
             "| stage | strangers | AUROC | flagged | test part flagged |", "|---|---|---|---|---|"]
    for stage, flag in document["flags"].items():
        lines += [f"| {stage} | {name} | {value:.3f} | {flag['flagged'][name]:.2f} | "
                  f"{flag['flagged']['test']:.2f} |" for name, value in flag["auroc"].items()]
    return lines
