"""One pass over the pixels instead of one a threshold: how many lie above each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.tree import compiled

__all__ = ["count_above", "count_winners"]

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
def _place(score: float, first: float, scale: float, edges: Array) -> np.uint64:
    """How many thresholds the score is above: edges[place] < score <= edges[place + 1]."""
    last = np.int32(len(edges) - 2)
    # a guess, right at once for equal steps
    guess = np.int32((min(max(score, -1e6), 1e6) - first) * scale) + np.int32(1)
    return _settled(score, np.uint64(min(max(guess, np.int32(0)), last)), edges)


@compiled
def _settled(score: float, place: np.uint64, edges: Array) -> np.uint64:
    """A guessed place put right. Without a sign an index needs no look at its sign."""
    while score > edges[place + np.uint64(1)]:
        place += np.uint64(1)
    while score <= edges[place]:
        place -= np.uint64(1)
    return place


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
def count_winners(
    values: NDArray[np.floating[Any]], truth: Ints, classes: int, thresholds: Array
) -> tuple[Ints, int]:
    """Pixels by their truth, the map that is largest there, and the thresholds that map is above.

    Args:
        values: (K, H, W) finite maps; of equals the first is taken.
        truth: (H, W) 0 … classes; pixels below 0 do not count.
        classes: number of classes beside the background.
        thresholds: (T,) ascending.

    Returns:
        `(counts, largest)`: (classes + 1, K, T + 1), and the largest truth met; pixels beyond `classes` are
        left out.
    """
    maps, height, width = values.shape
    bins = len(thresholds) + 1
    scale, edges = _scale(thresholds), _edges(thresholds)
    first, last = thresholds[0], np.int32(len(thresholds))
    # neighbours fall into the same bin: with one table each increment would wait for the one before it
    tables = np.zeros((4, (classes + 1) * maps * bins), np.int32)
    top = np.empty(width, values.dtype)
    row, place = np.empty(width, np.int32), np.empty(width, np.int32)
    largest = 0
    for y in range(height):
        for x in range(width):
            top[x] = values[0, y, x]
            row[x] = 0
        for k in range(1, maps):
            own, start = values[k, y], np.int32(k * bins)
            for x in range(width):
                higher = own[x] > top[x]
                top[x] = own[x] if higher else top[x]
                row[x] = start if higher else row[x]
        for x in range(width):
            guess = np.int32((min(max(np.float64(top[x]), -1e6), 1e6) - first) * scale) + np.int32(1)
            place[x] = min(max(guess, np.int32(0)), last)
        for x in range(width):
            bin_ = row[x] + _settled(np.float64(top[x]), np.uint64(place[x]), edges)
            label = truth[y, x]
            if 0 <= label <= classes:
                tables[x % 4, np.uint64(label * maps * bins) + np.uint64(bin_)] += 1
            largest = max(largest, label)
    return tables.sum(0).reshape(classes + 1, maps, bins).astype(np.int64), largest
