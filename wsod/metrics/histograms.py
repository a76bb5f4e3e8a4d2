"""One pass over the pixels instead of one a threshold: how many lie above each of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.tree import compiled

__all__ = ["count_above", "count_winners", "raise_winner"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _edges(thresholds: Array) -> Array:
    """The thresholds between minus and plus infinity."""
    edges = np.empty(len(thresholds) + 2)
    edges[0], edges[-1] = -np.inf, np.inf
    edges[1:-1] = thresholds
    return edges


@compiled
def _scale(thresholds: Array) -> float:
    last = len(thresholds) - 1
    return last / (thresholds[last] - thresholds[0]) if last else 0.0


@compiled
def _place(score: float, first: float, scale: float, edges: Array) -> int:
    """How many thresholds the score is above: edges[place] < score <= edges[place + 1]."""
    last = np.int32(len(edges) - 2)
    # a guess, right at once for equal steps; without a sign an index needs no look at its sign
    guess = np.int32((min(max(score, -1e6), 1e6) - first) * scale) + np.int32(1)
    place = np.uint64(min(max(guess, np.int32(0)), last))
    while score > edges[place + np.uint64(1)]:
        place += np.uint64(1)
    while score <= edges[place]:
        place -= np.uint64(1)
    return int(place)


@compiled
def count_above(scores: Array, groups: Ints, thresholds: Array, n: int) -> Ints:
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
    flat, width = counts.reshape(-1), len(thresholds) + 1
    scale, edges = _scale(thresholds), _edges(thresholds)
    for pixel in range(len(scores)):
        if 0 <= groups[pixel] < n:
            place = _place(scores[pixel], thresholds[0], scale, edges)
            flat[np.uint64(groups[pixel] * width) + place] += 1
    return counts


@compiled
def raise_winner(top: Array, winner: NDArray[np.int32], scores: Array, label: int) -> None:
    """Where scores (H, W) are above `top`, they become the top and `label` the winner."""
    for y in range(top.shape[0]):
        for x in range(top.shape[1]):
            higher = scores[y, x] > top[y, x]
            top[y, x] = scores[y, x] if higher else top[y, x]
            winner[y, x] = label if higher else winner[y, x]


@compiled
def count_winners(
    top: Array, winner: NDArray[np.int32], truth: Ints, thresholds: Array, counts: Ints
) -> None:
    """Adds each pixel to `counts`, by its truth, its winner and the thresholds its top score is above.

    Args:
        top, winner: (H, W) highest score of any class, and whose it is.
        truth: (H, W); pixels below 0 do not count.
        thresholds: (T,) ascending.
        counts: (truths, winners, T + 1).
    """
    winners, width = counts.shape[1:]
    flat = counts.reshape(-1)
    scale, edges = _scale(thresholds), _edges(thresholds)
    for y in range(top.shape[0]):
        for x in range(top.shape[1]):
            if truth[y, x] >= 0:
                place = _place(top[y, x], thresholds[0], scale, edges)
                flat[np.uint64((truth[y, x] * winners + winner[y, x]) * width) + place] += 1
