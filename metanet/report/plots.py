"""Plots as SVG, drawn twice: for a light page and for a dark one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from metanet.report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Scheme:
    """Colours of one scheme; the series are distinguishable without colour vision
    (Okabe and Ito's palette, lightened for dark paper).
    """

    ink: str
    soft: str
    series: tuple[str, str, str, str]


LIGHT = Scheme("#1d2126", "#8a929c", ("#0072b2", "#d55e00", "#6b6b6b", "#009e73"))
DARK = Scheme("#e6e8ea", "#7d8792", ("#56b4e9", "#f0925a", "#a5adb5", "#45c9a0"))

Draw: TypeAlias = "Callable[[Canvas, Scheme], None]"


def draw(paint: Draw, size: tuple[float, float], alt: str, caption: str = "") -> Figure:
    """Run ``paint`` once per scheme.

    Args:
        paint: draws on an empty matplotlib figure.
        size: width and height in inches.
        alt: what the figure shows.
        caption: below it.
    """
    return Figure(_svg(paint, size, LIGHT), _svg(paint, size, DARK), alt, caption)


def _svg(paint: Draw, size: tuple[float, float], scheme: Scheme) -> bytes:
    # Figure, not pyplot: no global state, no window, nothing to close.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(style(scheme)):
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasSVG(canvas)
        paint(canvas, scheme)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def style(scheme: Scheme) -> dict[str, Any]:
    """Settings of matplotlib in the colours of a scheme."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "legend.labelcolor"),
                        scheme.ink)
    soft = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"),
                         scheme.soft)
    return ink | soft | {
        "font.size": 10, "axes.titlesize": 11, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6,
        "legend.frameon": False, "svg.hashsalt": "metanet", "svg.fonttype": "path",
    }


def lines(panels: Sequence[tuple[str, str, dict[str, tuple[Sequence[float], Sequence[float]]]]],
          x_label: str, alt: str, caption: str = "", *, log: bool = False) -> Figure:
    """Line plots side by side, at most five in a row.

    Args:
        panels: (title, y label, series name → (x, y)); at most four series.
        x_label: of every panel.
        alt: what the figure shows.
        caption: below it.
        log: logarithmic y axes.
    """
    columns, rows = min(len(panels), 5), -(-len(panels) // 5)

    def paint(canvas: Any, scheme: Scheme) -> None:
        axes = canvas.subplots(rows, columns, squeeze=False).flat
        for ax, (title, y_label, series) in zip(axes, panels, strict=False):
            for (name, (x, y)), colour, mark in zip(series.items(), scheme.series, "os^D",
                                                    strict=False):
                ax.plot(x, y, color=colour, marker=mark, markersize=3.2, linewidth=1.6, label=name,
                        markevery=max(1, len(x) // 12))
            ax.set(title=title, xlabel=x_label, ylabel=y_label)
            if log:
                low, high = ax.get_ylim()
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("{x:g}" if high < 5 * max(low, 1e-9) else "")
        for ax in axes[len(panels):]:
            ax.set_visible(False)
        axes[0].legend()

    width = 4.2 if rows == 1 else 3.4
    return draw(paint, (max(width * columns, 7.4), 3.2 * rows), alt, caption)


def scatter(panels: Sequence[tuple[str, Sequence[float], Sequence[float]]], x_label: str,
            y_label: str, alt: str, caption: str = "") -> Figure:
    """Predicted against true, one panel per predictor, on one scale with the diagonal.

    Args:
        panels: (title, x, y).
        x_label: of every panel.
        y_label: of the first panel.
        alt: what the figure shows.
        caption: below it.
    """
    def paint(canvas: Any, scheme: Scheme) -> None:
        axes = canvas.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for ax, (title, x, y) in zip(axes, panels, strict=True):
            ax.plot([0, 1], [0, 1], color=scheme.soft, linewidth=1, linestyle="--")
            ax.plot(x, y, linestyle="", marker="o", markersize=3.2, color=scheme.series[0],
                    alpha=0.6, markeredgewidth=0)
            ax.set(title=title, xlabel=x_label, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes[0].set_ylabel(y_label)

    return draw(paint, (2.9 * len(panels), 3.1), alt, caption)


def intervals(rows: Sequence[tuple[str, float, float, float]], line: tuple[float, str],
              x_label: str, alt: str, caption: str = "") -> Figure:
    """Points with intervals, first row on top, and one vertical line to compare with.

    Args:
        rows: (label, value, low, high).
        line: (position, label).
        x_label: of the axis.
        alt: what the figure shows.
        caption: below it.
    """
    def paint(canvas: Any, scheme: Scheme) -> None:
        ax = canvas.subplots()
        for place, (_, value, low, high) in enumerate(rows):
            ax.plot([low, high], [place, place], color=scheme.series[0], linewidth=2.2)
            ax.plot([value], [place], color=scheme.series[0], marker="o", markersize=6)
        ax.axvline(line[0], color=scheme.series[1], linestyle="--", linewidth=1.4, label=line[1])
        ax.set_yticks(range(len(rows)), [row[0] for row in rows], color=scheme.ink)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(x_label)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return draw(paint, (7.4, 0.9 + 0.36 * len(rows)), alt, caption)
