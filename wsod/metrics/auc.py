"""ROC AUC of the map's pixels against the class's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from wsod.metrics.attribution import AttributionMetric, Pixels
from wsod.types import AttentionMaps, Sample

__all__ = ["AUC"]


@dataclass(kw_only=True, eq=False)
class AUC(AttributionMetric):
    """Mean over cases of the area under the ROC curve: P(a inside > a outside) + ½ P(equal).

    Fawcett, Pattern Recognition Letters 2006. A constant map is a coin: 0.5. A case whose class is absent
    or fills the frame is left out.
    """

    name: ClassVar[str] = "auc"

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        if int(maps.labels[k]) not in sample.labels:
            return None
        score = super().case(maps, k, sample)
        constant = score is not None and self.processing.score(maps, k).constant
        return 0.5 if constant else score

    def score(self, pixels: Pixels) -> float | None:
        if pixels.size == len(pixels.inside):
            return None
        ranked = pixels.values[pixels.order]
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equals
        true = pixels.inside[pixels.order].cumsum()[last]
        false = last + 1 - true
        true, false = np.append(0, true), np.append(0, false)
        twice = (np.diff(false) * (true[1:] + true[:-1])).sum()
        return float(twice / (2 * int(true[-1]) * int(false[-1])))
