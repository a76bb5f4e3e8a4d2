"""Compiling ahead: all that metrics need, at installation instead of in the first command."""

from __future__ import annotations

import numpy as np

from wsod.boxes import sweep
from wsod.metrics.histograms import count_above, count_winners

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile every metric's compiled functions into numba's cache, some 20 seconds, once an installation.

    Otherwise the first run does, each what it needs.
    """
    sweep.warm_up()
    scores, groups = np.zeros((2, 2)), np.zeros((2, 2), np.int64)
    thresholds = np.array([0.0, 0.5])
    count_above(scores.ravel(), groups.ravel(), thresholds, 1)
    for maps in (scores[None], scores[None].astype(np.float32)):
        count_winners(maps, groups, 1, thresholds)
