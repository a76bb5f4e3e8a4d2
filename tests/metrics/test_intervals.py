"""Intervals of scores that are no mean of cases: against counting resampled images, and their coverage."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.metrics.test_contract import CLASSES, SIZE, claim, image
from wsod import evaluate
from wsod.metrics import METRICS, Metric, MIoU, VocAP
from wsod.metrics.resampling import group_of
from wsod.metrics.swept import SweptMetric
from wsod.stats import draws, resampled_intervals
from wsod.types import AttentionMaps, Sample, Score

POOLED = sorted(name for name, metric in METRICS.items() if metric.average is None)
# images in groups of their own, in the order of these
APART = sorted(
    {group_of(image(seed).image_id): seed for seed in range(14)}.values(),
    key=lambda seed: group_of(image(seed).image_id),
)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "miou": [{}, {"mean": "all", "thresholds": (0.3,)}],
    "voc_ap": [{"iou": 0.3}, {"method": "11point", "iou": 0.3, "ties": "last"}],
}
EACH = [(name, options) for name in POOLED for options in OPTIONS.get(name, [{}])]


def counted(name: str, options: dict[str, Any], seeds: list[int], times: list[int] | None = None) -> Metric:
    """The metric over images, each as often as it says under names of its own."""
    metric = METRICS[name](classes=CLASSES, **options)
    for seed, copies in zip(seeds, times or [1] * len(seeds), strict=True):
        for copy in range(copies):
            sample = image(seed)
            maps = claim(sample, "noisy")
            values = maps.values + 0.01 * np.random.default_rng(seed).random(SIZE, np.float32)
            if seed % 3 == 0:
                values = 1 - values
            name_of = f"{sample.image_id}{f'-{copy}' * bool(times)}"
            maps = AttentionMaps(name_of, SIZE, maps.labels, values)
            metric.update(maps, replace(sample, image_id=name_of))
    return metric


def computed(metric: Metric, score: Score | None = None) -> Score:
    chosen = score.best_threshold if score else None
    return metric.compute(chosen) if isinstance(metric, SweptMetric) else metric.compute()


def units(name: str) -> list[int]:
    """The images in the order of the metric's units."""
    return APART if name in ("miou", "pxap") else sorted(APART, key=lambda seed: image(seed).image_id)


def test_every_metric_has_an_interval() -> None:
    assert POOLED == ["box_ap", "miou", "pxap", "voc_ap"]
    result = evaluate(["center", "random"], limit=12, metrics=POOLED)
    for row in result.rows:
        for name, score in row.scores.items():
            low, high = score["interval"]
            assert low <= score["value"] <= high, name
            assert (score["class_intervals"] is None) == (name == "pxap")
            known = {label: pair for label, pair in (score["class_intervals"] or {}).items() if pair}
            assert known or name != "miou"
            for label, (low, high) in known.items():
                assert 0 <= low < score["per_class"][label] < high <= 1


@pytest.mark.parametrize(("name", "options"), EACH)
def test_resampling_is_counting_the_resampled_images(name: str, options: dict[str, Any]) -> None:
    seeds = units(name)
    metric = counted(name, options, seeds)
    score = computed(metric)
    assert metric.units == len(seeds)
    weights = next(draws(len(seeds), resamples=12, seed=1))
    for row, times in zip(metric.resampled(weights, score), weights.astype(int).tolist(), strict=True):
        twin = computed(counted(name, options, seeds, times), score)
        assert row[0] == pytest.approx(twin.value, abs=1e-12)
        if len(row) > 1 and options.get("mean") != "all":
            own = dict(zip(score.per_class or {}, row[1:].tolist(), strict=True))
            assert {k: v for k, v in own.items() if not np.isnan(v)} == pytest.approx(
                twin.per_class, abs=1e-12
            )
    once = metric.resampled(np.ones((1, len(seeds))), score)[0]
    assert once.tolist() == pytest.approx([score.value, *(score.per_class or {}).values()][: len(once)])


@pytest.mark.parametrize(("name", "options"), EACH)
def test_order_and_parts_make_no_difference(name: str, options: dict[str, Any]) -> None:
    whole = counted(name, options, APART)
    parts = [counted(name, options, seeds) for seeds in (APART[5:], APART[:2], [], APART[2:5][::-1])]
    for part in parts[1:]:
        parts[0].merge(pickle.loads(pickle.dumps(part)))
    weights = next(draws(whole.units, resamples=20))
    got = parts[0].resampled(weights, computed(parts[0]))
    np.testing.assert_array_equal(got, whole.resampled(weights, computed(whole)))


@pytest.mark.parametrize("name", POOLED)
def test_little_has_no_interval(name: str) -> None:
    assert METRICS[name](classes=CLASSES).units == 0
    assert counted(name, {}, [1]).units == 1
    assert resampled_intervals(1, lambda weights: weights) is None
    score = evaluate("center", limit=1, metrics=[name]).rows[0].scores[name]
    assert (score["interval"], score["class_intervals"]) == (None, None)


def outcome(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image's truth and map of 16 pixels: how good the map is and how large the object differs."""
    truth = np.zeros((4, 4), np.int64)
    truth[: rng.integers(1, 4)] = 1
    return truth, np.where(rng.random((4, 4)) < rng.uniform(0.5, 0.95), truth, 1 - truth).astype(np.float32)


class Pixels:
    """Truth in memory."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth

    def of(self, label: int) -> np.ndarray:
        return self.truth == label + 1

    def ignore(self, label: int) -> np.ndarray:
        return self.truth < 0

    def semantic(self) -> np.ndarray:
        return self.truth


def miou_of(rng: np.random.Generator, images: int) -> MIoU:
    metric = MIoU(classes=1, thresholds=(0.5,))
    for n in range(images):
        truth, values = outcome(rng)
        name = f"{rng.integers(2**60)}-{n}"
        maps = AttentionMaps(name, (4, 4), np.zeros(1, np.int64), values[None])
        metric.update(maps, Sample(name, None, (4, 4), labels=np.zeros(1, np.int64), masks=Pixels(truth)))
    return metric


def ap_of(rng: np.random.Generator, images: int, classes: int = 12) -> VocAP:
    """Three objects of any class an image; some images' boxes are good and others' are not."""
    metric, truth = VocAP(classes=classes), np.array([[0, 0, 4, 4], [8, 8, 12, 12], [0, 8, 4, 12]])
    for n in range(images):
        labels, good = rng.integers(0, classes, 3), rng.random(3) < rng.random()
        boxes, scores = np.where(good[:, None], truth, [12, 0, 16, 4]), good * 0.3 + rng.random(3)
        found = {label: (boxes[labels == label], scores[labels == label]) for label in set(labels.tolist())}
        metric.update_boxes(found, Sample(f"{n}", None, (16, 16), truth, labels))
    return metric


@pytest.mark.slow
@pytest.mark.parametrize(("make", "images"), [(miou_of, 60), (miou_of, 300), (ap_of, 60)])
def test_intervals_cover_about_95_per_cent(make: Any, images: int) -> None:
    truth, rounds, held = make(np.random.default_rng(99), 8000).compute().value, 100, 0
    for seed in range(rounds):
        metric = make(np.random.default_rng(seed), images)
        score = metric.compute()
        found = resampled_intervals(
            metric.units,
            lambda w, m=metric, s=score: m.resampled(w, s),
            about=[score.value, *(score.per_class or {}).values()],
            resamples=200,
            seed=seed,
        )
        assert found is not None
        held += found[0][0] <= truth <= found[0][1]
    assert 0.87 <= held / rounds <= 0.99
