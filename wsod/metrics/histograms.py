"""One pass over the pixels instead of one a threshold: how many lie above each of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.tree import compiled

__all__ = ["count_above"]

Array = NDArray[np.float64]


@compiled
def count_above(scores: Array, groups: NDArray[np.int64], thresholds: Array, n: int) -> NDArray[np.int64]:
    """Pixels of each group by the number of thresholds their score is above (strictly).

    Args:
        scores: (P,) finite scores.
        groups: (P,) group of each pixel, 0 … n - 1; others are left out.
        thresholds: (T,) ascending.
        n: number of groups.

    Returns:
        (n, T + 1) counts; the pixels above threshold i are those in columns i + 1 and up.
    """
    counts = np.zeros((n, len(thresholds) + 1), np.int64)
    last = len(thresholds)
    scale = last / (thresholds[-1] - thresholds[0]) if last > 1 else 0.0
    for pixel in range(len(scores)):
        group, score = groups[pixel], scores[pixel]
        if group < 0 or group >= n:
            continue
        # a guess, right at once for equal steps, then walked to the exact place
        place = min(max(int((score - thresholds[0]) * scale), 0), last)
        while place < last and thresholds[place] < score:
            place += 1
        while place > 0 and thresholds[place - 1] >= score:
            place -= 1
        counts[group, place] += 1
    return counts
