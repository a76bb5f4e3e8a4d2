"""Relevance mass accuracy: the share of the (signed) attribution that lies on the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wsod.metrics.attribution import AttributionMetric, Pixels

__all__ = ["RelevanceMass"]


@dataclass(kw_only=True, eq=False)
class RelevanceMass(AttributionMetric):
    """Mean over cases of sum(a inside) / sum(a). Arras, Osman and Samek, CLEVR-XAI, 2022, section 3.3.

    With signed maps it may leave [0, 1]; a map whose sum is 0 scores 0.
    """

    name: ClassVar[str] = "relevance_mass"

    def score(self, pixels: Pixels) -> float | None:
        total = float(pixels.values.sum())
        return pixels.sum_inside() / total if total else 0.0
