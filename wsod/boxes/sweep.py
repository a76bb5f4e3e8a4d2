"""All thresholds of a heatmap at once: every component's box, the best IoU with given boxes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.boxes import basins, tree
from wsod.boxes.hills import find_basins, quantised, room_for, scratch, survey
from wsod.boxes.tree import Nodes, compiled
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
    return _read(scores)[1]


def _read(scores: ArrayLike) -> tuple[Array, Bytes]:
    """The map as compiled code wants it, and its bytes."""
    # a read-only or strided array would be compiled for once more
    array = np.require(scores, np.float64, ["C", "W"])
    if array.ndim != 2 or not array.size:
        raise MapError("threshold sweep", "a non-empty (H, W) map", array.shape)
    values, inside = quantised(array)
    if not inside:
        found = f"values from {array.min():g} to {array.max():g}"
        raise MapError("threshold sweep", "finite scores in [0, 1]", found, "Min-max the map first.")
    return array, values


def levels(thresholds: ArrayLike, maximum: int) -> NDArray[np.int64]:
    """T = int(t · maximum) of thresholds t in [0, 1): the mask at t is value > T."""
    return (_accepted(thresholds) * maximum).astype(np.int64)


def _accepted(thresholds: ArrayLike) -> Array:
    t = np.asarray(thresholds, np.float64)
    if t.size and not (t.min() >= 0 and t.max() < 1):
        raise ConfigError("thresholds", "values in [0, 1)", f"{t.min():g} to {t.max():g}")
    return t


def _ranked(scores: Array) -> tuple[Array, Ints]:
    """0 and the distinct scores, ascending; and the place of each pixel's score among them."""
    heights, flat = np.unique(scores, return_inverse=True)
    places: Ints = np.asarray(flat, np.int32).reshape(scores.shape)
    if heights[0] > 0:
        # at thresholds below the lowest score the mask is the whole frame
        return np.concatenate([[0.0], heights]), places + np.int32(1)
    return heights, places


