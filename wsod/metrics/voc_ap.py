"""VOC AP: mean average precision of scored boxes at one IoU, by the rules of the VOC devkit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.iou import iou
from wsod.errors import ConfigError
from wsod.metrics.base import Evidence
from wsod.metrics.detections import DetectionMetric, Detections
from wsod.metrics.resampled_ap import FALSE, IGNORED, TRUE, Ranking, resampled_map
from wsod.types import Sample, Score

__all__ = ["VocAP"]

Array = NDArray[np.float64]
LEVELS = np.arange(0.0, 1.1, 0.1)


class _Image(NamedTuple):
    """An image: by label its scores and outcomes, by descending score; and the true objects that count."""

    found: dict[int, tuple[Array, NDArray[np.int8]]]
    truth: dict[int, int]


@dataclass(kw_only=True, eq=False)
class VocAP(DetectionMetric):
    """Mean over classes of the average precision of their boxes. Everingham et al., IJCV 2010, section 4.2.

    In each image, by descending score, a box takes the true box of its class it overlaps most; it is a
    true positive if that overlap is enough and the true box is not taken, and does not count if that true
    box is ignored. Only scores and outcomes are kept. `count` counts true boxes.

    Args:
        iou: needed.
        strict: IoU > needed (the devkit), instead of >= (other packages).
        edge: added to widths and heights in the IoU. 0 on half-open boxes is what the devkit computes
            with its +1 on last-pixel boxes.
        method: `area` under the monotone precision envelope (VOC 2010 on), or `11point` (VOC 2007).
        difficult: `ignore` (the devkit), `count` as others, or `remove` (a box on one is then false).
        ties: which of equally scored boxes comes first: the `first` given, images in the order of their
            ids, or the `last` (the devkit's own order of ties is not defined).
    """

    name: ClassVar[str] = "voc_ap"
    iou: float = 0.5
    strict: bool = True
    edge: Literal[0, 1] = 0
    method: Literal["area", "11point"] = "area"
    difficult: Literal["ignore", "count", "remove"] = "ignore"
    ties: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise ConfigError(f"{self.name}: iou", "a value above 0, at most 1", self.iou)
        super().__post_init__()
        self._found: dict[str, _Image] = {}

    def _empty(self) -> dict[str, NDArray[Any]]:
        return {"truth": np.zeros(self.classes, np.int64)}

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._found.update(other._found)

    def _count(self, measured: Detections, sample: Sample) -> dict[int, Evidence]:
        outcomes = {}
        for label, (boxes, scores) in measured.items():
            if len(boxes):
                order = self._order(scores)
                outcomes[label] = scores[order], self._match(boxes[order], sample, label)
        counts = ~sample.difficult | (self.difficult == "count")
        labels = sample.labels[counts] if len(sample.boxes) else sample.labels[:0]
        np.add.at(self._state["truth"], labels, 1)
        truth = dict(zip(*(part.tolist() for part in np.unique(labels, return_counts=True)), strict=True))
        self._found[sample.image_id] = _Image(outcomes, truth)
        return {}

    def _order(self, scores: Array) -> NDArray[np.int64]:
        if self.ties == "last":
            return np.argsort(scores, kind="stable")[::-1]
        return np.argsort(-scores, kind="stable")

    def _match(self, boxes: Array, sample: Sample, label: int) -> NDArray[np.int8]:
        truth = sample.boxes_of(label, difficult=self.difficult != "remove")
        outcome = np.full(len(boxes), FALSE, np.int8)
        if not len(truth):
            return outcome
        ignored = sample.difficult[sample.labels == label]
        ignored = ignored if self.difficult == "ignore" else np.zeros(len(truth), np.bool_)
        overlaps = iou(boxes, truth, self.edge)
        taken = np.zeros(len(truth), np.bool_)
        for n, (best, overlap) in enumerate(zip(overlaps.argmax(1), overlaps.max(1), strict=True)):
            if not (overlap > self.iou if self.strict else overlap >= self.iou):
                continue
            if ignored[best]:
                outcome[n] = IGNORED
            elif not taken[best]:
                outcome[n] = TRUE
                taken[best] = True
        return outcome

    def curve(self, label: int) -> tuple[Array, Array]:
        """Recall and precision after each of the class's boxes, by descending score."""
        outcome = self._ranking(label).outcome[0]
        true, false = (outcome == TRUE).cumsum(), (outcome == FALSE).cumsum()
        positives = max(int(self._state["truth"][label]), 1)
        return true / positives, true / np.maximum(true + false, np.finfo(np.float64).eps)

    def _ranking(self, label: int) -> Ranking:
        names = sorted(self._found)
        places = range(len(names))[:: -1 if self.ties == "last" else 1]
        found = [
            (n, *self._found[names[n]].found[label]) for n in places if label in self._found[names[n]].found
        ]
        images = np.repeat([n for n, _, _ in found], [len(scores) for _, scores, _ in found]).astype(np.int64)
        scores = np.concatenate([np.zeros(0), *(scores for _, scores, _ in found)])
        outcome = np.concatenate([np.zeros(0, np.int8), *(outcome for _, _, outcome in found)])
        # within an image they are in order already
        order = np.argsort(-scores, kind="stable")
        truth = np.array([self._found[name].truth.get(label, 0) for name in names], np.int64)
        return Ranking(images[order], outcome[None, order], truth)

    @property
    def units(self) -> int:
        return len(self._found) if self._state["truth"].any() else 0

    def resampled(self, weights: Array, score: Score) -> Array:
        levels = LEVELS if self.method == "11point" else None
        return resampled_map(weights, map(self._ranking, score.per_class or ()), levels)

    def compute(self) -> Score:
        truth = self._state["truth"]
        per_class = {
            int(label): average_precision(*self.curve(int(label)), self.method)
            for label in np.flatnonzero(truth)
        }
        value = math.fsum(per_class.values()) / len(per_class) if per_class else math.nan
        return Score(value, int(truth.sum()), self._skipped, per_class)


def average_precision(recall: Array, precision: Array, method: Literal["area", "11point"]) -> float:
    """Average precision of a curve by descending score.

    >>> round(average_precision(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 0.6]), "area"), 3)
    0.8
    """
    if method == "11point":
        return math.fsum(float(precision[recall >= level].max(initial=0.0)) for level in LEVELS) / 11
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())
