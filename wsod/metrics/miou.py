"""Semantic mIoU of maps as segmentation seeds, over all background thresholds in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.errors import MapError
from wsod.metrics.base import Evidence
from wsod.metrics.histograms import count_winners
from wsod.metrics.resampling import GROUPS, group_of, known_mean, weighted
from wsod.metrics.swept import SweptMetric, Threshold
from wsod.metrics.truth import resize_nearest
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["MIoU"]

Counts = NDArray[np.int64]
Labels = NDArray[np.int64]


@dataclass(kw_only=True, eq=False)
class MIoU(SweptMetric):
    """Mean IoU of the classes and background, at the best background threshold.

    A pixel belongs to the class whose map is largest there (of equals the lowest label) if that is above
    the threshold, else to the background. One confusion matrix is summed over all images. Ahn et al.,
    IRN, CVPR 2019, and Wang et al., SEAM, CVPR 2020, evaluate their seeds so. `extra["background"]` is the
    background's IoU; `count` counts images; void pixels do not count.

    Args:
        step: thresholds 0, step, 2·step … below 1.
        thresholds: explicit thresholds instead; a single one is fixed, not tuned.
        mean: over the classes `present` in truth or prediction (IRN), or over `all`, an absent one
            counting 0 (SEAM).
        float32: compare with thresholds rounded to float32, as the padding of a float32 map does.
    """

    name: ClassVar[str] = "miou"
    mean: Literal["present", "all"] = "present"
    float32: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"masks"})

    def _empty(self) -> dict[str, NDArray[Any]]:
        # pixels by truth (0 = background), class of the largest map, thresholds it is above
        shape = (self.classes + 1, self.classes, len(self._thresholds) + 1)
        # intersection and union of background and classes at every threshold
        groups = (GROUPS, 2, self.classes + 1, len(self._thresholds))
        return {
            "pixels": np.zeros(shape, np.int64),
            "count": np.zeros((), np.int64),
            "groups": np.zeros(groups, np.int64),
        }

    def _measure(self, maps: AttentionMaps, sample: Sample) -> tuple[Labels, Counts, Counts] | None:
        if sample.masks is None:
            return None
        size, order = self.processing.size(maps), np.argsort(maps.labels)
        # a read-only or strided array would be compiled for once more
        truth = np.require(resize_nearest(sample.masks.semantic(), size), np.int64, ["C", "W"])
        thresholds = self._thresholds
        if self.float32:
            thresholds = thresholds.astype(np.float32).astype(np.float64)
        counts, largest = count_winners(
            self._values(maps, order, size), truth, self.classes, np.ascontiguousarray(thresholds)
        )
        if largest > self.classes:
            raise MapError(sample.image_id, f"masks of {self.classes} classes", largest)
        labels = maps.labels[order] if len(order) else np.zeros(1, np.int64)
        return labels, counts, _overlaps(labels, counts)

    def _count(self, measured: tuple[Labels, Counts, Counts] | None, sample: Sample) -> dict[int, Evidence]:
        if measured is None:
            self._skip()
            return {}
        labels, counts, overlaps = measured
        self._state["pixels"][:, labels] += counts
        self._state["groups"][group_of(sample.image_id)] += overlaps
        self._state["count"] = self._state["count"] + 1
        return {}

    def _values(
        self, maps: AttentionMaps, order: NDArray[np.intp], size: tuple[int, int]
    ) -> NDArray[np.floating[Any]]:
        """(K, H, W) score maps by ascending label; below every threshold where there is none."""
        if not len(order):
            return np.full((1, *size), -1.0, np.float32)
        if self.processing.keeps(maps):
            values = maps.values if (order[:-1] < order[1:]).all() else maps.values[order]
            return np.require(values, requirements=["C", "W"])
        return np.stack([self.processing.score(maps, k).scores for k in order.tolist()])

    def confusion(self, threshold: int) -> Counts:
        """(classes + 1, classes + 1) pixels [truth, prediction] at the i-th threshold, 0 = background."""
        above = self._state["pixels"][:, :, threshold + 1 :].sum(2)
        below = self._state["pixels"][:, :, : threshold + 1].sum((1, 2))
        return np.concatenate([below[:, None], above], 1)

    def _ious(self) -> NDArray[np.float64]:
        """(thresholds, classes + 1); NaN where a class is in neither truth nor prediction."""
        return self._divided(*_overlaps(np.arange(self.classes), self._state["pixels"])).T

    def _divided(self, hit: NDArray[Any], union: NDArray[Any]) -> NDArray[np.float64]:
        ious = np.full(hit.shape, math.nan if self.mean == "present" else 0.0)
        np.divide(hit, union, out=ious, where=union > 0)
        return ious

    @property
    def _groups(self) -> NDArray[np.intp]:
        """Those that hold pixels."""
        return np.flatnonzero(self._state["groups"][:, 1].any((1, 2)))

    @property
    def units(self) -> int:
        return len(self._groups)

    def resampled(self, weights: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
        counts = self._state["groups"][self._groups, :, :, self._place_of(score)[0]]
        ious = self._divided(*weighted(weights, counts).swapaxes(0, 1))
        labels = np.array(list(score.per_class or ()), np.intp)
        return np.concatenate([known_mean(ious)[:, None], ious[:, labels + 1]], 1)

    def compute(self, threshold: Threshold | None = None) -> Score:
        count = int(self._state["count"])
        if not self._state["pixels"].any():
            return Score(math.nan, count, self._skipped)
        ious = self._ious()
        curve = np.nanmean(ious, 1)
        best = int(self._places(curve[None], [self.name], threshold)[0])
        per_class = {c: float(x) for c, x in enumerate(ious[best, 1:]) if not math.isnan(x)}
        thresholds = self._thresholds.tolist()
        return Score(
            float(curve[best]),
            count,
            self._skipped,
            per_class,
            thresholds,
            curve.tolist(),
            thresholds[best],
            {"background": float(ious[best, 0])},
        )


def _overlaps(labels: Labels, pixels: Counts) -> Counts:
    """(2, classes + 1, thresholds) intersections and unions, background first.

    Args:
        labels: (K,) class of each map.
        pixels: (classes + 1, K, thresholds + 1) by truth, largest map, and thresholds it is above.
    """
    truth = pixels.sum((1, 2))
    # by map: pixels it claims, those of its own class, those of the background
    claims = np.stack([pixels.sum(0), pixels[labels + 1, np.arange(len(labels))], pixels[0]])
    predicted, right, wrong = claims[:, :, :0:-1].cumsum(2)[:, :, ::-1]
    hit, sizes = np.zeros((2, len(truth), predicted.shape[1]), np.int64)
    hit[0], hit[labels + 1] = truth[0] - wrong.sum(0), right
    sizes[:] = truth[:, None]
    sizes[0] += truth.sum() - predicted.sum(0)
    sizes[labels + 1] += predicted
    return np.stack([hit, sizes - hit])
