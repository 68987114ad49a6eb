"""The card and the plot of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def card(document: Mapping[str, Any]) -> str:
    """Markdown: comparisons, one table per task, where it wins and where it loses."""
    lines = ["# Learned optimizers on unseen tasks", "",
             f"`{document['command']}` on {document['machine']}; list of tasks version "
             f"{document['version']}. Every optimizer has a cosine schedule to zero; *usual* is "
             "its usual step size, *tuned* the best of seven (factors of the square root of ten "
             "around it), chosen on a start and batches of their own. Losses are means of the "
             "last ten training batches; seconds are CPU seconds.", ""]
    lines += _comparisons(document["comparisons"])
    for net in document["nets"]:
        lines += _wins(document["comparisons"], net)
    for task in dict.fromkeys(row["split"] for row in document["rows"]):
        lines += _task(task, [r for r in document["rows"] if r["split"] == task])
    for name, why in document["absent"].items():
        lines += [f"Left out: {name} ({why.splitlines()[0]})", ""]
    return "\n".join(lines)


def _comparisons(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| net | against | tasks | lower loss on (95 %) | mean log ratio (95 %) |",
             "|---|---|---|---|---|"]
    for one in found:
        low, high = one["wins_interval"]
        a, b = one["log_ratio_interval"]
        lines.append(f"| {one['one']} | {one['other']} | {one['tasks']} | {one['wins']:.0%} "
                     f"({low:.0%} to {high:.0%}) | {one['log_ratio']:+.3f} ({a:+.3f} to "
                     f"{b:+.3f}) |")
    return [*lines, "", "A negative log ratio is a lower loss of the net.", ""]


def _wins(found: Sequence[Mapping[str, Any]], net: str) -> list[str]:
    chosen = [one for one in found if one["one"] == net and one["other"] == "adamw (usual)"]
    if not chosen:
        return []
    per = chosen[0]["per_task"]
    better = [name for name, value in per.items() if value < 0]
    worse = [name for name, value in per.items() if value >= 0]
    return [f"**{net}** beside AdamW at its usual step size: lower on "
            f"{', '.join(better) or 'none'}; not lower on {', '.join(worse) or 'none'}.", ""]


def _task(task: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"## {task}", "", "| optimizer | lr | final loss | sd | steps to target | seconds "
             "to target | failures | step ms | state kB |", "|---|---|---|---|---|---|---|---|---|"]
    return [*lines, *map(_line, rows), ""]


def _line(row: Mapping[str, Any]) -> str:
    return (f"| {row['model']} | {_cell(row['lr'], '.2g')}{'*' if row.get('edge') else ''} | "
            f"{_cell(row['mean'])} | {_cell(row['sd'])} | {_cell(row['steps_to_target'], '.0f')} "
            f"| {_cell(row['seconds_to_target'], '.2f')} | {row['failures']} of {row['seeds']} | "
            f"{row['step_ms']:.2f} | {row['memory'] / 1024:.0f} |")


def _cell(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def plot(document: Mapping[str, Any]) -> bytes:
    """Loss curves of the first two nets, of AdamW as it comes and tuned; SVG."""
    from metanet.report import plots

    shown = [(net, "as it comes") for net in document["nets"]][:2]
    shown += [("adamw", "usual"), ("adamw", "tuned")]
    panels = []
    for task in dict.fromkeys(row["split"] for row in document["rows"]):
        found = {(row["optimizer"], row["how"]): row for row in document["rows"]
                 if row["split"] == task and row["curve"]}
        series = {found[key]["model"]: _steps(found[key]["curve"]) for key in shown if key in found}
        if series:
            panels.append((task, "training loss", series))
    return plots.lines(panels, "share of the steps", "Loss curves on unseen tasks", log=True).light


def _steps(curve: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    return [(i + 1) / len(curve) for i in range(len(curve))], curve


def write(document: Mapping[str, Any], out: Path) -> None:
    """``card.md`` and ``curves.svg`` beside the result."""
    (out / "card.md").write_text(card(document), encoding="utf-8")
    if any(row["curve"] for row in document["rows"]):
        (out / "curves.svg").write_bytes(plot(document))
