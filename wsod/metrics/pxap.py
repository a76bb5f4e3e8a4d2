"""PxAP: average precision of the map's pixels against a class's pixels, pooled over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.base import Evidence, Metric, accepted_thresholds
from wsod.metrics.histograms import count_above
from wsod.metrics.resampling import GROUPS, group_of, weighted
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["PxAP"]

Counts = NDArray[np.int64]
PART = 200  # resamples at once, of a thousand thresholds each


@dataclass(kw_only=True, eq=False)
class PxAP(Metric):
    """Area under the precision-recall curve of pixels with score >= t, all images pooled.

    PxAP = sum over l of Precision(t_l) · (Recall(t_l) - Recall(t_(l-1))), thresholds descending. Choe et
    al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020, section 4.1.
    `per_class` is the same within a class, `extra["class_mean"]` its mean.

    Args:
        step: thresholds 0, step, 2·step … below 1, and 1.
        thresholds: explicit thresholds instead (1 is added).
        truth: the class's `masks`, or the union of its `boxes`.
        difficult: with boxes, difficult objects are truth too (else their pixels are ignored).
        crowd: crowd objects (ignored pixels of masks) are truth too.
    """

    name: ClassVar[str] = "pxap"
    step: float = 0.001
    thresholds: tuple[float, ...] = ()
    truth: TruthSource = "masks"
    difficult: bool = True
    crowd: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    @cached_property
    def _thresholds(self) -> NDArray[np.float64]:
        return np.append(accepted_thresholds(self.name, self.thresholds, self.step), 1.0)

    def _empty(self) -> dict[str, Counts]:
        # pixels outside and inside the class, by the last threshold they reach; the first reach none
        shape = (self.classes, 2, len(self._thresholds) + 1)
        return {
            "pixels": np.zeros(shape, np.int64),
            "count": np.zeros(self.classes, np.int64),
            "groups": np.zeros((GROUPS, *shape[1:]), np.int64),
        }

    def _histogram(self, maps: AttentionMaps, k: int, sample: Sample) -> Counts | None:
        options = {"difficult": self.difficult, "crowd": self.crowd, "allow_empty": True}
        found = truth_mask(sample, int(maps.labels[k]), self.processing.size(maps), self.truth, **options)
        if found is None:
            return None
        foreground, ignore = found
        groups = np.where(ignore, -1, foreground.astype(np.int64)).ravel()
        scores = self.processing.score(maps, k).scores.ravel()
        # `count_above` is strict: >= t is > the number just below t
        counts: Counts = count_above(scores, groups, np.nextafter(self._thresholds, -np.inf), 2)
        return counts

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, Counts | None]:
        return {label: self._histogram(maps, k, sample) for k, label in enumerate(maps.labels.tolist())}

    def _count(self, measured: dict[int, Counts | None], sample: Sample) -> dict[int, Evidence]:
        for label, counts in measured.items():
            if counts is None:
                self._skip()
            else:
                self._state["pixels"][label] += counts
                self._state["groups"][group_of(sample.image_id)] += counts
                self._state["count"][label] += 1
        return {}

    @property
    def _groups(self) -> Counts:
        """(groups that hold pixels, 2, thresholds)."""
        groups = self._state["groups"]
        return groups[groups.any((1, 2))]

    @property
    def units(self) -> int:
        return len(self._groups)

    def resampled(self, weights: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
        """All classes together: by class, too much would have to be kept."""
        groups, parts = self._groups, np.array_split(weights, -(-len(weights) // PART))
        return np.concatenate([_average_precision(weighted(part, groups))[0] for part in parts])[:, None]

    def compute(self) -> Score:
        pixels, count = self._state["pixels"], self._state["count"]
        value, precision, recall = _average_precision(pixels.sum(0))
        per_class: dict[int, float] = {}
        for label in np.flatnonzero(count):
            own = float(_average_precision(pixels[label])[0])
            if not math.isnan(own):
                per_class[int(label)] = own
        mean = math.fsum(per_class.values()) / len(per_class) if per_class else math.nan
        curve = {"precision": precision[::-1].tolist(), "recall": recall[::-1].tolist()}
        return Score(
            float(value),
            int(count.sum()),
            self._skipped,
            per_class,
            self._thresholds.tolist(),
            curve,
            extra={"class_mean": mean},
        )


def _average_precision(counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Step integral, and precision (NaN where no pixel is) and recall, highest threshold first.

    Args:
        counts: (…, 2, 1 + T) pixels outside and inside, below all thresholds and from each on; the integral
            has the first shape. NaN without any inside.
    """
    above = counts[..., :0:-1].cumsum(-1)
    false, true = above[..., 0, :], above[..., 1, :]
    positives, found = counts[..., 1, :].sum(-1)[..., None], true + false
    precision = np.divide(true, found, out=np.full(true.shape, math.nan), where=found > 0)
    recall = np.divide(true, positives, out=np.full(true.shape, math.nan), where=positives > 0)
    gain = np.diff(recall, prepend=0.0)
    return (np.where(found > 0, precision, 0.0) * gain).sum(-1), precision, recall
