"""Relevance rank accuracy: how many of the |class| largest values lie on the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from wsod.metrics.attribution import AttributionMetric, Pixels

__all__ = ["RelevanceRank"]


@dataclass(kw_only=True, eq=False)
class RelevanceRank(AttributionMetric):
    """Mean over cases of |top-K(a) inside| / K with K the class's pixels. Arras et al., 2022, section 3.3.

    Of equal values the first in raster order rank higher.
    """

    name: ClassVar[str] = "relevance_rank"

    def score(self, pixels: Pixels) -> float | None:
        return float(np.count_nonzero(pixels.inside[pixels.order[: pixels.size]]) / pixels.size)
