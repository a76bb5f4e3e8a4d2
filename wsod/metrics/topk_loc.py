"""Top-1 and Top-5 localization: the class is predicted and its box is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.errors import MapError
from wsod.metrics.base import Evidence
from wsod.metrics.box_hits import BoxHits, sweep_of
from wsod.metrics.localization_errors import KINDS, error_kind
from wsod.metrics.swept import Threshold
from wsod.types import AttentionMaps, Sample, Score

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

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        assert maps.ranking is not None  # `measure` has refused its absence
        true = [label for label in sample.classes if self._true_boxes(sample, label) is not None]
        if not true:
            return {-1: None}  # left out
        if len(maps.ranking) < min(self.k, self.classes):
            raise MapError(sample.image_id, f"a ranking of {self.k} classes", len(maps.ranking))
        places = {label: place for place, label in enumerate(maps.labels.tolist())}
        predicted = set(maps.ranking[: self.k].tolist())
        asked = [label for label in true if label in predicted]
        if any(label not in places for label in asked):
            wanted, hint = f"a map of class {asked[0]}, for {self.name}", "Use --labels truth."
            raise MapError(sample.image_id, wanted, f"of {list(places)}", hint)
        found = [self._hits(maps, places[label], sample) for label in asked]
        shape = (len(self._ious), len(self._thresholds))
        hits = np.any([h for h in found if h is not None], axis=0) if found else np.zeros(shape, np.bool_)
        return {true[0]: hits}


@dataclass(kw_only=True, eq=False)
class Top1Loc(TopKLoc):
    """`TopKLoc` with the first class of the ranking.

    With one fixed threshold and the largest component, `extra` says what became of the images, in shares:
    `right`, `wrong_class`, and of those with the right class the kinds of `error_kind`.
    """

    name: ClassVar[str] = "top1_loc"
    k: ClassVar[int] = 1

    @property
    def _splits(self) -> bool:
        return not self.swept and self.components == "largest"

    def _empty(self) -> dict[str, NDArray[Any]]:
        return {**super()._empty(), "kinds": np.zeros(len(KINDS), np.int64)}

    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        hits = super()._measure(maps, sample)
        (found,) = hits.values()
        if found is None or not self._splits:
            return hits, None
        return hits, "right" if found.any() else self._kind(maps, sample)

    def _kind(self, maps: AttentionMaps, sample: Sample) -> str:
        assert maps.ranking is not None  # `measure` has refused its absence
        label = int(maps.ranking[0])
        truth = self._true_boxes(sample, label)
        if truth is None or not len(truth):
            return "wrong_class"
        (places,) = np.nonzero(maps.labels == label)
        if not len(places) or self.processing.score(maps, int(places[0])).constant:
            return "elsewhere"
        sweep = sweep_of(maps, int(places[0]), self.processing, self.holes, self.exact)
        boxes = sweep.largest_at(float(self._thresholds[0]))
        if self.clip:
            height, width = self.processing.size(maps)
            boxes[:, 2:] = np.minimum(boxes[:, 2:], [width - 1, height - 1])
        return error_kind(boxes[0], truth, self.edge) if len(boxes) else "elsewhere"

    def _count(self, measured: Any, sample: Sample) -> dict[int, Evidence]:
        hits, kind = measured
        if kind is not None:
            self._state["kinds"][KINDS.index(kind)] += 1
        return super()._count(hits, sample)

    def compute(self, threshold: Threshold | None = None) -> Score:
        score, kinds = super().compute(threshold), self._state["kinds"]
        if not kinds.any():
            return score
        shares = {name: float(share) for name, share in zip(KINDS, kinds / kinds.sum(), strict=True)}
        return replace(score, extra={**score.extra, **shares})


@dataclass(kw_only=True, eq=False)
class Top5Loc(TopKLoc):
    """`TopKLoc` with the five first classes of the ranking."""

    name: ClassVar[str] = "top5_loc"
    k: ClassVar[int] = 5
