"""Intersection over union of boxes, with the box edge as an argument."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.errors import MapError

__all__ = ["iou"]


def iou(a: ArrayLike, b: ArrayLike, edge: int = 0) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: (N, 4) boxes xyxy, or one box (4,).
        b: (M, 4) boxes xyxy, or one box (4,).
        edge: added to every width and height: 0 for half-open or continuous boxes, 1 where x1 and y1 are
            the last pixel (VOC's devkit, the WSOL benchmark).

    Returns:
        (N, M) float64. Boxes without area have IoU 0 with everything.

    >>> iou([[0, 0, 2, 2]], [[0, 0, 2, 4], [1, 1, 3, 3]]).round(3)
    array([[0.5  , 0.143]])
    """
    first, second = _boxes(a, "a"), _boxes(b, "b")
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (bottom_right - top_left + edge).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + edge).clip(0).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    ratio: NDArray[np.float64] = np.divide(
        intersection, union, out=np.zeros_like(union, np.float64), where=union > 0
    )
    return ratio


def _boxes(values: ArrayLike, name: str) -> NDArray[np.float64]:
    boxes = np.asarray(values, np.float64)
    if boxes.size and boxes.shape[-1] != 4:
        raise MapError(f"iou: {name}", "boxes of shape (N, 4)", boxes.shape)
    return boxes.reshape(-1, 4)
