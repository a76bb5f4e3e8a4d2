"""Insertion and deletion: how fast the class comes and goes with the map's highest pixels."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError
from wsod.metrics.base import Evidence
from wsod.metrics.exact import exact, mean_of_exact
from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.metrics.probe import Baseline, View
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["Deletion", "Insertion"]

Array = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class _PixelCurve(FaithfulnessMetric):
    """Area under the class's probability against the share of pixels changed, highest score first.

    Pixels of equal score are taken in raster order. The area is the trapezoid rule's.

    Args:
        steps: number of equal steps from none to all H·W pixels of the classifier's input; after step i,
            round(i · H·W / steps) pixels are changed. RISE's code takes 224 at 224x224.
    """

    #: whether the highest pixels are shown, or hidden
    shows: ClassVar[bool]

    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"{self.name}: steps", "at least 1", self.steps)
        super().__post_init__()

    @property
    def _question(self) -> Hashable:
        return self.shows, self.steps

    def views(self, image_id: str, scores: Array) -> Iterator[View]:
        place = np.empty(scores.size, np.int64)
        place[np.argsort(-scores.ravel(), kind="stable")] = np.arange(scores.size)
        for changed in np.rint(np.linspace(0, scores.size, self.steps + 1)).astype(np.int64):
            yield View(image_id, (place < changed).reshape(scores.shape) == self.shows, self.baseline)

    def _empty(self) -> dict[str, Array]:
        return {
            **super()._empty(),
            "curve": np.zeros(self.steps + 1, np.object_),
            "curves": np.zeros((), np.int64),
        }

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        scores = super()._measure(maps, sample)
        claims = [k for k in range(len(maps.labels)) if not self._at_input(maps, k).constant]
        curves = [maps.cache[self._key(k)][:, maps.labels[k]] for k in claims]
        return scores, curves

    def _count(self, measured: Any, sample: Sample) -> dict[int, Evidence]:
        scores, curves = measured
        for curve in curves:
            self._state["curve"] += exact(curve)
            self._state["curves"] += 1
        return super()._count(scores, sample)

    def compute(self) -> Score:
        """The mean area, with the mean curve of the maps that claim something over the share changed."""
        score, count = super().compute(), int(self._state["curves"])
        if not count:
            return score
        shares = np.linspace(0, 1, self.steps + 1).tolist()
        return replace(score, thresholds=shares, curve=mean_of_exact(self._state["curve"], count).tolist())

    def score(self, whole: float, answers: Array) -> float:
        return float((answers[1:] + answers[:-1]).sum() / (2 * self.steps))


@dataclass(kw_only=True, eq=False)
class Insertion(_PixelCurve):
    """Area under the probability while pixels return to a blurred image, highest score first.

    Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4. Higher is better. Differs from RISE's code, whose
    blur has 11 taps and darkens the border: ours is a whole Gaussian that repeats the edge.
    """

    name: ClassVar[str] = "insertion"
    worst: ClassVar[float] = 0.0
    shows: ClassVar[bool] = True
    baseline: Baseline = "blur"


@dataclass(kw_only=True, eq=False)
class Deletion(_PixelCurve):
    """Area under the probability while pixels are replaced by the mean colour, highest score first.

    Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4. Lower is better.
    """

    name: ClassVar[str] = "deletion"
    worst: ClassVar[float] = 1.0
    shows: ClassVar[bool] = False
