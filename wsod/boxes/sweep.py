"""All thresholds of a heatmap at once: every component's box, the best IoU with given boxes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.boxes import basins, tree
from wsod.boxes.hills import find_basins, scratch
from wsod.boxes.tree import compiled
from wsod.errors import ConfigError, MapError

__all__ = ["ThresholdSweep", "levels", "quantise", "threshold_sweep", "warm_up"]

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


class ThresholdSweep:
    """The boxes of a map's components at every threshold t in [0, 1). Made by `threshold_sweep`.

    With M the largest byte of the map (`quantise`), the mask at t is byte > int(t · M), as in the WSOL
    benchmark (Choe et al., CVPR 2020): of any number of thresholds at most 255 masks differ. What is asked
    for is computed when first asked for.
    """

    def __init__(self, heatmap: ArrayLike, holes: bool = False) -> None:
        self.values = quantise(heatmap)
        self.holes = holes
        # refines the bytes: equal bytes keep the order of the scores
        self._keys = np.asarray(heatmap, np.float64) * 255

    @cached_property
    def maximum(self) -> int:
        """M, the largest byte of the map; 0 = a map that claims nothing at any threshold."""
        return int(self.values.max())

    @cached_property
    def _upper(self) -> tuple[Ints, Ints, Ints, int]:
        return _find(self._keys, True, 1.0)

    @cached_property
    def _lower(self) -> tuple[Ints, Ints, Ints, int]:
        return _find(self._keys, False, -1.0)

    @cached_property
    def nodes(self) -> tuple[Ints, Ints, Ints]:
        """`(boxes, low, high)`: (n, 4), (n,), (n,) int32, each box there at levels T = low … high.

        Half-open xyxy boxes of 8-connected components, and of holes where asked for: grown by the
        foreground pixels around the hole, as OpenCV's hole contours are.
        """
        boxes, low, high = _components(self.values, self._upper, True)
        boxes[:, 2:] += 1
        if not self.holes:
            return boxes, low, high
        height, width = self.values.shape
        gaps, first, last = _components(255 - self.values, self._lower, False)
        inside = (gaps[:, :2] > 0).all(1) & (gaps[:, 2] < width - 1) & (gaps[:, 3] < height - 1)
        grown = gaps[inside] + np.array([-1, -1, 2, 2], np.int32)
        # {255 - v > T'} is {v <= 254 - T'}
        return (
            np.concatenate([boxes, grown]),
            np.concatenate([low, 254 - last[inside]]),
            np.concatenate([high, 254 - first[inside]]),
        )

    def boxes_at(self, threshold: float) -> Array:
        """(k, 4) boxes at a threshold in [0, 1), in no particular order, each as often as it occurs."""
        level = levels(threshold, self.maximum)
        boxes, low, high = self.nodes
        return boxes[(low <= level) & (level <= high)].astype(np.float64)

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
        return self._best(*self.nodes, _truth(boxes), edge, clip)

    @cached_property
    def largest(self) -> Ints:
        """(M, 4) half-open box of the component of largest contour area at each level T."""
        if self._lower[3] > basins.MANY:
            boxes = tree.largest_boxes(tree.fill_holes(self.values))
        else:
            lower = self._lower
            room = scratch(len(lower[2]), lower[3])
            filled, keys = basins.fill_holes(self.values, 255 - self.values, self._keys, *lower, room)
            upper = _find(keys, True, 1.0)
            boxes = basins.largest_boxes(filled, *upper, scratch(len(upper[2]), upper[3]))
        boxes = boxes[: self.maximum]
        boxes[:, 2:] += 1
        return boxes

    def largest_at(self, threshold: float) -> Array:
        """(1, 4) box of the component of largest contour area at a threshold; (0, 4) for an empty mask."""
        level = int(levels(threshold, self.maximum))
        return self.largest[level : level + 1].astype(np.float64)

    def largest_iou(self, boxes: ArrayLike, edge: int = 0, clip: bool = False) -> Array:
        """As `best_iou`, for the box of the component of largest contour area only."""
        level = np.arange(self.maximum, dtype=np.int32)
        return self._best(self.largest, level, level, _truth(boxes), edge, clip)

    def _best(self, boxes: Ints, low: Ints, high: Ints, truth: Array, edge: int, clip: bool) -> Array:
        height, width = self.values.shape
        limits = (width - 1, height - 1) if clip else (width, height)
        return _best_by_level(boxes, low, high, truth, edge, *limits, max(self.maximum, 1))

    def at(self, by_level: NDArray[Any], thresholds: Iterable[float]) -> NDArray[Any]:
        """What `best_iou` or `largest_iou` gave by level, at thresholds in [0, 1)."""
        values: NDArray[Any] = by_level[levels(np.asarray(thresholds), self.maximum)]
        return values


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
    return ThresholdSweep(heatmap, holes)


def warm_up() -> None:
    """Compile all that sweeps need into numba's cache: a few seconds, once an installation.

    Otherwise the first sweeps do, each what it needs.
    """
    sweep = threshold_sweep(np.add.outer(np.arange(9), np.arange(9)) / 16, holes=True)
    sweep.best_iou([[0, 0, 4, 4]])
    sweep.largest_iou([[0, 0, 4, 4]])
    # what maps of too many basins use
    tree.superlevel_boxes(sweep.values, False)
    tree.largest_boxes(tree.fill_holes(sweep.values))


def _find(keys: Array, eight: bool, sign: float) -> tuple[Ints, Ints, Ints, int]:
    height, width = keys.shape
    return find_basins(keys, eight, sign, scratch(height * (width // 2 + 1) // 4 + 1, 0))


def _components(values: Bytes, found: tuple[Ints, Ints, Ints, int], eight: bool) -> tuple[Ints, Ints, Ints]:
    if found[3] > basins.MANY:
        return tree.superlevel_boxes(values, eight)
    return basins.superlevel_boxes(values, *found, eight, scratch(len(found[2]), found[3]))


def _truth(boxes: ArrayLike) -> Array:
    truth = np.asarray(boxes, np.float64)
    if truth.size and truth.shape[-1] != 4:
        raise MapError("threshold sweep", "boxes of shape (m, 4)", truth.shape)
    return truth.reshape(-1, 4)


@compiled
def _best_by_level(
    boxes: Ints, low: Ints, high: Ints, truth: Array, edge: int, right: int, bottom: int, n: int
) -> Array:
    """(n,) the largest IoU of any box there with any true box, by level; as `wsod.boxes.iou`."""
    best = np.zeros(n)
    for k in range(len(boxes)):
        x0, y0 = boxes[k, 0], boxes[k, 1]
        x1, y1 = min(boxes[k, 2], right), min(boxes[k, 3], bottom)
        area = max(x1 - x0 + edge, 0) * max(y1 - y0 + edge, 0)
        top = 0.0
        for t in range(len(truth)):
            u0, v0, u1, v1 = truth[t, 0], truth[t, 1], truth[t, 2], truth[t, 3]
            width = min(float(x1), u1) - max(float(x0), u0) + edge
            height = min(float(y1), v1) - max(float(y0), v0) + edge
            if width > 0 and height > 0:
                both = width * height
                union = area + max(u1 - u0 + edge, 0.0) * max(v1 - v0 + edge, 0.0) - both
                top = max(top, both / union)
        if top > 0:
            for level in range(low[k], min(high[k] + 1, n)):
                best[level] = max(best[level], top)
    return best
