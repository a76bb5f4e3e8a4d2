"""COCO's box AP, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from wsod.metrics.base import Evidence
from wsod.metrics.detections import DetectionMetric, Detections
from wsod.types import Sample, Score

__all__ = ["BoxAP", "coco_scores"]

#: COCO's twelve numbers, in its order
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def coco_scores(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> tuple[dict[str, float], dict[int, float]]:
    """COCO's twelve numbers, and AP by category.

    Args:
        truth: a COCO dictionary of `images`, `annotations` (ids from 1; an id 0 would never match) and
            `categories`.
        detections: COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height), `score`. Of
            equal scores the first given counts first. With `kind="segm"`, `segmentation` (RLE) instead of
            `bbox`.
        kind: overlap of boxes or of masks.

    Returns:
        Fractions by name; NaN where pycocotools says -1 (nothing to average).
    """
    # slow to import, and only this metric needs it
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def area(detection: Mapping[str, Any]) -> float:
        if kind == "bbox":
            return float(detection["bbox"][2] * detection["bbox"][3])
        return float(mask.area(detection["segmentation"]))

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {**truth, "info": {}}
        known.createIndex()
        found = COCO()
        found.dataset = {
            "info": {},
            "images": truth["images"],
            "categories": truth["categories"],
            "annotations": [
                {**d, "id": n, "iscrowd": 0, "area": area(d)} for n, d in enumerate(detections, 1)
            ],
        }
        found.createIndex()
        run = COCOeval(known, found, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = [float(x) if x > -1 else math.nan for x in run.stats]
    # precision: IoU, recall, category, area range, most detections
    precision = run.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for place, category in enumerate(run.params.catIds):
        own = precision[:, :, place]
        own = own[own > -1]
        if own.size:
            per_class[int(category)] = float(own.mean())
    return dict(zip(NAMES, names, strict=True)), per_class


@dataclass(kw_only=True, eq=False)
class BoxAP(DetectionMetric):
    """COCO's AP over IoU 0.50:0.05:0.95, and its other eleven numbers in `extra`.

    Lin et al., ECCV 2014, and pycocotools. Boxes are continuous, crowds are matched freely, an image's
    100 best boxes of a class count. The sizes of small, medium and large are those of the boxes (COCO's
    own files give the area of the mask). `count` counts true boxes that are no crowd.
    """

    name: ClassVar[str] = "box_ap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def _empty(self) -> dict[str, Any]:
        return {"truth": np.zeros(self.classes, np.int64)}

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._found.update(other._found)

    def _count(self, measured: Detections, sample: Sample) -> dict[int, Evidence]:
        truth = [
            {**_entry(box, label), "iscrowd": int(crowd)}
            for box, label, crowd in zip(sample.boxes, sample.labels, sample.crowd, strict=False)
        ]
        found = [
            {**_entry(box, label), "score": float(score)}
            for label, (boxes, scores) in measured.items()
            for box, score in zip(boxes, scores, strict=True)
        ]
        self._found[sample.image_id] = truth, found
        if len(sample.boxes):
            np.add.at(self._state["truth"], sample.labels[~sample.crowd], 1)
        return {}

    def compute(self) -> Score:
        count = int(self._state["truth"].sum())
        if not count:
            return Score(math.nan, 0, self._skipped)
        truth: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for number, image in enumerate(sorted(self._found), 1):
            own_truth, own_found = self._found[image]
            truth += ({**entry, "image_id": number} for entry in own_truth)
            found += ({**entry, "image_id": number} for entry in own_found)
        dataset = {
            "images": [{"id": number} for number in range(1, len(self._found) + 1)],
            "categories": [{"id": label} for label in range(self.classes)],
            "annotations": [{**entry, "id": n} for n, entry in enumerate(truth, 1)],
        }
        names, per_class = coco_scores(dataset, found)
        return Score(names["ap"], count, self._skipped, per_class, extra=names)


def _entry(box: Any, label: int) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(x) for x in box)
    area = (x1 - x0) * (y1 - y0)
    return {"category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area}
