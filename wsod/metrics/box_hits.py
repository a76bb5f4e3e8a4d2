"""Does a map's box meet the truth? At every threshold and several IoUs, for the metrics that count it."""

from __future__ import annotations

import threading
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.iou import iou
from wsod.boxes.sweep import ThresholdSweep, threshold_sweep
from wsod.errors import ConfigError, MapError
from wsod.metrics.base import Evidence
from wsod.metrics.swept import SweptMetric, Threshold
from wsod.metrics.truth import FrameRule, boxes_in_frame
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["BoxHits", "sweep_of"]

Array = NDArray[Any]
Bool = NDArray[np.bool_]
_local = threading.local()


def sweep_of(
    maps: AttentionMaps, k: int, processing: MapProcessing, holes: bool, exact: bool = False
) -> ThresholdSweep:
    """The k-th map's threshold sweep, computed once however many metrics ask.

    And once for maps that are equal in a row, as those of a control are for all labels and images.
    """
    key = ("sweep", processing, k, holes, exact)
    if key not in maps.cache:
        scores = processing.score(maps, k).scores
        last: ThresholdSweep | None = getattr(_local, "last", None)
        try:
            if last is None or (last.holes, last.exact) != (holes, exact) or not last.is_of(scores):
                last = _local.last = threshold_sweep(scores, holes=holes, exact=exact)
            maps.cache[key] = last
        except MapError as error:
            where = f"{maps.image_id}, label {maps.labels[k]}"
            raise MapError(where, error.expected, error.got, error.hint) from error
    sweep: ThresholdSweep = maps.cache[key]
    return sweep


@dataclass(kw_only=True, eq=False)
class BoxHits(SweptMetric):
    """Base of the metrics that count the cases whose box has enough IoU with any true box of the label.

    A threshold of the map is global: one for all images. With several, the best is taken, on the split
    that is evaluated, and the supervision column says so; or a given one (`compute`).

    Args:
        components: boxes of `all` components of the mask, a hit if any of them hits; or only the
            `largest`, by contour area (`wsod.boxes.tree.largest_boxes`).
        holes: the contours of holes are boxes too (with `all`), as in the WSOL benchmark's code. It
            flatters noisy maps.
        exact: compare the scores themselves with the thresholds, not their bytes (`threshold_sweep`).
        step: thresholds 0, step, 2·step … below 1 (all distinct masks of an 8-bit map at 0.001).
        thresholds: explicit thresholds instead; a single one is fixed, not tuned.
        edge: added to widths and heights in the IoU: 1 = x1, y1 are taken for the last pixel.
        clip: the map's x1, y1 are at most width - 1, height - 1 (the WSOL benchmark).
        truth: how true boxes come into a frame that is not the image (`boxes_in_frame`).
        strict: IoU > needed, instead of >=.
        difficult: difficult objects are truth too.
        crowd: crowd objects are truth too.
        empty: a map without any claim is a `miss`, or the box [0, 0, 0, 0] (`origin`), and a constant
            map that is not zero is taken for a claim, as in the WSOL benchmark.
    """

    components: Literal["all", "largest"] = "largest"
    holes: bool = False
    exact: bool = False
    step: float = 0.001
    edge: Literal[0, 1] = 0
    clip: bool = False
    truth: FrameRule = "exact"
    strict: bool = False
    difficult: bool = True
    crowd: bool = False
    empty: Literal["miss", "origin"] = "miss"

    def __post_init__(self) -> None:
        if not all(0 < needed <= 1 for needed in self._ious) or not self._ious:
            raise ConfigError(f"{self.name}: iou", "values above 0, at most 1", self._ious)
        super().__post_init__()

    @property
    @abstractmethod
    def _ious(self) -> tuple[float, ...]:
        """The IoUs needed for a hit, each counted apart."""

    def _empty(self) -> dict[str, Array]:
        shape = (self.classes, len(self._ious), len(self._thresholds))
        return {"hits": np.zeros(shape, np.int64), "count": np.zeros(self.classes, np.int64)}

    def _true_boxes(self, sample: Sample, label: int) -> NDArray[np.float64] | None:
        """In the frame; None where the image has the label but no box to score it against."""
        if len(sample.labels) and not len(sample.boxes):
            return None
        boxes = sample.boxes_of(label, difficult=self.difficult, crowd=self.crowd)
        if not len(boxes) and label in sample.labels:
            return None
        frame = (self.processing.frame,) * 2 if self.processing.frame else sample.size
        return boxes_in_frame(boxes, sample.size, frame, self.truth)

    def _hits(self, maps: AttentionMaps, k: int, sample: Sample) -> Bool | None:
        """(IoUs, thresholds) bool: does the k-th map's box hit; None where there is no truth."""
        truth = self._true_boxes(sample, int(maps.labels[k]))
        if truth is None:
            return None
        misses = np.zeros((len(self._ious), len(self._thresholds)), np.bool_)
        if not len(truth) or (self.empty == "miss" and self.processing.score(maps, k).constant):
            return misses
        sweep = sweep_of(maps, k, self.processing, self.holes, self.exact)
        if not sweep.maximum:
            if self.empty == "miss":
                return misses
            by_level = iou([0, 0, 0, 0], truth, self.edge).max(1)
        elif self.components == "all":
            by_level = sweep.best_iou(truth, self.edge, self.clip)
        else:
            by_level = sweep.largest_iou(truth, self.edge, self.clip)
        overlaps = sweep.at(by_level, self._thresholds)[None, :]
        needed = np.array(self._ious)[:, None]
        hits: Bool = overlaps > needed if self.strict else overlaps >= needed
        return hits

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, Bool | None]:
        return {label: self._hits(maps, k, sample) for k, label in enumerate(maps.labels.tolist())}

    def _count(self, measured: dict[int, Bool | None], sample: Sample) -> dict[int, Evidence]:
        counted: dict[int, Evidence] = {}
        for label, hits in measured.items():
            if hits is None:
                self._skip()
            else:
                self._tally(label, hits)
                counted[label] = hits
        return counted

    def _tally(self, label: int, hits: Bool) -> None:
        self._state["hits"][label] += hits
        self._state["count"][label] += 1

    def compute(self, threshold: Threshold | None = None) -> Score:
        """Mean over IoUs of the share of cases that hit, each at its best (or the given) threshold."""
        hits, count = self._state["hits"], self._state["count"]
        n = int(count.sum())
        if not n:
            return Score(float("nan"), 0, self._skipped)
        curves = hits.sum(0) / n
        names = [f"{needed:g}" for needed in self._ious]
        places = self._places(curves, names, threshold)
        rows = np.arange(len(names))
        chosen = hits[:, rows, places]
        per_class = {int(c): float((chosen[c] / count[c]).mean()) for c in np.flatnonzero(count)}
        values, taken = curves[rows, places], self._thresholds[places].tolist()
        several = len(names) > 1
        return Score(
            float(values.mean()),
            n,
            self._skipped,
            per_class,
            self._thresholds.tolist(),
            dict(zip(names, curves.tolist(), strict=True)) if several else curves[0].tolist(),
            dict(zip(names, taken, strict=True)) if several else taken[0],
            dict(zip(names, values.tolist(), strict=True)) if several else {},
        )

    def case_score(self, evidence: Evidence, score: Score) -> float:
        """Share of the IoUs at which the case hits, each at its threshold."""
        hits = np.asarray(evidence).reshape(len(self._ious), -1)
        return float(hits[np.arange(len(hits)), self._place_of(score)].mean())
