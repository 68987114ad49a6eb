"""One HTML page about a suite or a run: table, predicted against true, curves, calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metanet.errors import MetanetError
from metanet.report import (
    Block,
    Facts,
    Figure,
    Fold,
    Heading,
    Note,
    Page,
    Section,
    Table,
    Text,
    draw,
    intervals,
    lines,
    write,
)
from metanet.tasks.predict.card import card
from metanet.tasks.predict.rows.base import TRACKS

_MOST = 256 << 20


def bench_page(document: Mapping[str, Any], out: Path) -> Path:
    """Write ``report.html`` and ``card.md`` beside the results of a suite."""
    (out / "card.md").write_text(card(document), encoding="utf-8")
    sections = [_stage(document, stage, split, out) for stage, split in dict.fromkeys(
        (r["stage"], r["split"]) for r in document["rows"])]
    quick = " This is the quick size: its figures say that everything runs, and no more." \
        if document["quick"] else ""
    lead = f"{document['about']}{quick} Tracks are never mixed: " + "; ".join(
        f"{k} {v}" for k, v in TRACKS.items()) + "."
    return write(Page(f"Suite {document['suite']}", lead, [*sections, _flag(document)],
                      f"`{document['command']}` on {document['machine']}"), out / "report.html")


def folder_page(folder: Path, out: Path | None = None) -> Path:
    """The page of a suite's folder or of a run's.

    Raises:
        MetanetError: if neither stands there.
    """
    path = folder / "result.json"
    try:
        if path.stat().st_size > _MOST:
            raise MetanetError(f"{path}: is larger than {_MOST} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MetanetError(f"{folder}: holds no result.json ({error}); name a folder that `metanet "
                           "bench` or `metanet train` wrote") from None
    if "rows" in document:
        made = bench_page(document, folder)
        return made.rename(out) if out else made
    return write(run_page(document), out or folder / "report.html")


# ------------------------------------------------------------ a suite


def _stage(document: Mapping[str, Any], stage: str, split: str, out: Path) -> Section:
    rows = [r for r in document["rows"] if (r["stage"], r["split"]) == (stage, split)]
    metric = rows[0]["metric"]
    shown = [r for r in rows if r["low"] is not None and r["mean"] is not None]
    fits = _fits(out, stage)
    blocks: list[Block] = [_table(rows)]
    if shown:
        best = next((r["mean"] for r in shown if r["model"] == "statistics"), 0.0)
        blocks.append(intervals(
            [(f"{r['title']} ({r['track']})", r["mean"], r["low"], r["high"]) for r in shown],
            (best, "weight statistics, boosted"), metric,
            f"{metric} of every row with its 95 % interval",
            "Mean over seeds, 95 % bootstrap interval over test members."))
    blocks += _learning(fits)
    blocks += _against(fits, split, _seen(out, stage))
    blocks += _attribution(rows)
    census = document["census"].get(stage, {})
    parts = ", ".join(f"{k} {v}" for k, v in census.get("parts", {}).items())
    title = stage if stage.endswith(split) else f"{stage}: {split}"
    return Section(title, f"{rows[0]['n']} members are scored. Parts: {parts}.",
                   blocks)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    head = ("row", "track", rows[0]["metric"], "minus statistics", "p (Holm)", "coverage",
            "numbers", "s")
    cells = []
    for r in rows:
        test = r.get("against_statistics")
        cells.append((
            r["title"], r["track"],
            _short(r["mean"]) + (f" ± {r['sd']:.3f}" if r["seeds"] > 1 else ""),
            "–" if test is None else f"{test['difference']:+.3f} [{test['low']:.3f}, "
            f"{test['high']:.3f}]", "–" if test is None else f"{test['p_holm']:.3f}",
            _short(r["coverage"], 2), f"{r['parameters']:,}", f"{r['seconds']:.0f}"))
    strong = frozenset(i for i, r in enumerate(rows) if r["model"].startswith("flagship"))
    seeds = max(r["seeds"] for r in rows)
    return Table(head, cells, frozenset(range(2, 8)), strong,
                 f"Mean ± deviation over {seeds} seeds; coverage of 90 % conformal intervals (or "
                 "sets of classes); numbers that are learned; seconds of one fit. Differences with "
                 "95 % intervals of a paired bootstrap.")


def _short(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _fits(out: Path, stage: str) -> dict[str, dict[str, Any]]:
    """One fit of each row: the trial that was chosen."""
    folder = out / "fits" / stage.replace(", ", ".").replace(" ", "-")
    found = {}
    for choice in sorted(folder.glob("*/choice.json")):
        best = json.loads(choice.read_text(encoding="utf-8"))["best"]
        path = choice.parent / f"trial-{best}.json"
        found[choice.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _learning(fits: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Validation loss by epoch, three readers to a panel."""
    curves = {name: [(p["epoch"], p["val"]) for p in fit["curve"]]
              for name, fit in fits.items() if fit["curve"]}
    return [Heading("Learning curves"), learning(curves)] if curves else []


