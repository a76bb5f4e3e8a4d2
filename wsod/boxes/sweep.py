"""All thresholds of a heatmap at once: every component's box, the best IoU with given boxes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.boxes.iou import iou
from wsod.boxes.tree import compiled, fill_holes, largest_boxes, superlevel_boxes
from wsod.errors import ConfigError, MapError

__all__ = ["ThresholdSweep", "levels", "quantise", "threshold_sweep"]

Array = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]


def quantise(scores: ArrayLike) -> Bytes:
    """Scores in [0, 1] as bytes: the product with 255 in float64, truncated.

    >>> quantise([[0.0, 0.5, 1.0]]).tolist()
    [[0, 127, 255]]
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise MapError("threshold sweep", "a non-empty (H, W) map", scores.shape)
    # written so that NaN fails too
    if not (scores.min() >= 0 and scores.max() <= 1):
        found = f"values from {scores.min():g} to {scores.max():g}"
        raise MapError("threshold sweep", "finite scores in [0, 1]", found, "Min-max the map first.")
    return (scores * 255).astype(np.uint8)


def levels(thresholds: ArrayLike, maximum: int) -> NDArray[np.int64]:
    """T = int(t · maximum) of thresholds t in [0, 1): the mask at t is value > T."""
    t = np.asarray(thresholds, np.float64)
    if t.size and not (t.min() >= 0 and t.max() < 1):
        raise ConfigError("thresholds", "values in [0, 1)", f"{t.min():g} to {t.max():g}")
    return (t * maximum).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ThresholdSweep:
    """The boxes of a map's components at every threshold t in [0, 1).

    With M the largest byte of the map (`quantise`), the mask at t is byte > int(t · M), as in the WSOL
    benchmark (Choe et al., CVPR 2020): of any number of thresholds at most 255 masks differ.

    Args:
        values: (H, W) uint8, the quantised map.
        boxes: (n, 4) float64, xyxy half-open boxes of 8-connected components, and of holes where asked
            for: grown by the foreground pixels around the hole, as OpenCV's hole contours are.
        low: (n,) first level T at which the box is there.
        high: (n,) last such level.
    """

    values: Bytes
    boxes: Array
    low: Ints
    high: Ints

    @cached_property
    def maximum(self) -> int:
        """M, the largest byte of the map; 0 = a map that claims nothing at any threshold."""
        return int(self.values.max())

    def boxes_at(self, threshold: float) -> Array:
        """(k, 4) boxes at a threshold in [0, 1), in no particular order, each as often as it occurs."""
        level = levels(threshold, self.maximum)
        chosen: Array = self.boxes[(self.low <= level) & (level <= self.high)]
        return chosen

    def best_iou(self, boxes: ArrayLike, edge: int = 0, clip: bool = False) -> Array:
        """Largest IoU between any box of the map and any given box, by level T.

        Args:
            boxes: (m, 4) xyxy.
            edge: see `iou`.
            clip: x1 and y1 of the map's boxes are no more than width - 1 and height - 1 (with `edge` 1,
                the boxes of the WSOL benchmark).

        Returns:
            (max(M, 1),) float64; 0 where there is no box.
        """
        overlaps = iou(self._clipped(self.boxes, clip), boxes, edge)
        best = overlaps.max(1) if overlaps.shape[1] else np.zeros(len(self.boxes))
        return _spread(best, self.low, self.high, max(self.maximum, 1))

    @cached_property
    def largest(self) -> Array:
        """(M, 4) box of the component of largest contour area at each level T (see `largest_boxes`)."""
        boxes = largest_boxes(fill_holes(self.values))[: self.maximum].astype(np.float64)
        boxes[:, 2:] += 1
        return boxes

    def largest_at(self, threshold: float) -> Array:
        """(1, 4) box of the component of largest contour area at a threshold; (0, 4) for an empty mask."""
        level = int(levels(threshold, self.maximum))
        return self.largest[level : level + 1]

    def largest_iou(self, boxes: ArrayLike, edge: int = 0, clip: bool = False) -> Array:
        """As `best_iou`, for the box of the component of largest contour area only."""
        overlaps = iou(self._clipped(self.largest, clip), boxes, edge)
        if not overlaps.size:
            return np.zeros(max(self.maximum, 1))
        best: Array = overlaps.max(1)
        return best

    def at(self, by_level: NDArray[Any], thresholds: Iterable[float]) -> NDArray[Any]:
        """What `best_iou` or `largest_iou` gave by level, at thresholds in [0, 1)."""
        values: NDArray[Any] = by_level[levels(np.asarray(thresholds), self.maximum)]
        return values

    def _clipped(self, boxes: Array, clip: bool) -> Array:
        if not clip:
            return boxes
        height, width = self.values.shape
        return np.minimum(boxes, [np.inf, np.inf, width - 1, height - 1])


def threshold_sweep(heatmap: ArrayLike, *, holes: bool = False) -> ThresholdSweep:
    """Boxes of all components of a score map at all thresholds, by component trees.

    Args:
        heatmap: (H, W) scores in [0, 1] (min-max a raw map first).
        holes: also the contours of holes, as OpenCV's RETR_TREE lists them.

    Raises:
        MapError: a map that is not 2-D, not finite or outside [0, 1].

    >>> sweep = threshold_sweep([[0.2, 0.2, 0.2, 0.2], [0.2, 1.0, 0.2, 0.6]])
    >>> sorted(sweep.boxes_at(0.3).tolist())
    [[1.0, 1.0, 2.0, 2.0], [3.0, 1.0, 4.0, 2.0]]
    >>> sweep.boxes_at(0.1).tolist()
    [[0.0, 0.0, 4.0, 2.0]]
    >>> sweep.at(sweep.best_iou([[1, 1, 2, 2]]), [0.1, 0.3]).tolist()
    [0.125, 1.0]
    """
    values = quantise(heatmap)
    boxes, low, high = superlevel_boxes(values, True)
    boxes = boxes + np.array([0, 0, 1, 1], np.int32)
    if holes:
        height, width = values.shape
        gaps, gaps_low, gaps_high = superlevel_boxes(255 - values, False)
        inside = (gaps[:, :2] > 0).all(1) & (gaps[:, 2] < width - 1) & (gaps[:, 3] < height - 1)
        grown = gaps[inside] + np.array([-1, -1, 2, 2], np.int32)
        # {255 - v > T'} is {v <= 254 - T'}
        boxes = np.concatenate([boxes, grown])
        low, high = (
            np.concatenate([low, 254 - gaps_high[inside]]),
            np.concatenate([high, 254 - gaps_low[inside]]),
        )
    return ThresholdSweep(values, boxes.astype(np.float64), low, high)


@compiled
def _spread(scores: Array, low: Ints, high: Ints, n: int) -> Array:
    """(n,) the largest score among the intervals [low, high] that cover each level; 0 where none does."""
    best = np.zeros(n)
    for k in range(len(scores)):
        for level in range(low[k], min(high[k] + 1, n)):
            best[level] = max(best[level], scores[k])
    return best
