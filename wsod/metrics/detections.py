"""Maps as detections: scored boxes by class, for the metrics that score detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.boxes.convert import Components, Rule, heatmap_to_boxes
from wsod.errors import MapError
from wsod.metrics.base import Evidence, Metric
from wsod.types import AttentionMaps, Sample, ScoredBoxes

__all__ = ["DetectionMetric", "Detections"]

Array = NDArray[np.float64]
Detections = Mapping[int, tuple[Array, Array]]


@dataclass(kw_only=True, eq=False)
class DetectionMetric(Metric):
    """Base of the metrics on scored boxes. Maps are turned into boxes by a fixed rule, tuned on nothing.

    A box's score is the largest value of the score map inside its component. Boxes made elsewhere are
    scored by `update_boxes` instead of `update`.

    Args:
        rule: see `wsod.heatmap_to_boxes`.
        threshold: of that rule; None = its default.
        components: `all` or the `largest`.
        min_area: smaller components are dropped (pixels of the frame).
    """

    rule: Rule = "max"
    threshold: float | None = None
    components: Components = "all"
    min_area: float = 1.0

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        return self._detections(maps, sample)

    def update_boxes(self, detections: Mapping[int, Any], sample: Sample) -> dict[int, Evidence]:
        """Count one image by boxes made elsewhere.

        Args:
            detections: by label `(boxes, scores)`: (n, 4) xyxy half-open in image pixels, (n,).
            sample: the image's annotations.
        """
        return self.count(
            self.measure_boxes(ScoredBoxes(sample.image_id, sample.size, detections), sample), sample
        )

    def measure_boxes(self, boxes: ScoredBoxes, sample: Sample) -> Any:
        """`measure` of boxes made elsewhere."""
        self._check(sample, list(boxes.found))
        return {label: self._accepted(sample, label, *found) for label, found in boxes.found.items()}

    def _detections(self, maps: AttentionMaps, sample: Sample) -> Detections:
        height, width = self.processing.size(maps)
        scale = np.array([sample.size[1] / width, sample.size[0] / height] * 2)
        found: dict[int, tuple[Array, Array]] = {}
        for k, label in enumerate(maps.labels.tolist()):
            key = ("boxes", self.processing, k, self.rule, self.threshold, self.components, self.min_area)
            if key not in maps.cache:
                score = self.processing.score(maps, k)
                boxes, scores = heatmap_to_boxes(
                    score.scores,
                    self.threshold,
                    rule=self.rule,
                    components=self.components,
                    min_area=self.min_area,
                )
                low, high = score.scores.min(), score.scores.max()
                maps.cache[key] = boxes * scale, low + (high - low) * scores
            found[label] = maps.cache[key]
        return found

    def _accepted(
        self, sample: Sample, label: int, boxes: ArrayLike, scores: ArrayLike
    ) -> tuple[Array, Array]:
        boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
        where = f"{sample.image_id}, label {label}"
        if boxes.size != 4 * scores.size or (boxes.size and boxes.shape[-1] != 4):
            raise MapError(where, "(n, 4) boxes and (n,) scores", f"{boxes.shape} and {scores.shape}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise MapError(where, "finite boxes and scores", "NaN or infinity")
        return boxes.reshape(-1, 4), scores.reshape(-1)
