"""Average drop and increase in confidence: is the part the map shows enough for the classifier?"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.metrics.probe import View

__all__ = ["AverageDrop", "IncreaseInConfidence"]

Array = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class _MaskedImage(FaithfulnessMetric):
    """Shows the image times its score map: baseline + map · (image - baseline)."""

    @property
    def _question(self) -> Hashable:
        return "masked"

    def views(self, image_id: str, scores: Array) -> Iterator[View]:
        yield View(image_id, scores.astype(np.float32), self.baseline)


@dataclass(kw_only=True, eq=False)
class AverageDrop(_MaskedImage):
    """Mean over cases of max(0, Y - O) / Y, probabilities of the image and of the image times its map.

    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1. Lower is better. Y = 0 cannot drop: 0. The
    product is taken in the classifier's normalised space, where 0 is the mean colour (`baseline =
    "mean"`), or in pixels, where 0 is black (`"black"`); papers rarely say which.
    """

    name: ClassVar[str] = "average_drop"
    worst: ClassVar[float] = 1.0

    def score(self, whole: float, answers: Array) -> float:
        return max(0.0, whole - float(answers[0])) / whole if whole > 0 else 0.0


@dataclass(kw_only=True, eq=False)
class IncreaseInConfidence(_MaskedImage):
    """Share of cases with Y < O, probabilities of the image and of the image times its map.

    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1. Higher is better. The product is
    `AverageDrop`'s, and its forward passes are shared.
    """

    name: ClassVar[str] = "increase_in_confidence"
    worst: ClassVar[float] = 0.0

    def score(self, whole: float, answers: Array) -> float:
        return float(whole < answers[0])
