"""ATCON's pixel IoU of a contrast-stretched map and a class's boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError
from wsod.metrics.base import CaseMean
from wsod.scoremaps import resize_map
from wsod.types import AttentionMaps, Sample

__all__ = ["MIoUATCON", "claimed", "stretched"]

SIDE = 256
Claim = Literal["gradcam", "guided", "guided-box", "mask"]
CLAIMS = get_args(Claim)


@dataclass(kw_only=True, eq=False)
class MIoUATCON(CaseMean):
    """Mean over cases of the IoU of {map > 0.5} and the union of the class's boxes, at 256x256.

    The raw map is resized to the nearest cell, min-maxed, shifted so that its median is 0.5, cut at
    mean + 2·std and at 0, and divided by its maximum. A pixel (row i, column j) is in a box if
    xmin < j < xmax and ymin < i < ymax with VOC's 1-based corners scaled to 256. Mirzazadeh et al., ATCON,
    2022; the rules are those of its code. `processing` is not used. Where prediction and truth are both
    empty the IoU is 0.

    Args:
        claim: what of the map is scored (`claimed`); that code scores guided backpropagation by the others.
    """

    name: ClassVar[str] = "miou_atcon"
    claim: Claim = "gradcam"

    def __post_init__(self) -> None:
        if self.claim not in CLAIMS:
            raise ConfigError(f"{self.name}: claim", ", ".join(CLAIMS), repr(self.claim))
        super().__post_init__()

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        if len(sample.labels) and not len(sample.boxes):
            return None
        truth = _inside(sample.boxes_of(int(maps.labels[k])), sample.size)
        claim = claimed(maps.values[k], self.claim)
        union = (claim | truth).sum()
        return float((claim & truth).sum() / union) if union else 0.0


def claimed(raw: NDArray[np.floating[Any]], claim: Claim = "gradcam") -> NDArray[np.bool_]:
    """(256, 256) pixels that a raw map claims.

    Args:
        raw: (h, w) values.
        claim: `gradcam`: as `MIoUATCON` describes; `guided`: those above an eighth of the way from minimum
            to maximum (the map is multiplied by 4 and cut at 1); `guided-box`: inside the box around these,
            its first and last rows and columns left out; `mask`: those above mean + std / 2, where the
            consistency loss's mask (a sigmoid) is above a half.
    """
    if claim == "gradcam":
        return stretched(raw) > 0.5
    values = resize_map(raw, (SIDE, SIDE), "nearest-opencv")
    if claim == "mask":
        return np.asarray(values > values.mean() + values.std() / 2)
    values -= values.min()
    found = np.asarray(np.minimum(4 * (values / (values.max() or 1.0)), 1) > 0.5)
    if claim == "guided" or not found.any():
        return found
    rows, columns = np.nonzero(found)
    box = np.array([[columns.min(), rows.min(), columns.max(), rows.max()]], np.float64)
    # `_inside` takes 1-based corners of an image of that size
    return _inside(box - [1, 1, 0, 0], (SIDE, SIDE))


def stretched(raw: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(h, w) raw map → (256, 256) in [0, 1], by the rule of `MIoUATCON`; zero of a constant map."""
    values = resize_map(raw, (SIDE, SIDE), "nearest-opencv")
    values -= values.min()
    if not values.any():
        return values
    values /= values.max()
    values -= np.median(values) - 0.5
    values = np.minimum(values, values.mean() + 2 * values.std()).clip(0)
    stretched: NDArray[np.float64] = values / values.max()
    return stretched


def _inside(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    mask = np.zeros((SIDE, SIDE), np.bool_)
    pixels = np.arange(SIDE)
    # half-open x0 is 1-based xmin - 1, x1 is xmax
    for x0, y0, x1, y1 in boxes:
        columns = ((x0 + 1) * (SIDE / width) < pixels) & (pixels < x1 * (SIDE / width))
        rows = ((y0 + 1) * (SIDE / height) < pixels) & (pixels < y1 * (SIDE / height))
        mask |= rows[:, None] & columns[None, :]
    return mask
