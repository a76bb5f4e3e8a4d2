"""Bootstrap intervals: against a naive twin, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from wsod.stats import bootstrap_interval, mean_of


def naive(
    values: list[float], images: list[int], labels: list[int], average: str, weights: list[int]
) -> float:
    drawn = [(v, c) for v, i, c in zip(values, images, labels, strict=True) for _ in range(weights[i])]
    if average == "cases":
        return float(np.mean([v for v, _ in drawn]))
    return float(np.mean([np.mean([v for v, c in drawn if c == k]) for k in sorted({c for _, c in drawn})]))


@pytest.mark.parametrize("average", ["cases", "classes"])
def test_interval_equals_naive_resampling(average: str) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 12, 40).tolist()
    labels = rng.integers(0, 3, 40).tolist()
    values = rng.random(40).tolist()
    present = sorted(set(images))
    place = {image: i for i, image in enumerate(present)}
    got = bootstrap_interval(values, images, labels, average=average, resamples=300, seed=3)  # type: ignore[arg-type]
    n = len(present)
    draws = np.random.default_rng(3).multinomial(n, np.full(n, 1 / n), size=300)
    expected = [naive(values, [place[i] for i in images], labels, average, draw.tolist()) for draw in draws]
    assert got == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12)


def test_one_image_has_no_interval() -> None:
    assert bootstrap_interval([0.1, 0.2], ["a", "a"], [0, 1]) is None
    assert bootstrap_interval([], [], []) is None


def test_coverage_is_about_95_per_cent() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = rng.random(60) < 0.4
        interval = bootstrap_interval(values, range(60), np.zeros(60), resamples=300)
        assert interval is not None
        hits += interval[0] <= 0.4 <= interval[1]
    assert 0.90 <= hits / 300 <= 0.985


def test_empty_classes_do_not_count() -> None:
    assert mean_of(np.array([2.0, 0.0]), np.array([4.0, 0.0]), "classes") == 0.5


def test_classes_never_seen_count_as_zero_in_value_and_interval() -> None:
    rng = np.random.default_rng(2)
    values, labels = rng.random(30), rng.integers(0, 3, 30)
    seen = bootstrap_interval(values, range(30), labels, average="classes", resamples=200)
    among = bootstrap_interval(values, range(30), labels, average="classes", divisor=12, resamples=200)
    assert seen is not None
    assert among == pytest.approx([bound * 3 / 12 for bound in seen])