class ThresholdSweep:
    """The boxes of a map's components at every threshold t in [0, 1). Made by `threshold_sweep`.

    With M the largest byte of the map (`quantise`), the mask at t is byte > int(t · M), as in the WSOL
    benchmark (Choe et al., CVPR 2020): of any number of thresholds at most 255 masks differ. An exact
    sweep has no bytes: the mask is score > t · (largest score), and every distinct score is a level. What is
    asked for is computed when first asked for.

    Attributes:
        values: (H, W) the level of each pixel: uint8 bytes, or in an exact sweep int32, the place of its
            score among 0 and the map's distinct scores.
        maximum: M, the highest level; 0 = a map that claims nothing at any threshold.
    """

    values: NDArray[Any]

    def __init__(self, heatmap: ArrayLike, holes: bool = False, exact: bool = False) -> None:
        # the scores refine the bytes: equal bytes keep their order
        self._scores, self.values = _read(heatmap)
        self.holes = holes
        self._heights: Array | None = None
        if exact:
            self._heights, self.values = _ranked(self._scores)
        self.maximum = int(self.values.max())

    @cached_property
    def nodes(self) -> Nodes:
        """`(boxes, low, high)`: (n, 4), (n,), (n,) int32, each box there at levels T = low … high.

        Half-open xyxy boxes of 8-connected components, and of holes where asked for: grown by the
        foreground pixels around the hole, as OpenCV's hole contours are.
        """
        height, width = self.values.shape
        top = self.maximum if self.exact else 255
        if not self.exact:
            upper, lower = survey(self._scores, self.holes, _hill_room(self.values))
            if max(upper[3], lower[3]) <= basins.MANY:
                room = room_for(upper, lower)
                found = basins.boxes_and_gaps(self.values, upper, lower, self.holes, room)
                return half_open(*found, height, width, top)
        upside_down = np.subtract(top, self.values, dtype=self.values.dtype)
        found = tree.boxes_and_gaps(self.values, upside_down, self.holes, top)
        return half_open(*found, height, width, top)

    @property
    def exact(self) -> bool:
        """Whether every distinct score is a level, instead of every byte."""
        return self._heights is not None

    def is_of(self, heatmap: ArrayLike) -> bool:
        """Whether the map is equal to the one that was swept, in every value."""
        scores, own = np.asarray(heatmap), self._scores
        middle = len(own) // 2  # seldom equal by chance
        return (
            scores.shape == own.shape
            and np.array_equal(scores[middle], own[middle])
            and np.array_equal(scores, own)
        )

    def level(self, thresholds: ArrayLike) -> NDArray[np.int64]:
        """The level T of thresholds t in [0, 1): the mask at t is `values` > T."""
        if self._heights is None:
            return levels(thresholds, self.maximum)
        t = _accepted(thresholds)
        place = np.searchsorted(self._heights, t * self._heights[-1], "right") - 1
        # t · max may round to max
        return np.asarray(np.minimum(place, max(self.maximum - 1, 0)), np.int64)

    def boxes_at(self, threshold: float) -> Array:
        """(k, 4) boxes at a threshold in [0, 1), in no particular order, each as often as it occurs."""
        level = self.level(threshold)
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
        return self._best(*self.nodes, true_boxes(boxes), edge, clip)

    @property
    def largest(self) -> Ints:
        """(M, 4) half-open box of the component of largest contour area at each level T."""
        return self._largest[0]

    @cached_property
    def _largest(self) -> Nodes:
        if not self.exact:
            room = _hill_room(self.values)
            lower = find_basins(self._scores, False, -1.0, room)
            if lower[3] <= basins.MANY:
                filled, keys = basins.fill_holes(self.values, self._scores, *lower, room_for(lower))
                upper = find_basins(keys, True, 1.0, room)
                boxes = basins.largest_boxes(filled, *upper, room_for(upper))
                return half_open_levels(boxes[: self.maximum])
        boxes = tree.largest_boxes(tree.fill_holes(self.values, self.maximum), self.maximum)
        return half_open_levels(boxes)

    def largest_at(self, threshold: float) -> Array:
        """(1, 4) box of the component of largest contour area at a threshold; (0, 4) for an empty mask."""
        level = int(self.level(threshold))
        return self.largest[level : level + 1].astype(np.float64)

    def largest_iou(self, boxes: ArrayLike, edge: int = 0, clip: bool = False) -> Array:
        """As `best_iou`, for the box of the component of largest contour area only."""
        return self._best(*self._largest, true_boxes(boxes), edge, clip)

    def _best(self, boxes: Ints, low: Ints, high: Ints, truth: Array, edge: int, clip: bool) -> Array:
        height, width = self.values.shape
        limits = (width - 1, height - 1) if clip else (width, height)
        ious = node_ious(boxes, truth, edge, *limits)
        return best_by_level(ious, low, high, max(self.maximum, 1))

    def at(self, by_level: NDArray[Any], thresholds: Iterable[float]) -> NDArray[Any]:
        """What `best_iou` or `largest_iou` gave by level, at thresholds in [0, 1)."""
        values: NDArray[Any] = by_level[self.level(np.asarray(thresholds))]
        return values


