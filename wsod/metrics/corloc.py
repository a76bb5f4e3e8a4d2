"""CorLoc: does the best box of a class localise it, in the images that have it?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.iou import iou
from wsod.errors import ConfigError
from wsod.metrics.base import Evidence
from wsod.metrics.detections import DetectionMetric, Detections
from wsod.types import Sample, Score

__all__ = ["CorLoc", "CorLocImage"]


@dataclass(kw_only=True, eq=False)
class _CorLoc(DetectionMetric):
    """Options and counts of both kinds.

    Args:
        iou: needed for a hit.
        strict: IoU > needed, instead of >=.
        edge: added to widths and heights in the IoU. 0 on half-open boxes is what VOC's devkit computes
            with its +1 on last-pixel boxes; 1 takes the half-open x1, y1 for the last pixel.
        decimals: the map's boxes are rounded to that many decimals, as VOC result files are; -1 = not.
        difficult: difficult objects are truth too.
        crowd: crowd objects are truth too.
    """

    iou: float = 0.5
    strict: bool = False
    edge: Literal[0, 1] = 0
    decimals: int = -1
    difficult: bool = True
    crowd: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise ConfigError(f"{self.name}: iou", "a value above 0, at most 1", self.iou)
        super().__post_init__()

    def _hit(self, box: NDArray[np.float64], truth: NDArray[np.float64]) -> bool:
        if self.decimals >= 0:
            # as printed in a result file: 1-based, last pixel, where half-open x1 and y1 are what they are
            one = np.array([1, 1, 0, 0])
            box = np.array([float(f"{x:.{self.decimals}f}") for x in box + one]) - one
        overlap = iou(box, truth, self.edge).max(initial=0.0)
        return bool(overlap > self.iou if self.strict else overlap >= self.iou)

    def _empty(self) -> dict[str, NDArray[Any]]:
        return {"hits": np.zeros(self.classes, np.int64), "count": np.zeros(self.classes, np.int64)}

    def _tally(self, label: int, hit: bool) -> None:
        self._state["hits"][label] += hit
        self._state["count"][label] += 1


@dataclass(kw_only=True, eq=False)
class CorLoc(_CorLoc):
    """Mean over classes of the share of images with the class whose best box of it hits a true box.

    The best box is the one of highest score (of equals the first). An image without a box of a class it
    has is a miss; boxes of classes it does not have do not count. Deselaers, Alexe and Ferrari, IJCV 2012,
    section 6.1; in this form (strict, difficult objects included) the number of WSDDN, OICR, PCL.
    """

    name: ClassVar[str] = "corloc"
    average: ClassVar[Literal["cases", "classes"] | None] = "classes"

    def _count(self, measured: Detections, sample: Sample) -> dict[int, Evidence]:
        counted: dict[int, Evidence] = {}
        for label in sample.classes:
            truth = sample.boxes_of(label, difficult=self.difficult, crowd=self.crowd)
            if not len(truth):
                self._skip()
                continue
            boxes, scores = measured.get(label, (np.zeros((0, 4)), np.zeros(0)))
            hit = bool(len(boxes)) and self._hit(boxes[scores.argmax()], truth)
            self._tally(label, hit)
            counted[label] = float(hit)
        return counted

    def compute(self) -> Score:
        hits, count = self._state["hits"], self._state["count"]
        per_class = {int(c): float(hits[c] / count[c]) for c in np.flatnonzero(count)}
        value = math.fsum(per_class.values()) / len(per_class) if per_class else math.nan
        return Score(value, int(count.sum()), self._skipped, per_class)


@dataclass(kw_only=True, eq=False)
class CorLocImage(_CorLoc):
    """Share of images whose single best box, of whatever class, hits any object.

    The measure of unsupervised object discovery: Vo et al., CVPR 2019; Siméoni et al., LOST, BMVC 2021. An
    image is one case, under its first label. Of boxes of equal score the one of the lowest label is taken.
    """

    name: ClassVar[str] = "corloc_image"
    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    cases: ClassVar[Literal["labels", "images"]] = "images"

    def _count(self, measured: Detections, sample: Sample) -> dict[int, Evidence]:
        keep = np.ones(len(sample.boxes), np.bool_)
        if not self.difficult:
            keep &= ~sample.difficult
        if not self.crowd:
            keep &= ~sample.crowd
        truth = sample.boxes[keep]
        if not len(truth):
            self._skip()
            return {}
        found = [measured[label] for label in sorted(measured)]
        boxes = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in found)])
        scores = np.concatenate([np.zeros(0), *(scores for _, scores in found)])
        hit = bool(len(boxes)) and self._hit(boxes[scores.argmax()], truth)
        label = sample.classes[0]
        self._tally(label, hit)
        return {label: float(hit)}

    def compute(self) -> Score:
        hits, count = int(self._state["hits"].sum()), int(self._state["count"].sum())
        return Score(hits / count if count else math.nan, count, self._skipped)
