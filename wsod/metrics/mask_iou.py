"""Mask IoU: the thresholded map against a class's pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.base import Evidence
from wsod.metrics.exact import exact, mean_of_exact
from wsod.metrics.histograms import count_above
from wsod.metrics.swept import SweptMetric, Threshold
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["MaskIoU"]

Overlap = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(kw_only=True, eq=False)
class MaskIoU(SweptMetric):
    """Intersection over union of {score > t} and the class's pixels, at the best global threshold.

    `value` and `extra["per_case"]`: mean over cases, at the threshold where it is largest. At that same
    threshold `extra["class_mean"]`: mean over classes of the mean over their cases (`per_class`);
    `extra["pooled"]`: pixels of all cases summed before the division. Ignored pixels count nowhere.

    Args:
        step: thresholds 0, step, 2·step … below 1.
        thresholds: explicit thresholds instead; a single one is fixed, not tuned.
        truth: the class's `masks`, or the union of its `boxes`.
        difficult: with boxes, difficult objects are truth too (else their pixels are ignored).
        crowd: crowd objects (ignored pixels of masks) are truth too.
    """

    name: ClassVar[str] = "mask_iou"
    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    truth: TruthSource = "masks"
    difficult: bool = True
    crowd: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    def _empty(self) -> dict[str, NDArray[Any]]:
        shape = (self.classes, len(self._thresholds))
        return {
            "iou": np.zeros(shape, np.object_),
            "count": np.zeros(self.classes, np.int64),
            "intersection": np.zeros(shape[1], np.int64),
            "union": np.zeros(shape[1], np.int64),
        }

    def _overlap(self, maps: AttentionMaps, k: int, sample: Sample) -> Overlap | None:
        """(T,) intersections and unions in pixels; None where there is no truth."""
        options = {"difficult": self.difficult, "crowd": self.crowd}
        found = truth_mask(sample, int(maps.labels[k]), self.processing.size(maps), self.truth, **options)
        if found is None:
            return None
        foreground, ignore = found
        score = self.processing.score(maps, k)
        if score.constant:
            nothing = np.zeros(len(self._thresholds), np.int64)
            return nothing, nothing + int(foreground.sum())
        groups = np.where(ignore, -1, foreground.astype(np.int64)).ravel()
        counts = count_above(score.scores.ravel(), groups, self._thresholds, 2)
        above = counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
        return above[1], above[0] + counts[1].sum()

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, Overlap | None]:
        return {label: self._overlap(maps, k, sample) for k, label in enumerate(maps.labels.tolist())}

    def _count(self, measured: dict[int, Overlap | None], sample: Sample) -> dict[int, Evidence]:
        counted: dict[int, Evidence] = {}
        for label, overlap in measured.items():
            if overlap is None:
                self._skip()
                continue
            intersection, union = overlap
            iou = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
            self._state["iou"][label] += exact(iou)
            self._state["count"][label] += 1
            self._state["intersection"] += intersection
            self._state["union"] += union
            counted[label] = iou.astype(np.float32)
        return counted

    def compute(self, threshold: Threshold | None = None) -> Score:
        iou, count = self._state["iou"], self._state["count"]
        n = int(count.sum())
        if not n:
            return Score(math.nan, 0, self._skipped)
        curve = mean_of_exact(iou.sum(0), n)
        best = int(self._places(curve[None], [self.name], threshold)[0])
        per_class = {int(c): mean_of_exact(iou[c, best], count[c]) for c in np.flatnonzero(count)}
        union = self._state["union"][best]
        extra = {
            "per_case": float(curve[best]),
            "class_mean": math.fsum(per_class.values()) / len(per_class),
            "pooled": float(self._state["intersection"][best] / union) if union else 0.0,
        }
        thresholds = self._thresholds.tolist()
        return Score(
            extra["per_case"],
            n,
            self._skipped,
            per_class,
            thresholds,
            curve.tolist(),
            thresholds[best],
            extra,
        )

    def case_score(self, evidence: Evidence, score: Score) -> float:
        """The case's IoU at the chosen threshold."""
        return float(np.asarray(evidence)[self._place_of(score)[0]])