def _seen(out: Path, stage: str) -> dict[str, Any]:
    """True values, and pictures of INRs, of a stage."""
    path = out / "fits" / stage.replace(", ", ".").replace(" ", "-") / "seen.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _against(fits: Mapping[str, Mapping[str, Any]], split: str, seen: Mapping[str, Any]
             ) -> list[Block]:
    """Predicted against true; of classes how sure and how right, and a gallery."""
    chosen = [name for name in ("flagship-w", "flagship-q", "statistics") if name in fits]
    if split not in seen.get("true", {}) or not chosen:
        return []
    true = np.array(seen["true"][split])
    panels = [(name, np.array(fits[name]["predictions"][split]), true) for name in chosen]
    if panels[0][1].ndim == 1:
        return [Heading("Predicted against true"), predicted(panels)]
    blocks: list[Block] = [Heading("Calibration"), calibration(panels)]
    if seen.get("pictures"):
        name, found, _ = panels[chosen.index("flagship-q") if "flagship-q" in chosen else 0]
        said = found.argmax(1)
        titles = [f"{said[i]} → {true[i]}" for i in range(len(seen["pictures"]))]
        blocks += [Heading(f"What some networks show, and what {name} says"),
                   gallery(np.array(seen["pictures"]), titles)]
    return blocks


