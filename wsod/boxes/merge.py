"""Boxes that overlap → the box around them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.iou import iou
from wsod.errors import ConfigError

__all__ = ["merge_groups"]

Array = NDArray[np.float64]
ROWS = 256  # so that thousands of boxes need no square matrix


def merge_groups(boxes: Array, merge_iou: float) -> tuple[Array, NDArray[np.int64]]:
    """Boxes of an IoU above `merge_iou` replaced by the box around them, until no two are left.

    All that overlap, directly or through others, are merged at once, so the order of the boxes is of no
    consequence.

    Args:
        boxes: (N, 4) xyxy half-open.
        merge_iou: in [0, 1); 0 merges whatever overlaps.

    Returns:
        (M, 4) merged boxes, and (N,) the merged box each box went into.

    Raises:
        ConfigError: `merge_iou` outside [0, 1).

    >>> merged, group = merge_groups(np.array([[0.0, 0, 4, 4], [6, 6, 9, 9], [1, 0, 5, 4]]), 0.3)
    >>> merged.tolist(), group.tolist()
    ([[0.0, 0.0, 5.0, 4.0], [6.0, 6.0, 9.0, 9.0]], [0, 1, 0])
    """
    if not 0 <= merge_iou < 1:
        raise ConfigError("merge_iou", "a value from 0 to below 1", merge_iou)
    from scipy.sparse import coo_array  # slow to import, and only merging needs it
    from scipy.sparse.csgraph import connected_components

    group = np.arange(len(boxes))
    while len(boxes) > 1:
        pairs = []
        for start in range(0, len(boxes), ROWS):
            rows, columns = np.nonzero(iou(boxes[start : start + ROWS], boxes) > merge_iou)
            pairs.append((rows + start, columns))
        first, second = np.concatenate(pairs, axis=1).astype(np.int32)  # what csgraph counts with
        graph = coo_array((np.ones(len(first)), (first, second)), (len(boxes),) * 2)
        count, parts = connected_components(graph, directed=False)
        if count == len(boxes):
            break
        merged = np.tile([np.inf, np.inf, -np.inf, -np.inf], (count, 1))
        np.minimum.at(merged[:, :2], parts, boxes[:, :2])
        np.maximum.at(merged[:, 2:], parts, boxes[:, 2:])
        boxes, group = merged, parts[group]
    return boxes, np.asarray(group, np.int64)
