"""Bootstrap intervals: against a naive twin, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wsod.stats import (
    bootstrap_interval,
    class_intervals,
    crossed_interval,
    draws,
    group_means,
    image_weights,
    interval_of_runs,
    mean_of,
)


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
    drawn = image_weights(len(present), 300, 3).astype(int)
    expected = [naive(values, [place[i] for i in images], labels, average, draw.tolist()) for draw in drawn]
    assert got == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12)


def test_draws_are_of_as_many_units_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image_weights(7, 4000, 5)
    assert (whole.sum(1) == 7).all()
    assert whole.mean(0) == pytest.approx(np.ones(7), abs=0.05)
    assert whole.var() == pytest.approx(6 / 7, abs=0.03)  # binomial, of 7 draws with chance 1/7
    strata = np.array([0, 1, 1, 0, 1, 1, 1])
    kept = np.concatenate(list(draws(7, strata=strata, resamples=50)))
    assert (kept[:, strata == 0].sum(1) == 2).all()
    monkeypatch.setattr("wsod.stats.CHUNK", 100)
    assert len(next(draws(7, resamples=4000, seed=5))) == 14
    np.testing.assert_array_equal(image_weights(7, 4000, 5), whole)


def test_classes_and_groups_have_their_own_intervals() -> None:
    rng = np.random.default_rng(1)
    images, labels, values = np.repeat(np.arange(15), 2), np.tile([3, 7], 15), rng.random(30)
    labels[:2] = 5  # a class that a single image has
    found = class_intervals(values, images, labels, resamples=300, seed=3)
    assert found[5] is None
    weights = image_weights(15, 300, 3)[:, images]
    for label in (3, 7):
        own = labels == label
        means = (weights[:, own] @ values[own]) / weights[:, own].sum(1)
        assert found[label] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)
    means = group_means(values, images, labels, [None, "a"] * 15, ["a", "b"], "classes", seed=4)
    inside = np.arange(30) % 2 == 1
    alone = bootstrap_interval(values[inside], images[inside], labels[inside], average="classes", seed=4)
    assert means["a"]["interval"] == alone
    assert (means["b"]["count"], means["b"]["interval"]) == (0, None)


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


@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.3), (0.0, 1.0, 0.3), (0.0, 0.0, 1.0), (0.5, 2.0, 1.0)])
def test_crossed_interval_covers_as_it_says(spread: tuple[float, float, float]) -> None:
    """Five runs, whatever the share of runs, images and both: about 95 % hold the true mean."""
    run, image, both = spread
    rng = np.random.default_rng(7)
    held, rounds = 0, 300
    for round_ in range(rounds):
        values = run * 0.3 * rng.normal(size=(5, 1)) + image * rng.normal(size=(1, 40))
        values = values + both * rng.normal(size=(5, 40))
        values[rng.random(values.shape) < 0.1] = np.nan
        low, high = crossed_interval(values, resamples=200, seed=round_) or (1.0, -1.0)
        held += low <= 0 <= high
    assert 0.91 <= held / rounds <= 0.995


def test_crossed_interval_is_what_the_parts_of_the_variance_say() -> None:
    """Against the crossed design's formula on complete data, with expected values for the bootstrap."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    runs, images = values.mean(1), values.mean(0)
    rest = values - runs[:, None] - images[None] + values.mean()
    of_runs, of_images = runs.var(ddof=1) / 4, images.var() / 30
    of_both = (rest**2).sum(1).mean() / 30**2 * 4 / (4 * 3)
    variance = of_runs + of_images - of_both
    freedom = variance**2 / (of_runs**2 / 3 + of_images**2 / 29)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    low, high = crossed_interval(values, resamples=40_000) or (np.nan, np.nan)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)


def test_crossed_interval_of_several_cases_an_image_equals_that_of_their_runs() -> None:
    values = np.array([[0.1, 0.4, 0.9, np.nan], [0.2, 0.3, np.nan, 0.8]])
    images = ["a", "a", "b", "c"]
    weights = image_weights(3, 500, 3)
    rows = np.array([0, 0, 1, 2])
    draws = np.full((500, 2), np.nan)
    for r, weight in enumerate(weights):
        for s in range(2):
            known = [(v, weight[i]) for v, i in zip(values[s], rows, strict=True) if not np.isnan(v)]
            total = sum(w for _, w in known)
            draws[r, s] = sum(v * w for v, w in known) / total if total else np.nan
    expected = interval_of_runs(np.nanmean(values, 1), draws, images=3)
    assert crossed_interval(values, images, resamples=500, seed=3) == pytest.approx(expected, abs=1e-12)


def test_crossed_interval_of_little() -> None:
    assert crossed_interval([[0.5]]) is None
    assert crossed_interval([[0.25, 0.25], [0.25, 0.25]]) == pytest.approx((0.25, 0.25), abs=1e-12)
    one = np.arange(20.0)[None]
    assert crossed_interval(one, seed=1) == pytest.approx(
        bootstrap_interval(one[0], np.arange(20), np.zeros(20), seed=1), abs=1e-12
    )
    assert np.isnan(interval_of_runs([np.nan], np.full((5, 1), np.nan), images=3)).all()
