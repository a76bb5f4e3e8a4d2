"""Jaccard index and precision of the mask that a map's own histogram chooses, as in object discovery."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.convert import Rule, heatmap_to_mask
from wsod.metrics.base import CaseMean, Evidence
from wsod.metrics.exact import exact, mean_of_exact
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["Jaccard"]


@dataclass(kw_only=True, eq=False)
class Jaccard(CaseMean):
    """Mean over cases of the IoU of the map's mask by Otsu's threshold and the class's pixels.

    Rubinstein, Joulin, Kopf and Liu, CVPR 2013, who report it with precision, `extra["precision"]`: the share
    of pixels, inside and outside, that the mask has right. A case whose truth is empty (their noise images)
    counts for precision only. Nothing is tuned on the evaluated split; `mask_iou` with `step = 0.01` beside
    it is the best single threshold, an oracle.

    Args:
        rule: how the threshold is found (`heatmap_to_mask`).
        threshold: of that rule; None = its default.
        truth: the class's `masks`, or the union of its `boxes`.
    """

    name: ClassVar[str] = "jaccard"
    rule: Rule = "otsu"
    threshold: float | None = None
    truth: TruthSource = "masks"

    def __post_init__(self) -> None:
        heatmap_to_mask([[0.0, 1.0]], self.threshold, rule=self.rule)  # refuses a wrong threshold now
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    def _empty(self) -> dict[str, NDArray[Any]]:
        return {**super()._empty(), "right": np.zeros((), np.object_), "scored": np.zeros((), np.int64)}

    def _overlap(self, maps: AttentionMaps, k: int, sample: Sample) -> tuple[float | None, float] | None:
        """IoU (None of an empty truth) and precision; None where there is no truth."""
        frame = self.processing.size(maps)
        found = truth_mask(sample, int(maps.labels[k]), frame, self.truth, allow_empty=True)
        if found is None or found[1].all():
            return None
        foreground, ignore = found
        score = self.processing.score(maps, k)
        claim = np.zeros(frame, np.bool_)
        if not score.constant:
            claim = heatmap_to_mask(score.scores, self.threshold, rule=self.rule)
        claim, truth = claim[~ignore], foreground[~ignore]
        iou = float((claim & truth).sum() / (claim | truth).sum()) if truth.any() else None
        return iou, float((claim == truth).mean())

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        found = self._overlap(maps, k, sample)
        return None if found is None else found[0]

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        return {label: self._overlap(maps, k, sample) for k, label in enumerate(maps.labels.tolist())}

    def _count(self, measured: Any, sample: Sample) -> dict[int, Evidence]:
        for overlap in measured.values():
            if overlap is not None:
                self._state["right"] = self._state["right"] + exact(overlap[1])
                self._state["scored"] = self._state["scored"] + 1
        return super()._count({label: o if o is None else o[0] for label, o in measured.items()}, sample)

    def compute(self) -> Score:
        scored = int(self._state["scored"])
        precision = mean_of_exact(self._state["right"], scored) if scored else math.nan
        return dataclasses.replace(super().compute(), extra={"precision": precision})
