"""Figures of a report as SVG that takes the page's own text colour, so that it suits light and dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from wsod.report.gallery import SAMPLED, ReportRow
from wsod.report.lines import heading, percent

__all__ = ["Drawing", "curves", "histograms", "swatch"]

INK = "#010203"  # stands for the page's colour
# Okabe and Ito's colours, told apart by most eyes, in an order that keeps neighbours apart; and dashes
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
DASHES = ("-", "--", ":", "-.")
BINS = 20


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Args:
        title: above it.
        svg: safe markup.
        text: what it shows, in words.
    """

    title: str
    svg: Markup
    text: str


def curves(rows: Sequence[ReportRow]) -> Iterator[Drawing]:
    """A figure a metric (and IoU) with a threshold: its value at every threshold, the chosen one marked."""
    metrics = dict.fromkeys(metric for row in rows for metric in row.row.scores)
    for metric in metrics:
        found: dict[str, list[tuple[int, list[float], list[float], float | None]]] = {}
        for i, row in enumerate(rows):
            score = row.row.scores.get(metric) or {}
            curve, thresholds, best = (score.get(k) for k in ("curve", "thresholds", "best_threshold"))
            if not curve or not thresholds:
                continue
            for key, values in (curve if isinstance(curve, Mapping) else {"": curve}).items():
                chosen = best.get(key) if isinstance(best, Mapping) else best
                found.setdefault(key, []).append((i, thresholds, values, chosen))
        for key, lines in found.items():
            if any(len(thresholds) > 2 for _, thresholds, _, _ in lines):
                title = f"{heading(metric)}, IoU ≥ {key}" if key else heading(metric)
                yield _curve(title, rows, lines)


def _curve(
    title: str, rows: Sequence[ReportRow], lines: Sequence[tuple[int, list[float], list[float], float | None]]
) -> Drawing:
    figure, axes = _figure()
    told = []
    for i, thresholds, values, chosen in lines:
        x, y = np.asarray(thresholds, np.float64), np.asarray(values, np.float64)
        n = min(len(x), len(y))
        keep = np.unique(np.linspace(0, n - 1, min(n, 150)).astype(np.int64))
        axes.plot(x[keep], 100 * y[keep], **_style(i))
        if chosen is not None:
            value = float(y[np.abs(x[:n] - chosen).argmin()])
            axes.plot([chosen], [100 * value], "o", color=COLOURS[i % len(COLOURS)], markersize=5)
            told.append(f"{rows[i].name}: {percent(value)} at {chosen:.3g}")
    axes.set_xlabel("threshold")
    axes.set_ylabel("per cent")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    return _drawing(figure, title, "; ".join(told))


def histograms(rows: Sequence[ReportRow], ious: Mapping[int, Sequence[float]]) -> Iterator[Drawing]:
    """Shares of cases by their own score: box IoUs of a sample, and every metric that has many values."""
    if ious:
        most = max(len(values) for values in ious.values())
        drawn = " drawn at random" if any(len(rows[i].scores) > SAMPLED for i in ious) else ""
        title = f"IoU of the largest box and the nearest true one ({most} cases{drawn})"
        yield _histogram(title, rows, ious)
    for metric in dict.fromkeys(metric for row in rows for metric in row.row.scores):
        values = {
            i: [scores[metric] for scores in row.scores.values() if metric in scores]
            for i, row in enumerate(rows)
        }
        values = {i: some for i, some in values.items() if some}
        if any(len(set(some)) > 4 for some in values.values()):
            yield _histogram(f"{heading(metric)} of each case", rows, values)


def _histogram(title: str, rows: Sequence[ReportRow], values: Mapping[int, Sequence[float]]) -> Drawing:
    figure, axes = _figure()
    told = []
    for i, some in values.items():
        array = np.asarray(some, np.float64).clip(0, 1)
        counts, edges = np.histogram(array, bins=BINS, range=(0, 1))
        axes.stairs(100 * counts / len(array), edges, **_style(i))
        low, middle, high = (percent(float(q)) for q in np.percentile(array, [25, 50, 75]))
        told.append(f"{rows[i].name}: median {middle}, middle half {low}–{high}")
    axes.set_xlabel("score of the case")
    axes.set_ylabel("per cent of cases")
    axes.set_xlim(0, 1)
    return _drawing(figure, title, "; ".join(told))


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[_dash(i)], "linewidth": 1.8}


def _dash(i: int) -> int:
    # another one whenever a colour comes again
    return (i + 2 * (i // len(COLOURS))) % len(DASHES)


def swatch(i: int) -> tuple[str, str]:
    """The i-th row's colour and SVG dashes, for the legend all figures share."""
    return COLOURS[i % len(COLOURS)], ("none", "7 3", "2 3", "8 3 2 3")[_dash(i)]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    figure.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _drawing(figure: Figure, title: str, text: str) -> Drawing:
    target = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # ids are the whole page's
    own = f"f{hashlib.sha256(title.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{own}", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    return Drawing(title, Markup(svg), text)
