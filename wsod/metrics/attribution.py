"""How an attribution's values lie relative to a class's pixels: what those metrics share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.base import CaseMean
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample

__all__ = ["AttributionMetric"]

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(kw_only=True, eq=False)
class AttributionMetric(CaseMean):
    """Base of the metrics of Quantus' localisation family (Hedström et al., JMLR 2023).

    Differs from Quantus: one map cannot spoil or rescale a batch; a case without pixels of the class is
    left out and counted instead of NaN; a class that the image does not have scores 0; a map that
    claims nothing (constant, or without a value above 0 after `values`) scores 0.

    Args:
        truth: the class's pixel `masks`, or the union of its `boxes`.
        values: of the score map: as they are (`signed`), `absolute`, or `positive` (others are 0).
        difficult: with boxes, difficult objects are truth too (else their pixels are left out).
        crowd: crowd objects (ignored pixels of masks) are truth too, else they are left out.
    """

    truth: TruthSource = "masks"
    values: Literal["signed", "absolute", "positive"] = "signed"
    difficult: bool = True
    crowd: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    @abstractmethod
    def score(self, values: Array, inside: Bool, order: NDArray[np.int64]) -> float | None:
        """The case's score.

        Args:
            values: (P,) of the pixels that count.
            inside: (P,) the class's pixels, at least one.
            order: (P,) pixels by descending value, in raster order where equal.
        """

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        options = {"difficult": self.difficult, "crowd": self.crowd}
        label = int(maps.labels[k])
        found = truth_mask(sample, label, self.processing.size(maps), self.truth, **options)
        if found is None:
            return None
        foreground, ignore = found
        if not foreground.any() or self.processing.score(maps, k).constant:
            return 0.0
        values, order = self._sorted(maps, k)
        if ignore.any():
            kept = ~ignore.ravel()
            order = order[kept[order]]
            place = np.cumsum(kept) - 1
            return self.score(values[kept], foreground.ravel()[kept], place[order])
        return self.score(values, foreground.ravel(), order)

    def _sorted(self, maps: AttentionMaps, k: int) -> tuple[Array, NDArray[np.int64]]:
        """The flat values and their order, sorted once for all of these metrics."""
        key = ("sorted", self.processing, k, self.values)
        if key not in maps.cache:
            values = self.processing.score(maps, k).scores.ravel()
            if self.values == "absolute":
                values = np.abs(values)
            elif self.values == "positive":
                values = np.maximum(values, 0.0)
            maps.cache[key] = values, np.argsort(-values, kind="stable")
        found: tuple[Array, NDArray[Any]] = maps.cache[key]
        return found
