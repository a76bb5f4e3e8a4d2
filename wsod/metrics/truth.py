"""A class's ground truth in the evaluation frame: boxes, or a mask with the pixels that do not count."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.labelmaps import LabelMaps
from wsod.scoremaps import resample_weights
from wsod.types import Masks, Sample

__all__ = ["FrameRule", "TruthSource", "boxes_in_frame", "boxes_mask", "resize_nearest", "truth_mask"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FrameRule = Literal["exact", "truncated", "tscam"]
TruthSource = Literal["boxes", "masks"]
LABEL_MAPS = LabelMaps()


def boxes_in_frame(
    boxes: Array, size: tuple[int, int], frame: tuple[int, int], rule: FrameRule = "exact"
) -> Array:
    """(N, 4) boxes of an image of `size` in the pixels of the evaluation frame.

    Args:
        boxes: (N, 4) xyxy.
        size: (height, width) of the image.
        frame: (height, width) of the evaluation frame.
        rule: `exact`: scaled; `truncated`: int(x · width' / width), as the WSOL benchmark does; `tscam`:
            int(max(x / width · width', 0)), right and bottom int(min(…, width' - 1)), as TS-CAM does.

    >>> boxes_in_frame(np.array([[0.0, 0, 61, 60]]), (120, 224), (224, 224), "tscam").tolist()
    [[0.0, 0.0, 60.0, 112.0]]
    """
    height, width = size
    rows, columns = frame
    old = np.array([width, height, width, height], np.float64)
    new = np.array([columns, rows, columns, rows], np.float64)
    if rule == "truncated":
        return np.trunc(boxes * new / old)
    if rule == "tscam":
        scaled = boxes / old * new
        scaled[:, :2] = np.maximum(scaled[:, :2], 0)
        scaled[:, 2:] = np.minimum(scaled[:, 2:], new[2:] - 1)
        return np.trunc(scaled)
    return boxes if size == frame else boxes * (new / old)


def boxes_mask(boxes: Array, frame: tuple[int, int]) -> Mask:
    """(height, width) bool: pixels whose centre lies in any of the half-open boxes."""
    mask = np.zeros(frame, np.bool_)
    # the first pixel whose centre is at or right of x is ceil(x - 1/2)
    for x0, y0, x1, y1 in np.ceil(boxes - 0.5).astype(np.int64).clip(0).tolist():
        mask[y0:y1, x0:x1] = True
    return mask


def resize_nearest(values: NDArray[np.generic], frame: tuple[int, int]) -> NDArray[np.generic]:
    """(H, W) → frame by OpenCV's INTER_NEAREST: source index floor(i · (1 / (size / n)))."""
    if values.shape == frame:
        return values
    rows, columns = (
        resample_weights(n, side, "nearest-opencv").argmax(1)
        for n, side in zip(values.shape, frame, strict=True)
    )
    resized: NDArray[np.generic] = values[rows[:, None], columns[None, :]]
    return resized


def truth_mask(
    sample: Sample,
    label: int,
    frame: tuple[int, int],
    source: TruthSource,
    *,
    difficult: bool = True,
    crowd: bool = False,
    allow_empty: bool = False,
) -> tuple[Mask, Mask] | None:
    """A class's pixels in the evaluation frame, and those that count neither for nor against it.

    Args:
        sample: the image's annotations.
        label: the class.
        frame: (height, width).
        source: the union of its boxes, or its pixel masks.
        difficult: with boxes, difficult objects belong to the class (else they are ignored).
        crowd: crowd objects (with masks: all ignored pixels) belong to the class (else they are ignored).
        allow_empty: an empty mask of a class that the image has is a truth like others.

    Returns:
        `(foreground, ignore)`, or None where the image has the class but nothing to score it against: no
        masks, an empty mask, labels without boxes, or ignored objects only. A class the image does not
        have is an empty mask, not None.
    """
    if source == "masks":
        masks = sample.masks
        if masks is None:
            return None
        foreground, ignore = LABEL_MAPS.get(
            masks, (label, frame, crowd), lambda: _label_map(masks, label, frame, crowd)
        )
    else:
        if len(sample.labels) and not len(sample.boxes):
            return None
        kept = sample.boxes_of(label, difficult=difficult, crowd=crowd)
        foreground = boxes_mask(boxes_in_frame(kept, sample.size, frame), frame)
        ignore = boxes_mask(boxes_in_frame(sample.boxes_of(label), sample.size, frame), frame) & ~foreground
    if not allow_empty and label in sample.labels and not foreground.any():
        return None
    return foreground, ignore


def _label_map(masks: Masks, label: int, frame: tuple[int, int], crowd: bool) -> tuple[Mask, Mask]:
    foreground, ignore = masks.of(label), masks.ignore(label)
    if crowd:
        foreground, ignore = foreground | ignore, np.zeros_like(ignore)
    foreground = np.asarray(resize_nearest(foreground, frame), np.bool_)
    return foreground, np.asarray(resize_nearest(ignore, frame), np.bool_) & ~foreground