def _attribution(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    found = [r for r in rows if r.get("attribution")]
    if not found:
        return []
    names = list(found[0]["attribution"])
    cells = [(name, *(f"{r['attribution'][name]:+.3f}" for r in found)) for name in names]
    table = Table(("tensor", *(r["title"] for r in found)), cells,
                  frozenset(range(1, len(found) + 1)),
                  caption="Loss of the lead score on the calibration part when members swap that "
                          "tensor among them.")
    return [Heading("What predictions rest on"), table]


def _flag(document: Mapping[str, Any]) -> Section:
    cells = [(stage, name, f"{value:.3f}", f"{flag['flagged'][name]:.2f}",
              f"{flag['flagged']['test']:.2f}")
             for stage, flag in document["flags"].items() for name, value in flag["auroc"].items()]
    return Section("Out of distribution", "A flagged member gets no interval. The flag sees "
                   "statistics and spectra of the weights, nothing else.",
                   [Table(("stage", "strangers", "AUROC", "flagged", "test part flagged"), cells,
                          frozenset({2, 3, 4}))])


# ------------------------------------------------------------ figures


def _panels(canvas: Any, n: int) -> list[Any]:
    """Axes side by side, which share the width of the page."""
    return list(canvas.subplots(1, n, squeeze=False)[0])


def _size(n: int) -> tuple[float, float]:
    """Of a figure with n panels, in inches: the page's width, until panels would be narrow."""
    return max(7.4, 3.2 * n), 3.1


def learning(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Validation loss by epoch of the chosen setting, three readers to a panel."""
    names = list(curves)
    groups = [names[i:i + 3] for i in range(0, len(names), 3)]

    def paint(canvas: Any, scheme: Any) -> None:
        for ax, group in zip(_panels(canvas, len(groups)), groups, strict=True):
            for name, colour, mark in zip(group, scheme.series, "os^", strict=False):
                ax.plot(*zip(*curves[name], strict=True), color=colour, marker=mark,
                        markersize=3, linewidth=1.4, label=name)
            ax.set(xlabel="epoch")
            ax.legend(fontsize=8)
        canvas.axes[0].set_ylabel("validation loss")

    return draw(paint, _size(len(groups)), "validation loss by epoch", "Seed 0.")


def predicted(panels: Sequence[tuple[str, Any, Any]]) -> Figure:
    """Predicted against true, on the range of the values."""
    def paint(canvas: Any, scheme: Any) -> None:
        axes = _panels(canvas, len(panels))
        for ax, (title, found, true) in zip(axes, panels, strict=True):
            ends = [min(true.min(), found.min()), max(true.max(), found.max())]
            ax.plot(ends, ends, color=scheme.soft, linewidth=1, linestyle="--")
            ax.plot(true, found, linestyle="", marker="o", markersize=3.2, alpha=0.6,
                    color=scheme.series[0], markeredgewidth=0)
            ax.set(title=title, xlabel="true", ylabel="predicted")

    return draw(paint, _size(len(panels)), "predicted against true values", "Seed 0.")


def calibration(panels: Sequence[tuple[str, Any, Any]]) -> Figure:
    """How often the likeliest class is right, by the probability that it was given."""
    def paint(canvas: Any, scheme: Any) -> None:
        axes = _panels(canvas, len(panels))
        for ax, (title, found, true) in zip(axes, panels, strict=True):
            sure, right = found.max(1), found.argmax(1) == true
            bins = np.clip((sure * 10).astype(int), 0, 9)
            x = [sure[bins == b].mean() for b in range(10) if (bins == b).any()]
            y = [right[bins == b].mean() for b in range(10) if (bins == b).any()]
            ax.plot([0, 1], [0, 1], color=scheme.soft, linewidth=1, linestyle="--")
            ax.plot(x, y, color=scheme.series[0], marker="o", markersize=4)
            ax.set(title=title, xlabel="probability", ylabel="share right", xlim=(0, 1),
                   ylim=(0, 1))

    return draw(paint, _size(len(panels)), "share of right classes by probability",
                "Seed 0, ten bins.")


def gallery(pictures: Any, titles: Sequence[str]) -> Figure:
    """Pictures that coordinate networks hold, with what was said of them."""
    def paint(canvas: Any, scheme: Any) -> None:
        columns = 8
        grid = canvas.subplots(-(-len(titles) // columns), columns, squeeze=False).ravel()
        for ax in grid:
            ax.axis("off")
        for ax, picture, title in zip(grid, pictures, titles, strict=False):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
            ax.set_title(title, fontsize=8)

    return draw(paint, (7.4, 1.1 * -(-len(titles) // 8)), "what some networks show",
                "Predicted → true class.")


# ------------------------------------------------------------ a run


def run_page(document: Mapping[str, Any]) -> Page:
    """The page of one run."""
    scores = [(f"{value:.4f}", name) for name, value in document["scores"].items()]
    found, true = np.array(document["predicted"], float), np.array(document["true"], float)
    curve = document["curve"]
    blocks: list[Block] = [
        Facts([*scores, (f"{document['coverage']:.2f}", f"coverage of {document['level']:.0%}"),
               (f"{document['flagged']:.1%}", "flagged")]),
        Heading("Predicted against true"), predicted([(str(document["model"]), found, true)])]
    if curve:
        epochs = [p["epoch"] for p in curve]
        series: dict[str, tuple[Sequence[float], Sequence[float]]] = {
            k: (epochs, [p[k] for p in curve]) for k in ("train", "val")}
        blocks += [Heading("Learning curve"), lines([("", "loss", series)], "epoch",
                                                    "loss by epoch")]
    if document.get("attribution"):
        cells = [(k, f"{v:+.4f}") for k, v in document["attribution"].items()]
        blocks += [Heading("What predictions rest on"), Table(
            ("tensor", "loss of the score when swapped"), cells, frozenset({1}))]
    counted = ", ".join(f"{v} {k}" for k, v in document["census"].items())
    blocks += [Note(f"Census: {counted}."), Fold("Members of the test part", [
        Text(", ".join(document["ids"][:500]))])]
    lead = f"Row {document['model']}, track {document['track']}, split {document['split']}."
    return Page(f"{document['name']}: {document['goal']}", lead,
                [Section("Test part", f"{document['n']} members.", blocks)])
