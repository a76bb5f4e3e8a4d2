"""What every metric is: counts that add, a score made from them at the end."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError, DataError, MapError
from wsod.metrics.exact import exact, mean_of_exact
from wsod.metrics.seen import Seen
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["CaseMean", "Evidence", "Metric", "Scene", "accepted_thresholds"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Evidence = float | Array


class Scene(NamedTuple):
    """One image as it comes to a metric.

    Attributes:
        maps: its maps in the row that is counted.
        sample: its annotations.
        others: its maps in the other rows.
    """

    maps: AttentionMaps
    sample: Sample
    others: Sequence[AttentionMaps] = ()


@dataclasses.dataclass(kw_only=True, eq=False)
class Metric(ABC):
    """A score over a set of images, counted image by image.

    The fields of a concrete metric are its options. State is a dictionary of arrays that add without rounding
    (sums of floats are of `wsod.metrics.exact`), so that `merge(update(A), update(B))` equals
    `update(A ∪ B)` to the last bit, whatever the order.

    Args:
        classes: number of classes of the data set.
        processing: how maps become score maps (a protocol's `[maps]`).
    """

    name: ClassVar[str]
    #: how `value` follows from the case scores, for intervals; None = it is no mean of cases
    average: ClassVar[Literal["cases", "classes"] | None] = None
    #: what a case is: a label of an image, or the image (its evidence is then under its first label)
    cases: ClassVar[Literal["labels", "images"]] = "labels"

    classes: int
    processing: MapProcessing = dataclasses.field(default_factory=MapProcessing)

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ConfigError(self.name, "at least one class", self.classes)
        self._seen = Seen()
        self._state: dict[str, Array] = self._empty()
        self._state["skipped"] = np.zeros((), np.int64)

    @property
    def needs(self) -> frozenset[str]:
        """What it cannot do without: "boxes", "masks", "ranking", "classifier", "rows" (two or more)."""
        return frozenset({"boxes"})

    @property
    def divisor(self) -> int | None:
        """Number of classes a mean of classes is divided by; None = those that were seen."""
        return None

    @property
    def supervision(self) -> tuple[str, ...]:
        """What of the evaluated split's truth this metric's options used beyond scoring."""
        return ()

    def prepare(self, batch: Sequence[Scene]) -> None:  # noqa: B027
        """See the images of a batch together before they are counted one by one.

        What their cases can share is left in `AttentionMaps.cache`. Most metrics need none of it.
        """

    def update(self, maps: AttentionMaps, sample: Sample) -> dict[int, Evidence]:
        """Count one image.

        Returns:
            Each counted case's own evidence by label: a number, or an array over thresholds.

        Raises:
            MapError: an image counted before, maps of another image or size, a label that is no class.
        """
        self._refuse_second(sample)
        return self.count(self.measure(maps, sample), sample)

    def measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        """What one image has to say, for `count`: all of `update` that takes time or can fail.

        Changes nothing, so threads may measure images of one metric at once.
        """
        if maps.image_id != sample.image_id or tuple(maps.size) != tuple(sample.size):
            got = f"maps of {maps.image_id}, {maps.size[1]}x{maps.size[0]}"
            raise MapError(sample.image_id, f"maps of this {sample.size[1]}x{sample.size[0]} image", got)
        self._check(sample, maps.labels.tolist())
        if "ranking" in self.needs and maps.ranking is None:
            hint = "Compute maps with a classifier, or store the ranking with them."
            raise MapError(sample.image_id, f"a class ranking, which {self.name} needs", "none", hint)
        return self._measure(maps, sample)

    def count(self, measured: Any, sample: Sample) -> dict[int, Evidence]:
        """Add what `measure` found of an image. Returns as `update` does."""
        self._refuse_second(sample)
        evidence = self._count(measured, sample)
        self._seen.add(sample.image_id)
        return evidence

    def merge(self, other: Self) -> None:
        """Add the counts of the same metric over other images.

        Raises:
            ConfigError: another metric, or other options.
            MapError: an image that both have counted.
        """
        if type(self) is not type(other) or self.options() != other.options():
            raise ConfigError(self.name, "a metric with the same options", f"{other}")
        twice = self._seen.shared(other._seen)
        if twice:
            raise MapError(self.name, "each image once", f"{twice} counted on both sides")
        self._seen.update(other._seen)
        for key, counts in other._state.items():
            self._state[key] = self._state[key] + counts

    @property
    def units(self) -> int:
        """How many units, images or groups of them, `resampled` counts: what a bootstrap draws; 0 = none.

        A mean of cases (`average`) needs none: its interval is made from the cases.
        """
        return 0

    def resampled(self, weights: Floats, score: Score) -> Floats:
        """The score, had each unit been counted as often as a row of weights says; at its threshold.

        Args:
            weights: (R, units).
            score: what `compute` has given.

        Returns:
            (R, 1), or (R, 1 + C) with those of `score.per_class` after it; NaN where nothing is counted.
        """
        raise NotImplementedError

    def options(self) -> Mapping[str, Any]:
        """The options by name, `classes` and `processing` among them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @abstractmethod
    def compute(self) -> Score:
        """The score so far; NaN with count 0 before the first image."""

    def case_score(self, evidence: Evidence, score: Score) -> float:
        """A case's own score, from its evidence, once a threshold is chosen (in `score`)."""
        return float(evidence)

    @abstractmethod
    def _empty(self) -> dict[str, Array]:
        """Zero counts."""

    @abstractmethod
    def _measure(self, maps: AttentionMaps, sample: Sample) -> Any:
        """One image's counts. Everything that can fail is here."""

    @abstractmethod
    def _count(self, measured: Any, sample: Sample) -> dict[int, Evidence]:
        """Add one image's counts."""

    def _check(self, sample: Sample, labels: list[int]) -> None:
        known = [*labels, *sample.labels.tolist()]
        if known and not 0 <= min(known) <= max(known) < self.classes:
            raise DataError(sample.image_id, f"labels below {self.classes}", sorted(set(known)))

    def _refuse_second(self, sample: Sample) -> None:
        if sample.image_id in self._seen:
            raise MapError(sample.image_id, "each image once", f"a second {self.name} update")

    def _skip(self, cases: int = 1) -> None:
        self._state["skipped"] = self._state["skipped"] + cases

    @property
    def _skipped(self) -> int:
        return int(self._state["skipped"])


@dataclasses.dataclass(kw_only=True, eq=False)
class CaseMean(Metric):
    """A metric that is the mean of one number a case, over cases or over the means of classes."""

    average: ClassVar[Literal["cases", "classes"] | None] = "cases"

    @abstractmethod
    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        """The k-th map's own score; None where the metric's rule leaves the case out."""

    def _empty(self) -> dict[str, Array]:
        return {"sum": np.zeros(self.classes, np.object_), "count": np.zeros(self.classes, np.int64)}

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, float | None]:
        return {label: self.case(maps, k, sample) for k, label in enumerate(maps.labels.tolist())}

    def _count(self, measured: dict[int, float | None], sample: Sample) -> dict[int, Evidence]:
        counted: dict[int, Evidence] = {}
        for label, score in measured.items():
            if score is None:
                self._skip()
            else:
                self._state["sum"][label] += exact(score)
                self._state["count"][label] += 1
                counted[label] = score
        return counted

    def compute(self) -> Score:
        total, count = self._state["sum"], self._state["count"]
        seen = np.flatnonzero(count)
        per_class = {int(label): mean_of_exact(total[label], count[label]) for label in seen}
        if not per_class:
            value = math.nan
        elif self.average == "classes":
            value = math.fsum(per_class.values()) / len(per_class)
        else:
            value = mean_of_exact(total.sum(), count.sum())
        return Score(value, int(count.sum()), self._skipped, per_class)


def accepted_thresholds(where: str, thresholds: tuple[float, ...], step: float) -> NDArray[np.float64]:
    """The explicit thresholds, or 0, step, 2·step … below 1; ascending values in [0, 1).

    Raises:
        ConfigError: for any other.
    """
    if not thresholds and not 1e-4 <= step < 1:
        raise ConfigError(f"{where}: step", "a value from 0.0001 to below 1", step)
    values = np.asarray(thresholds or np.arange(0, 1, step), np.float64)
    if not ((values >= 0).all() and (values < 1).all() and (np.diff(values) > 0).all()):
        raise ConfigError(f"{where}: thresholds", "ascending values in [0, 1)", thresholds)
    return values