def threshold_sweep(heatmap: ArrayLike, *, holes: bool = False, exact: bool = False) -> ThresholdSweep:
    """Boxes of all components of a score map at all thresholds, by component trees.

    Args:
        heatmap: (H, W) scores in [0, 1] (min-max a raw map first).
        holes: also the contours of holes, as OpenCV's RETR_TREE lists them.
        exact: compare the scores themselves with the thresholds, not their bytes. A few times slower.

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
    return ThresholdSweep(heatmap, holes, exact)


def warm_up() -> None:
    """Compile all that sweeps need into numba's cache: a few seconds, once an installation.

    Otherwise the first sweeps do, each what it needs.
    """
    scores = np.add.outer(np.arange(9), np.arange(9)) / 16
    sweep = threshold_sweep(scores, holes=True)
    sweep.best_iou([[0, 0, 4, 4]])
    sweep.largest_iou([[0, 0, 4, 4]])
    # what maps of too many basins use
    values = sweep.values
    tree.boxes_and_gaps(values, ~values, True, 255)
    tree.largest_boxes(tree.fill_holes(values, 255), 255)
    exact = threshold_sweep(scores, holes=True, exact=True)
    exact.best_iou([[0, 0, 4, 4]])
    exact.largest_iou([[0, 0, 4, 4]])
    # it imports this module
    from wsod.boxes.batch import best_ious

    best_ious(scores[None], [[[0, 0, 4, 4]]])


def _hill_room(values: Bytes) -> Ints:
    height, width = values.shape
    return scratch(3 * height * (width // 2 + 1))


@compiled
def half_open(boxes: Nodes, gaps: Nodes, height: int, width: int, top: int) -> Nodes:
    """Nodes of components and of the gaps between them, as half-open boxes of components and holes."""
    corners, low, high = boxes
    inside = np.empty(len(gaps[0]), np.int64)
    n, holes = len(low), 0
    for k in range(len(inside)):
        x0, y0, x1, y1 = gaps[0][k]
        if x0 > 0 and y0 > 0 and x1 < width - 1 and y1 < height - 1:
            inside[holes] = k
            holes += 1
    nodes = np.empty((n + holes, 6), np.int32)
    for k in range(n):
        nodes[k, :4] = corners[k]
        nodes[k, 2] += 1
        nodes[k, 3] += 1
        nodes[k, 4], nodes[k, 5] = low[k], high[k]
    for k in range(holes):
        gap = inside[k]
        nodes[n + k, :4] = gaps[0][gap]
        nodes[n + k, :2] -= 1
        nodes[n + k, 2:4] += 2
        # {top - v > T'} is {v <= top - 1 - T'}
        nodes[n + k, 4], nodes[n + k, 5] = top - 1 - gaps[2][gap], top - 1 - gaps[1][gap]
    return nodes[:, :4].copy(), nodes[:, 4].copy(), nodes[:, 5].copy()


def true_boxes(boxes: ArrayLike) -> Array:
    truth = np.asarray(boxes, np.float64)
    if truth.size and truth.shape[-1] != 4:
        raise MapError("threshold sweep", "boxes of shape (m, 4)", truth.shape)
    return truth.reshape(-1, 4)


@compiled
def half_open_levels(boxes: Ints) -> Nodes:
    """One box a level, as nodes of half-open boxes."""
    nodes = boxes.copy()
    nodes[:, 2:] += 1
    level = np.arange(len(boxes)).astype(np.int32)
    return nodes, level, level


@compiled
def node_ious(boxes: Ints, truth: Array, edge: int, right: int, bottom: int) -> Array:
    """(n,) the largest IoU of each box with any true box; as `wsod.boxes.iou`."""
    ious = np.zeros(len(boxes))
    for k in range(len(boxes)):
        x0, y0 = boxes[k, 0], boxes[k, 1]
        x1, y1 = min(boxes[k, 2], right), min(boxes[k, 3], bottom)
        area = max(x1 - x0 + edge, 0) * max(y1 - y0 + edge, 0)
        for t in range(len(truth)):
            u0, v0, u1, v1 = truth[t, 0], truth[t, 1], truth[t, 2], truth[t, 3]
            width = min(float(x1), u1) - max(float(x0), u0) + edge
            height = min(float(y1), v1) - max(float(y0), v0) + edge
            if width > 0 and height > 0:
                both = width * height
                union = area + max(u1 - u0 + edge, 0.0) * max(v1 - v0 + edge, 0.0) - both
                ious[k] = max(ious[k], both / union)
    return ious


@compiled
def best_by_level(ious: Array, low: Ints, high: Ints, n: int) -> Array:
    """(n,) the largest IoU of the nodes there, by level; 0 where there is none."""
    best = np.zeros(n)
    if n > 256:
        # the best node paints its levels first; each level is painted once, those painted are leapt over
        free = np.arange(n + 1).astype(np.int32)
        for k in np.argsort(-ious):
            level = low[k]
            while True:
                while free[level] != level:
                    free[level] = free[free[level]]
                    level = free[level]
                if level > high[k] or level >= n:
                    break
                best[level] = ious[k]
                free[level] = level + 1
        return best
    for k in range(len(ious)):
        for level in range(low[k], min(high[k] + 1, n)):
            best[level] = max(best[level], ious[k])
    return best
