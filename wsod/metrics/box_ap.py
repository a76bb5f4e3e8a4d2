"""COCO's box AP, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from wsod.errors import DataError, MapError
from wsod.metrics.base import Evidence
from wsod.metrics.detections import DetectionMetric, Detections
from wsod.metrics.resampled_ap import FALSE, IGNORED, TRUE, Ranking, resampled_map
from wsod.types import AttentionMaps, InstanceMasks, Sample, Score, ScoredBoxes

__all__ = ["BoxAP", "coco_scores"]

#: true objects and detections of an image as COCO's tables have them, and its (height, width)
Entries = tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[int, int]]
#: COCO's twelve numbers, in its order
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


KEYS = ("dtIgnore", "dtMatches")
KINDS: dict[str, Literal["bbox", "segm"]] = {"boxes": "bbox", "masks": "segm"}
LEVELS = np.linspace(0.0, 1.0, 101)


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
    return _numbers(_evaluated(_backend(), truth, detections, kind))


def _numbers(run: Any) -> tuple[dict[str, float], dict[int, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
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


def _rankings(run: Any) -> dict[int, Ranking]:
    """By category, what became of each detection at COCO's ten IoUs, sizes aside; images by their ids."""
    images, areas = len(run.params.imgIds), len(run.params.areaRng)
    found = {}
    for place, category in enumerate(run.params.catIds):
        own = run.evalImgs[place * areas * images :][:images]
        met = [(n, one) for n, one in enumerate(own) if one is not None]
        owners = np.repeat([n for n, _ in met], [len(one["dtScores"]) for _, one in met]).astype(np.int64)
        scores = np.concatenate([np.zeros(0), *(one["dtScores"] for _, one in met)])
        order = np.argsort(-scores, kind="stable")
        outcome = np.zeros((len(run.params.iouThrs), len(scores)), np.int8)
        if len(scores):
            ignored, matches = (np.concatenate([one[key] for _, one in met], 1) for key in KEYS)
            outcome[:] = np.where(ignored, IGNORED, np.where(matches > 0, TRUE, FALSE))
        truth = np.zeros(images, np.int64)
        truth[[n for n, _ in met]] = [np.sum(np.equal(one["gtIgnore"], 0)) for _, one in met]
        found[int(category)] = Ranking(owners[order], outcome[:, order], truth)
    return found


def _evaluated(
    backend: tuple[Any, Any],
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "segm"],
    areas: int = 4,
) -> Any:
    """COCOeval after `evaluate`: all sizes, and with `areas=4` small, medium and large."""
    # slow to import, and only this metric needs it
    from pycocotools import mask

    COCO, COCOeval = backend

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
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:areas], run.params.areaRngLbl[:areas]
        run.evaluate()
    return run


def _backend() -> tuple[Any, Any]:
    """COCO and COCOeval: faster-coco-eval's where it is installed, with the same numbers (to 1e-15)."""
    try:
        faster = import_module("faster_coco_eval")
    except ImportError:
        return _plain()
    return faster.COCO, faster.COCOeval_faster


def _plain() -> tuple[Any, Any]:
    return import_module("pycocotools.coco").COCO, import_module("pycocotools.cocoeval").COCOeval


@dataclass(kw_only=True, eq=False)
class BoxAP(DetectionMetric):
    """COCO's AP over IoU 0.50:0.05:0.95, and its other eleven numbers in `extra`.

    Lin et al., ECCV 2014, and pycocotools. Boxes are continuous, crowds are matched freely, an image's
    100 best boxes of a class count. Small, medium and large go by the true objects' areas (`Sample.areas`).
    `count` counts true boxes that are no crowd. Of equal scores in different images that of the image whose
    id comes first in the alphabet counts first.

    Args:
        overlap: IoU of `boxes`, or of `masks`: those of COCO results, and of truth that knows single objects.
    """

    name: ClassVar[str] = "box_ap"
    overlap: Literal["boxes", "masks"] = "boxes"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._found: dict[str, Entries] = {}
        self._ranked: dict[int, Ranking] = {}

    def _empty(self) -> dict[str, Any]:
        return {"truth": np.zeros(self.classes, np.int64)}

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._found.update(other._found)

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Entries:
        return self._entries(self._detections(maps, sample), None, sample)

    def measure_boxes(self, boxes: ScoredBoxes, sample: Sample) -> Entries:
        return self._entries(super().measure_boxes(boxes, sample), boxes.masks, sample)

    def _entries(
        self, detections: Detections, masks: Mapping[int, Sequence[Mapping[str, Any]]] | None, sample: Sample
    ) -> Entries:
        flags = zip(sample.boxes, sample.labels, sample.crowd, sample.areas, strict=False)
        truth = [
            {**_entry(box, label), "iscrowd": int(crowd), "area": float(area)}
            for box, label, crowd, area in flags
        ]
        found = [
            {**_entry(box, label), "score": float(score)}
            for label, (boxes, scores) in detections.items()
            for box, score in zip(boxes, scores, strict=True)
        ]
        if self.overlap == "masks":
            if masks is None:
                raise MapError(sample.image_id, "COCO results with a segmentation each", "boxes alone")
            if truth and not isinstance(sample.masks, InstanceMasks):
                raise DataError(sample.image_id, "the mask of each object", "boxes, or one mask for all")
            from pycocotools import mask

            for n, entry in enumerate(truth):
                pixels = sample.masks.instance(n)  # type: ignore[union-attr]
                entry["segmentation"] = mask.encode(np.asfortranarray(pixels, np.uint8))
            for entry, rle in zip(found, (rle for label in detections for rle in masks[label]), strict=True):
                entry["segmentation"] = dict(rle)
        return truth, found, sample.size

    def _count(self, measured: Entries, sample: Sample) -> dict[int, Evidence]:
        self._found[sample.image_id] = measured
        if len(sample.boxes):
            np.add.at(self._state["truth"], sample.labels[~sample.crowd], 1)
        return {}

    @property
    def units(self) -> int:
        return len(self._found) if self._state["truth"].any() else 0

    def resampled(self, weights: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
        return resampled_map(weights, [self._ranked[label] for label in score.per_class or ()], LEVELS)

    def compute(self) -> Score:
        count = int(self._state["truth"].sum())
        if not count:
            return Score(math.nan, 0, self._skipped)
        truth: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        images = []
        for number, image in enumerate(sorted(self._found), 1):
            own_truth, own_found, (height, width) = self._found[image]
            images.append({"id": number, "height": height, "width": width})
            truth += ({**entry, "image_id": number} for entry in own_truth)
            found += ({**entry, "image_id": number} for entry in own_found)
        dataset = {
            "images": images,
            "categories": [{"id": label} for label in range(self.classes)],
            "annotations": [{**entry, "id": n} for n, entry in enumerate(truth, 1)],
        }
        what = dataset, found, KINDS[self.overlap]
        run = _evaluated(_backend(), *what)
        names, per_class = _numbers(run)
        # the faster backend does not tell what it has matched
        self._ranked = _rankings(run if type(run) is _plain()[1] else _evaluated(_plain(), *what, areas=1))
        return Score(names["ap"], count, self._skipped, per_class, extra=names)


def _entry(box: Any, label: int) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(x) for x in box)
    area = (x1 - x0) * (y1 - y0)
    return {"category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area}
