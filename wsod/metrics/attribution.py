"""How an attribution's values lie relative to a class's pixels: what those metrics share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.base import CaseMean
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample

__all__ = ["AttributionMetric", "Pixels"]

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass
class Pixels:
    """The pixels of a case that count.

    Args:
        values: (P,) of the map.
        inside: (P,) the class's pixels.
    """

    values: Array
    inside: Bool

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(P,) pixels by descending value, in raster order where equal; sorted once for all metrics."""
        order = np.argsort(-self.values)
        ranked = self.values[order]
        if (ranked[1:] == ranked[:-1]).any():
            # several times slower, and without equal values no different
            order = np.argsort(-self.values, kind="stable")
        return order

    @cached_property
    def size(self) -> int:
        """Pixels of the class."""
        return int(np.count_nonzero(self.inside))

    def sum_inside(self) -> float:
        """Sum of the values on the class."""
        return float((self.values * self.inside).sum())


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
    def score(self, pixels: Pixels) -> float | None:
        """The case's score."""

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        pixels = self._pixels(maps, k, sample)
        if pixels is None:
            return None
        if not pixels.inside.any() or self.processing.score(maps, k).constant:
            return 0.0
        return self.score(pixels)

    def _pixels(self, maps: AttentionMaps, k: int, sample: Sample) -> Pixels | None:
        """Those that count, shared by these metrics; None where there is nothing to score against."""
        truth = (self.truth, self.difficult, self.crowd)
        key = ("pixels", self.processing, k, self.values, truth)
        if key not in maps.cache:
            found = self._truth(maps, k, sample)
            if found is None:
                return None
            foreground, ignore = found
            values = self._values(maps, k)
            if ignore.any():
                kept = ~ignore.ravel()
                pixels = Pixels(values[kept], foreground.ravel()[kept])
            else:
                pixels = Pixels(values, foreground.ravel())
            maps.cache[key] = pixels
        cached: Pixels = maps.cache[key]
        return cached

    def _truth(self, maps: AttentionMaps, k: int, sample: Sample) -> tuple[Bool, Bool] | None:
        label, frame = int(maps.labels[k]), self.processing.size(maps)
        key = ("truth", label, frame, self.truth, self.difficult, self.crowd)
        if key not in maps.cache:
            options = {"difficult": self.difficult, "crowd": self.crowd}
            maps.cache[key] = truth_mask(sample, label, frame, self.truth, **options)
        found: tuple[Bool, Bool] | None = maps.cache[key]
        return found

    def _values(self, maps: AttentionMaps, k: int) -> Array:
        values = self.processing.score(maps, k).scores.ravel()
        if self.values == "absolute":
            return np.abs(values)
        return np.maximum(values, 0.0) if self.values == "positive" else values
