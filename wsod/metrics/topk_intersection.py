"""Top-k intersection: how many of the k largest values lie on the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wsod.errors import ConfigError
from wsod.metrics.attribution import AttributionMetric, Pixels

__all__ = ["TopKIntersection"]


@dataclass(kw_only=True, eq=False)
class TopKIntersection(AttributionMetric):
    """Mean over cases of |top-k(a) inside| / k. Theiner, Müller-Budack and Ewerth, WACV 2022, section 3.

    Of equal values the first in raster order rank higher. A map of fewer than k pixels is taken whole.

    Args:
        k: number of values.
        concept_influence: times the frame's pixels over the class's.
    """

    name: ClassVar[str] = "topk_intersection"
    k: int = 1000
    concept_influence: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"{self.name}: k", "at least 1", self.k)
        super().__post_init__()

    def score(self, pixels: Pixels) -> float | None:
        share = pixels.inside[pixels.order[: self.k]].mean()
        return float(share * pixels.inside.size / pixels.size if self.concept_influence else share)
