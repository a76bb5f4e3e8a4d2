"""Metrics that change the image by its map and ask the classifier again: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError
from wsod.metrics.base import CaseMean, Scene
from wsod.metrics.probe import Baseline, Probe, View
from wsod.scoremaps import ScoreMap
from wsod.types import AttentionMaps, Sample

__all__ = ["FaithfulnessMetric"]

Array = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class FaithfulnessMetric(CaseMean):
    """Base of the metrics that need no annotations but the classifier.

    The score map is made at the classifier's input (resized and normalised as `processing` says, whatever
    its frame). Of each case the classifier is shown `views`; all views of a batch of images share forward
    passes, and answers are shared by the metrics that ask the same. A map that claims nothing (constant)
    gets the worst score.

    Args:
        baseline: what is shown where nothing of the image is: the `mean` colour, `black`, or a `blur`.
    """

    #: the score of a map that claims nothing
    worst: ClassVar[float]

    baseline: Baseline = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._probe: Probe | None = None

    def __getstate__(self) -> dict[str, Any]:
        # counts travel between processes, networks do not
        return {**self.__dict__, "_probe": None}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"classifier"})

    def attach(self, probe: Probe) -> None:
        """Say whom to ask. Needed before the first update."""
        self._probe = probe

    @abstractmethod
    def views(self, image_id: str, scores: Array) -> Iterator[View]:
        """What the classifier is shown of a case, given its (H, W) score map at the input."""

    @abstractmethod
    def score(self, whole: float, answers: Array) -> float:
        """A case's score.

        Args:
            whole: the class's probability on the image as it is.
            answers: its probabilities on the views.
        """

    @property
    @abstractmethod
    def _question(self) -> Hashable:
        """What `views` depends on beyond the score map."""

    def prepare(self, batch: Sequence[Scene]) -> None:
        asked: list[tuple[AttentionMaps, Hashable]] = []
        counts: Counter[int] = Counter()

        def questions() -> Iterator[View]:
            for maps, *_ in batch:
                for key, views in self._missing(maps):
                    asked.append((maps, key))
                    for view in views:
                        yield view
                        counts[len(asked) - 1] += 1

        answers, start = self._ask(questions()), 0
        for place, (maps, key) in enumerate(asked):
            maps.cache[key] = answers[start : start + counts[place]]
            start += counts[place]

    def _missing(self, maps: AttentionMaps) -> Iterator[tuple[Hashable, Iterator[View]]]:
        """The questions about one image that no metric has asked yet."""
        if "whole" not in maps.cache:
            yield "whole", iter([View(maps.image_id)])
        for k in range(len(maps.labels)):
            key, score = self._key(k), self._at_input(maps, k)
            if key not in maps.cache and not score.constant:
                yield key, self.views(maps.image_id, score.scores)

    def _ask(self, views: Iterator[View]) -> Array:
        if self._probe is None:
            raise ConfigError(self.name, "a classifier to ask", "none", "Pass --checkpoint ft.pt.")
        return self._probe(views)

    def _key(self, k: int) -> Hashable:
        return "answers", self._question, self.baseline, self.processing, k

    def _at_input(self, maps: AttentionMaps, k: int) -> ScoreMap:
        if "at input" not in maps.cache:
            if self._probe is None:
                raise ConfigError(self.name, "a classifier to ask", "none", "Pass --checkpoint ft.pt.")
            size, shown = self._probe.frame(maps.image_id)
            region = _seen_from(maps.region, shown, maps.size, size)
            maps.cache["at input"] = AttentionMaps(
                maps.image_id, size, maps.labels, maps.values, region=region
            )
        return replace(self.processing, frame=0).score(maps.cache["at input"], k)

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        if self._at_input(maps, k).constant:
            return self.worst
        if self._key(k) not in maps.cache:
            self.prepare([Scene(maps, sample)])
        label = maps.labels[k]
        return self.score(float(maps.cache["whole"][0, label]), maps.cache[self._key(k)][:, label])


Region = tuple[float, float, float, float]


def _seen_from(
    spanned: Region | None, shown: Region | None, image: tuple[int, int], size: tuple[int, int]
) -> Region | None:
    """The region a map spans, in pixels of the input of `size` that shows the region `shown`."""
    if spanned == shown:
        return None
    whole = (0.0, 0.0, float(image[1]), float(image[0]))
    x0, y0, x1, y1 = shown or whole
    sx, sy = size[1] / (x1 - x0), size[0] / (y1 - y0)
    left, top, right, bottom = spanned or whole
    return (left - x0) * sx, (top - y0) * sy, (right - x0) * sx, (bottom - y0) * sy
