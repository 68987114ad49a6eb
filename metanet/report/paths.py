"""A plot of loss and accuracy along paths between two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metanet.errors import MetanetError
from metanet.report.plots import LIGHT, style

FORMATS = (".svg", ".png", ".pdf")


def save_paths(
    paths: Mapping[str, Sequence[tuple[float, float, float | None]]], out: Path
) -> None:
    """Draw paths of (t, loss, accuracy) and write a file.

    Args:
        paths: name → points; those without accuracy are drawn as loss alone.
        out: ``.svg``, ``.png`` or ``.pdf``.

    Raises:
        MetanetError: another format.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if out.suffix.lower() not in FORMATS:
        raise MetanetError(f"{out.name}: a plot is written as {', '.join(FORMATS)}")
    scored = any(point[2] is not None for points in paths.values() for point in points)
    with mpl.rc_context(style(LIGHT)):
        size = (8.8, 3.8) if scored else (4.8, 4.4)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
        for place, ax in enumerate(axes):
            _panel(ax, paths, place + 1)
        handles, labels = axes[0].get_legend_handles_labels()
        names = [label.replace("_", ", ") for label in labels]
        figure.legend(handles, names, loc="outside lower center", ncols=4 if scored else 2)
        metadata: dict[str, Any] = {"Date": None} if out.suffix.lower() == ".svg" else {}
        figure.savefig(out, metadata=metadata)


def _panel(
    ax: Any, paths: Mapping[str, Sequence[tuple[float, float, float | None]]], column: int
) -> None:
    # Colours of Okabe and Ito, told apart by mark and dash as well.
    colours = ("#6b6b6b", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
               "#000000")
    for number, (name, points) in enumerate(paths.items()):
        kept = [p for p in points if p[column] is not None]
        ax.plot([p[0] for p in kept], [p[column] for p in kept], label=name, linewidth=1.5,
                color=colours[number % len(colours)], marker="os^vDPX*"[number % 8], markersize=3,
                linestyle="--" if name == "ensemble" else "-")
    ax.set(xlabel="from A (0) to B (1)", ylabel=("loss", "accuracy")[column - 1])
