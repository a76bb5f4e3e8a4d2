"""Top-1 and Top-5 localization: the class is predicted and its box is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.errors import MapError
from wsod.metrics.box_hits import BoxHits
from wsod.types import AttentionMaps, Sample

__all__ = ["Top1Loc", "Top5Loc", "TopKLoc"]


@dataclass(kw_only=True, eq=False)
class TopKLoc(BoxHits):
    """Share of images with a true class that is among the k first of the ranking and whose box hits.

    The box is that of the true class's map. Of several true classes any will do. An image is one case,
    under its first true label. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge,
    IJCV 2015, section 4.2 (Top-5); Zhou et al., CVPR 2016 (Top-1).

    Args:
        iou: needed for a hit.
    """

    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    cases: ClassVar[Literal["labels", "images"]] = "images"
    k: ClassVar[int]
    iou: float = 0.5

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"boxes", "ranking"})

    @property
    def _ious(self) -> tuple[float, ...]:
        return (self.iou,)

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, NDArray[np.bool_] | None]:
        assert maps.ranking is not None  # `measure` has refused its absence
        true = [label for label in sample.classes if self._true_boxes(sample, label) is not None]
        if not true:
            return {-1: None}  # left out
        if len(maps.ranking) < min(self.k, self.classes):
            raise MapError(sample.image_id, f"a ranking of {self.k} classes", len(maps.ranking))
        places = {label: place for place, label in enumerate(maps.labels.tolist())}
        predicted = set(maps.ranking[: self.k].tolist())
        found = [
            self._hits(maps, places[label], sample)
            for label in true
            if label in places and label in predicted
        ]
        shape = (len(self._ious), len(self._thresholds))
        hits = np.any([h for h in found if h is not None], axis=0) if found else np.zeros(shape, np.bool_)
        return {true[0]: hits}


@dataclass(kw_only=True, eq=False)
class Top1Loc(TopKLoc):
    """`TopKLoc` with the first class of the ranking."""

    name: ClassVar[str] = "top1_loc"
    k: ClassVar[int] = 1


@dataclass(kw_only=True, eq=False)
class Top5Loc(TopKLoc):
    """`TopKLoc` with the five first classes of the ranking."""

    name: ClassVar[str] = "top5_loc"
    k: ClassVar[int] = 5
