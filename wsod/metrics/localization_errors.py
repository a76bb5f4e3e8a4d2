"""Why a box is wrong: the error kinds of Top-1 localization."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["KINDS", "error_kind"]

#: what becomes of an image under Top-1 localization
KINDS = ("right", "wrong_class", "several_objects", "part", "more", "elsewhere")


def error_kind(box: ArrayLike, truth: ArrayLike, edge: int = 0) -> str:
    """Why a box of the right class misses. Of the kinds that apply the first:

    `several_objects`: it covers more than 0.3 of each of two true boxes or more; `part`: more than half of it
    lies in the true box it has the largest IoU with; `more`: it covers 0.7 of that true box or more;
    `elsewhere`. These are the kinds, order and limits of TS-CAM's evaluation (Gao et al., ICCV 2021).

    Args:
        box: (4,) xyxy.
        truth: (m, 4), at least one.
        edge: added to widths and heights, as in `wsod.boxes.iou`.

    >>> error_kind([0, 0, 2, 2], [[0, 0, 9, 9]]), error_kind([0, 0, 9, 9], [[0, 0, 2, 2]])
    ('part', 'more')
    """
    own, true = np.asarray(box, np.float64), np.asarray(truth, np.float64)
    area, areas = _area(own, edge), _area(true, edge)
    shared = np.concatenate([np.maximum(own[:2], true[:, :2]), np.minimum(own[2:], true[:, 2:])], 1)
    both = _area(shared, edge)
    if (both / areas > 0.3).sum() > 1:
        return "several_objects"
    best = int((both / (area + areas - both)).argmax())
    if both[best] / area > 0.5:
        return "part"
    return "more" if both[best] / areas[best] >= 0.7 else "elsewhere"


def _area(boxes: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    sides = (boxes[..., 2:] - boxes[..., :2] + edge).clip(0)
    area: NDArray[np.float64] = sides.prod(-1)
    return area
