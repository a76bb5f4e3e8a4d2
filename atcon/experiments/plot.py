"""Differences with their intervals, a panel a measure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from atcon.experiments.base import Measure

if TYPE_CHECKING:
    from atcon.experiments.outcome import Difference

__all__ = ["plot_differences"]


def plot_differences(path: Path, measures: Sequence[Measure], differences: Sequence[Difference]) -> None:
    """A picture of all contrasts: a line each, a dot a seed, the bar their 95 % interval.

    Args:
        path: a PNG, written whole or not at all.
        measures: the panels, in order; one without a difference is left out.
        differences: the contrasts.
    """
    from matplotlib.figure import Figure

    shown = [m for m in measures if any(d.measure == m.name for d in differences)]
    rows = list(dict.fromkeys((d.row, d.against) for d in differences))
    if not shown:
        return
    height = 1.2 + 0.28 * len(rows)
    figure = Figure(figsize=(2.0 + 1.7 * len(shown), height), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, shown, strict=True):
        factor = 100.0 if measure.percent else 1.0
        axis.axvline(0.0, color="0.7", linewidth=0.8)
        for found in differences:
            if found.measure != measure.name or math.isnan(found.difference):
                continue
            y = -rows.index((found.row, found.against))
            seeds = [factor * value for value in found.seeds if value is not None]
            low, high = (factor * bound for bound in found.interval)
            clear = low > 0 or high < 0
            colour = "tab:blue" if clear and low > 0 else "tab:red" if clear else "0.35"
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
            axis.plot(seeds, [y] * len(seeds), ".", color=colour, markersize=3.5, alpha=0.5)
            axis.plot(factor * found.difference, y, "o", color=colour, markersize=4.5)
        axis.set_title(fill(measure.heading, 20), fontsize=8)
        axis.tick_params(labelsize=7, left=False)
        axis.set_xlabel("difference, points" if measure.percent else "difference", fontsize=7)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks([-i for i in range(len(rows))], [f"{row}  −  {other}" for row, other in rows])
    aside = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
