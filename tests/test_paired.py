"""Paired intervals and tests: against naive twins, scipy, and by simulation."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wsod.errors import ConfigError
from wsod.paired import holm, sign_flip_test
from wsod.stats import bootstrap_interval


def cases(rng: np.random.Generator, images: int = 9) -> tuple[Any, Any, Any]:
    """Differences, images and labels of one to three cases an image."""
    owners = np.repeat(np.arange(images), rng.integers(1, 4, images))
    return rng.normal(size=len(owners)).round(2), owners, rng.integers(0, 3, len(owners))


def mean(values: list[float], labels: list[int], average: str) -> float:
    if average == "cases":
        return float(np.mean(values))
    own = [[v for v, c in zip(values, labels, strict=True) if c == k] for k in sorted(set(labels))]
    return float(np.mean([np.mean(some) for some in own]))


@pytest.mark.parametrize("average", ["cases", "classes"])
def test_test_tries_every_swap_of_few_images(average: str) -> None:
    for seed in range(5):
        differences, images, labels = cases(np.random.default_rng(seed))
        observed = abs(mean(differences.tolist(), labels.tolist(), average))
        extreme = []
        for signs in product((1, -1), repeat=9):
            flipped = [float(d) * signs[i] for d, i in zip(differences, images, strict=True)]
            extreme.append(abs(mean(flipped, labels.tolist(), average)) >= observed - 1e-12)
        got = sign_flip_test(differences, images, labels, average=average)  # type: ignore[arg-type]
        assert got == pytest.approx(np.mean(extreme), abs=1e-12)


def test_random_swaps_approach_the_exact_value() -> None:
    differences, images, labels = cases(np.random.default_rng(7), images=12)
    exact = sign_flip_test(differences, images, labels)
    sampled = sign_flip_test(differences, images, labels, resamples=4000)
    assert exact != sampled
    assert sampled == pytest.approx(exact, abs=0.03)


def test_agrees_with_scipy_on_independent_cases() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.15, 1, 60)
    theirs = stats.permutation_test(
        (differences, np.zeros(60)),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=5000,
        random_state=1,
    ).pvalue
    assert sign_flip_test(differences, range(60), np.zeros(60)) == pytest.approx(theirs, abs=0.03)
    bounds = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=5000, random_state=1)
    ours = bootstrap_interval(differences, range(60), np.zeros(60))
    assert ours == pytest.approx(tuple(bounds.confidence_interval), abs=0.03)


@pytest.mark.parametrize("average", ["cases", "classes"])
def test_interval_is_of_whole_images(average: str) -> None:
    """The spread of naive resamples, image by image."""
    rng = np.random.default_rng(3)
    differences, images, labels = cases(rng, images=30)
    means = []
    for _ in range(3000):
        drawn = [np.flatnonzero(images == i) for i in rng.integers(0, 30, 30)]
        picked = np.concatenate(drawn)
        means.append(mean(differences[picked].tolist(), labels[picked].tolist(), average))
    got = bootstrap_interval(differences, images, labels, average=average)  # type: ignore[arg-type]
    assert got == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03)


def test_classes_never_seen_count_as_zero() -> None:
    differences, images, labels = cases(np.random.default_rng(4))
    seen = bootstrap_interval(differences, images, labels, average="classes")
    among = bootstrap_interval(differences, images, labels, average="classes", divisor=12)
    assert seen is not None
    assert among == pytest.approx([bound * 3 / 12 for bound in seen])


def test_strata_keep_their_sizes() -> None:
    """What differs between strata alone leaves no spread."""
    strata = np.repeat([0, 1], [6, 14])
    differences = np.where(strata == 0, 0.5, -0.25)
    low, high = bootstrap_interval(differences, range(20), np.zeros(20), strata=strata) or (0, 0)
    assert low == pytest.approx(high, abs=1e-15)
    assert low == pytest.approx(differences.mean())
    loose = bootstrap_interval(differences, range(20), np.zeros(20))
    assert loose is not None
    assert loose[0] < loose[1] - 0.1
    with pytest.raises(ConfigError, match="one stratum an image"):
        bootstrap_interval([1, 2, 3], [0, 0, 1], [0, 0, 0], strata=[0, 1, 1])


def test_nothing_to_resample() -> None:
    assert bootstrap_interval([0.1, 0.2], ["a", "a"], [0, 1]) is None
    assert sign_flip_test([0.0, 0.0], [0, 1], [0, 0]) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_equals_its_definition(values: list[float]) -> None:
    ranked = sorted(values)
    expected = {}
    for i, p in enumerate(ranked):
        expected.setdefault(i, min(1.0, max((len(ranked) - j) * ranked[j] for j in range(i + 1))))
        assert p == ranked[i]
    got = holm(values)
    order = np.argsort(values, kind="stable")
    assert [got[k] for k in order] == pytest.approx([expected[i] for i in range(len(ranked))])


def simulate(seed: int, images: int = 60, truth: float = 0.1) -> tuple[Any, Any, Any]:
    """Two or three cases an image that share most of what differs."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(images), rng.integers(2, 4, images))
    return truth + rng.normal(0, 0.3, images)[owners] + rng.normal(0, 0.1, len(owners)), owners, owners % 4


def test_interval_covers_95_per_cent_and_cases_alone_would_not() -> None:
    hits, naive = 0, 0
    for seed in range(400):
        differences, images, labels = simulate(seed)
        low, high = bootstrap_interval(differences, images, labels, resamples=400, seed=seed) or (1, 0)
        hits += low <= 0.1 <= high
        alone = range(len(images))
        low, high = bootstrap_interval(differences, alone, labels, resamples=400, seed=seed) or (1, 0)
        naive += low <= 0.1 <= high
    assert 0.92 <= hits / 400 <= 0.975
    assert naive / 400 < 0.88  # cases taken as independent promise too much


def test_false_alarms_are_as_rare_as_promised() -> None:
    below = [
        sign_flip_test(*simulate(seed, images=40, truth=0.0), resamples=400, seed=seed) <= 0.05
        for seed in range(400)
    ]
    assert 0.025 <= np.mean(below) <= 0.08
