"""Attribution localization: the share of the absolute attribution that lies on the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wsod.metrics.attribution import AttributionMetric, Pixels

__all__ = ["AttributionLocalization"]


@dataclass(kw_only=True, eq=False)
class AttributionLocalization(AttributionMetric):
    """Mean over cases of sum(|a| inside) / sum(|a|). Kohlbrenner et al., IJCNN 2020, section IV (mu)."""

    name: ClassVar[str] = "attribution_localization"
    values: Literal["signed", "absolute", "positive"] = "absolute"

    def score(self, pixels: Pixels) -> float | None:
        total = float(pixels.values.sum())
        return pixels.sum_inside() / total if total > 0 else 0.0
