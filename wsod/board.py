"""One row of a result while it is counted: its metrics, and the evidence of its cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wsod.metrics import Metric
from wsod.metrics.base import Scene
from wsod.metrics.detections import DetectionMetric
from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.metrics.probe import Probe
from wsod.metrics.swept import SweptMetric
from wsod.results import Case, Row, class_names, score_fields
from wsod.stats import bootstrap_interval, class_intervals, resampled_intervals
from wsod.strata import CaseFacts, given_predicted, size_strata
from wsod.thresholds import ChosenThreshold, ThresholdSource
from wsod.types import AttentionMaps, Sample, Score, ScoredBoxes

__all__ = ["Board"]

_SHAPES: dict[tuple[int, ...], tuple[int, ...]] = {}
"""The few shapes that evidence has, each once."""

RESAMPLES = 1000  # of scores that are no mean of cases: each takes a while


class Board:
    """One row's metrics and the evidence of its cases.

    Args:
        name: of the row: a map method or a folder.
        metrics: by name, ready to count.
        source: a run whose thresholds are taken; None = they are chosen here.
        probe: the classifier, for the metrics that ask it.
    """

    def __init__(
        self,
        name: str,
        metrics: Mapping[str, Metric],
        source: ThresholdSource | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.name, self.metrics = name, metrics
        self._source = source
        self._chosen: dict[str, ChosenThreshold] = {}
        self._evidence: dict[str, dict[tuple[str, int], Any]] = {name: {} for name in metrics}
        self._facts: dict[tuple[str, int], CaseFacts] = {}
        self._scores: dict[str, Score] = {}
        for metric in metrics.values():
            if isinstance(metric, FaithfulnessMetric) and probe is not None:
                metric.attach(probe)
        self._lacking: set[str] = set()
        self._counted: set[str] = set()

    @property
    def scores_boxes(self) -> bool:
        """Whether any metric scores boxes made elsewhere."""
        return any(isinstance(metric, DetectionMetric) for metric in self.metrics.values())

    def prepare(self, batch: Sequence[Scene]) -> None:
        """Let every metric see a batch of images before they are counted."""
        for metric in self.metrics.values():
            metric.prepare(batch)

    def measure(self, maps: AttentionMaps | ScoredBoxes, sample: Sample) -> dict[str, Any]:
        """What each metric finds in one image, for `count`. Changes nothing; threads may call it at once.

        A metric that lacks what it needs leaves the image out.
        """
        return {
            name: _measured(metric, maps, sample)
            for name, metric in self.metrics.items()
            if not _lacks(metric, maps, sample)
        }

    def count(self, found: Mapping[str, Any], maps: AttentionMaps | ScoredBoxes, sample: Sample) -> None:
        """Add what `measure` found of an image."""
        keys: dict[int, tuple[str, int]] = {}  # one a case, for all metrics
        for name, metric in self.metrics.items():
            if name not in found:
                self._lacking.add(name)
                continue
            if self._source and name not in self._chosen and isinstance(metric, SweptMetric) and metric.swept:
                self._chosen[name] = self._source.find(self.name, metric)
            self._counted.add(name)
            for label, value in metric.count(found[name], sample).items():
                case = keys.setdefault(label, (sample.image_id, label))
                self._evidence[name][case] = _packed(value)
                if case not in self._facts:
                    self._facts[case] = CaseFacts.of(maps, sample, label)

    def merge(self, other: Board) -> None:
        """Add the counts of the same row over other images."""
        for name, metric in self.metrics.items():
            metric.merge(other.metrics[name])
            self._evidence[name] |= other._evidence[name]
        self._facts |= other._facts
        self._chosen |= other._chosen
        self._lacking |= other._lacking
        self._counted |= other._counted

    def sort(self, images: Iterable[str]) -> None:
        """Put the cases in the order of the images, as one process counts them."""
        place = {image: n for n, image in enumerate(images)}
        for name, evidence in self._evidence.items():
            self._evidence[name] = dict(sorted(evidence.items(), key=lambda item: place[item[0][0]]))

    def threshold(self) -> float:
        """The threshold pictures are drawn at: that of the first swept metric."""
        for score in self._scores.values():
            if isinstance(score.best_threshold, float):
                return score.best_threshold
        return 0.5

    def finish(
        self, used: Sequence[str], classes: Sequence[str], *, data: str, split: str, seed: int
    ) -> tuple[Row, list[Case]]:
        """The row and its cases.

        Args:
            used: the supervision of the maps.
            classes: the data set's.
            data: its spec.
            split: its split.
            seed: of the intervals.
        """
        table: dict[str, dict[str, Any]] = {}
        own: dict[tuple[str, int], dict[str, float]] = {}
        supervision = list(used)
        for name, metric in self.metrics.items():
            if name in self._lacking - self._counted:
                continue
            chosen, extra = self._chosen.get(name), {}
            if chosen is not None and isinstance(metric, SweptMetric):
                score = metric.compute(chosen.threshold)
                supervision.append(chosen.supervision(data, split))
                extra["threshold_from"] = {"data": chosen.data, "split": chosen.split}
            else:
                score = metric.compute()
                supervision += metric.supervision
            self._scores[name] = score
            evidence = self._evidence[name]
            values = {case: metric.case_score(_unpacked(value), score) for case, value in evidence.items()}
            for case, value in values.items():
                own.setdefault(case, {})[name] = value
            beside = self._beside(metric, values, score, seed)
            table[name] = score_fields(score, classes, **beside) | extra
        names = class_names(classes)
        cases = [
            Case(self.name, image, names[label], scores, facts.area, facts.rank, facts.predicted)
            for (image, label), scores in own.items()
            for facts in [self._facts[image, label]]
        ]
        return Row(self.name, tuple(dict.fromkeys(supervision)), table), cases

    def _beside(
        self, metric: Metric, values: Mapping[tuple[str, int], float], score: Score, seed: int
    ) -> dict[str, Any]:
        """Intervals, and the strata of a mean of cases."""
        known = list(score.per_class or ())
        if metric.average is None:
            return _pooled(metric, score, seed)
        if not values:
            return {}
        images, labels = zip(*values, strict=True)
        interval = bootstrap_interval(
            list(values.values()),
            images,
            labels,
            average=metric.average,
            divisor=metric.divisor,
            seed=seed,
        )
        of_classes = class_intervals(list(values.values()), images, labels, seed=seed) if known else {}
        # an image with several classes, taken as one case, has no class to be large or predicted
        some = [c for c in values if metric.cases == "labels" or self._facts[c].classes == 1]
        arguments = (
            [values[c] for c in some],
            [c[0] for c in some],
            [c[1] for c in some],
            [self._facts[c] for c in some],
        )
        return {
            "interval": interval,
            "class_intervals": {label: of_classes.get(label) for label in known} if known else None,
            "strata": size_strata(*arguments, metric.average, seed),
            "given_predicted": given_predicted(*arguments, metric.average, seed),
        }


def _pooled(metric: Metric, score: Score, seed: int) -> dict[str, Any]:
    """Intervals of a score that is no mean of cases."""
    per_class = score.per_class or {}
    found = resampled_intervals(
        metric.units,
        lambda weights: metric.resampled(weights, score),
        about=[score.value, *per_class.values()],
        resamples=RESAMPLES,
        seed=seed,
    )
    if not found:
        return {}
    # what was shifted stays a fraction
    whole, *parts = [(max(low, 0.0), min(high, 1.0)) for low, high in found]
    # where all resamples agree, such as of a class in a single image, they say nothing
    sure = [part if part[1] - part[0] > 1e-9 else None for part in parts]
    return {"interval": whole, "class_intervals": dict(zip(per_class, sure, strict=True)) if sure else None}


def _packed(value: Any) -> Any:
    """Hits at a thousand thresholds as bits: of every case they are kept until the end."""
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        return np.packbits(value).tobytes(), _SHAPES.setdefault(value.shape, value.shape)
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple):
        bits, shape = value
        packed = np.frombuffer(bits, np.uint8)
        return np.unpackbits(packed, count=math.prod(shape)).reshape(shape).view(np.bool_)
    return value


def _measured(metric: Metric, maps: AttentionMaps | ScoredBoxes, sample: Sample) -> Any:
    if isinstance(maps, AttentionMaps):
        return metric.measure(maps, sample)
    assert isinstance(metric, DetectionMetric)  # others lack maps
    return metric.measure_boxes(maps, sample)


def _lacks(metric: Metric, maps: AttentionMaps | ScoredBoxes, sample: Sample) -> bool:
    """Whether the metric needs what these maps or this image do not have."""
    if isinstance(maps, ScoredBoxes) and not isinstance(metric, DetectionMetric):
        return True
    return (
        ("ranking" in metric.needs and maps.ranking is None)
        or ("masks" in metric.needs and sample.masks is None)
        or ("boxes" in metric.needs and len(sample.labels) > 0 and not len(sample.boxes))
    )
