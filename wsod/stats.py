"""Means and intervals of case scores: within groups of cases, over images, over images and training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import stdtrit

from wsod.errors import ConfigError

__all__ = [
    "Average",
    "bootstrap_interval",
    "class_intervals",
    "crossed_interval",
    "draws",
    "group_means",
    "image_weights",
    "interval_of_runs",
    "mean_of",
    "resampled_intervals",
]

Average = Literal["cases", "classes"]
Floats = NDArray[np.float64]
Interval = tuple[float, float]
CHUNK = 4_000_000  # numbers held at once: few enough to stay near the processor


def mean_of(sums: NDArray[np.float64], counts: NDArray[np.float64], average: Average) -> NDArray[np.float64]:
    """(..., C) sums and counts by class → the mean over cases, or over the classes seen of their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if average == "cases":
            mean: NDArray[np.float64] = sums.sum(-1) / counts.sum(-1)
        else:
            seen = counts > 0
            mean = np.where(seen, sums / counts, 0.0).sum(-1) / seen.sum(-1)
    return mean


def draws(
    units: int, *, strata: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Iterator[Floats]:
    """Bootstrap samples of units drawn with replacement, in parts that stay near the processor.

    Args:
        units: number of them, such as images.
        strata: (units,) the stratum of each: each keeps its number of units. None = one stratum.
        resamples: number of samples.
        seed: of the draws.

    Yields:
        (rounds, units) how often each unit is drawn; `resamples` rounds in all.
    """
    generator = np.random.default_rng(seed)
    kinds = np.zeros(units, np.int64) if strata is None else np.asarray(strata)
    members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    part = max(1, CHUNK // units)
    for start in range(0, resamples, part):
        rounds = min(part, resamples - start)
        picked = [own[generator.integers(0, len(own), (rounds, len(own)))] for own in members]
        cells = np.concatenate(picked, 1) + units * np.arange(rounds)[:, None]
        yield np.bincount(cells.ravel(), minlength=rounds * units).reshape(rounds, units).astype(np.float64)


def image_weights(images: int, resamples: int = 2000, seed: int = 0) -> Floats:
    """(resamples, images) how often each image is drawn when as many are drawn with replacement."""
    return np.concatenate(list(draws(images, resamples=resamples, seed=seed)))


def resampled_intervals(
    units: int,
    score: Callable[[Floats], Floats],
    *,
    about: Sequence[float] | None = None,
    strata: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval] | None:
    """Percentile intervals of any scores that can be had of units counted several times or never.

    Args:
        units: number of them.
        score: (rounds, units) how often each counts → (rounds, K) K scores; NaN where a sample has none.
        about: (K,) the scores of all units, for scores that are no means: the samples are shifted so that
            their mean is this. A resample has fewer different units, and some scores rise with that alone:
            average precision by a point and more where classes are small, as it does in small data sets.
        strata: as `draws` has it.
        resamples: number of samples.
        confidence: of the intervals.
        seed: of the draws.

    Returns:
        K times (low, high), NaN for a score that no sample has; None with fewer than two units.
    """
    if units < 2:
        return None
    drawn = draws(units, strata=strata, resamples=resamples, seed=seed)
    scores = np.concatenate([score(weights) for weights in drawn])
    tail = 50.0 * (1.0 - confidence)
    intervals = []
    for k, column in enumerate(scores.T):
        known = column[~np.isnan(column)]
        if about is not None and len(known):
            known = known + (about[k] - known.mean())
        low, high = np.percentile(known, [tail, 100.0 - tail]) if len(known) else (np.nan, np.nan)
        intervals.append((float(low), float(high)))
    return intervals


def bootstrap_interval(
    values: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    average: Average = "cases",
    divisor: int | None = None,
    strata: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of a mean of case scores, images resampled with replacement.

    Cases of one image are not independent, hence images are drawn, not cases. A threshold chosen on the
    same data is held fixed: the interval says nothing of that choice. Of paired differences it is the paired
    interval: both means are linear in the case scores, so one resample serves both sides.

    Args:
        values: (N,) score of each case, or what two sides differ by.
        images: (N,) the image of each case.
        labels: (N,) the class of each case, used by `average="classes"`.
        average: how the score is made from its cases.
        divisor: number of classes a mean of classes is divided by, where those never seen count as 0; None =
            the classes seen. A class that only a resample lacks is left out of that resample's mean.
        strata: (N,) the stratum of each case, one an image: each stratum keeps its number of images in every
            resample. None = one stratum.
        resamples: number of resamples.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        (low, high), or None with fewer than two images.

    Raises:
        ConfigError: an image in two strata.
    """
    _, first, rows = np.unique(np.asarray(images), return_index=True, return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    if average == "cases":
        columns = np.zeros_like(columns)
    groups = None
    if strata is not None:
        _, places = np.unique(np.asarray(strata), return_inverse=True)
        groups = places[first]
        if (groups[rows] != places).any():
            hint = "Resample whole images."
            raise ConfigError("strata", "one stratum an image", "an image in several", hint)
    totals, c = _totals(values, rows, columns), int(columns.max(initial=-1)) + 1
    share = c / divisor if divisor and average == "classes" else 1.0

    def score(weights: Floats) -> Floats:
        return share * mean_of(*_weighted(weights, totals), average)[:, None]

    intervals = resampled_intervals(
        len(first), score, strata=groups, resamples=resamples, confidence=confidence, seed=seed
    )
    return None if intervals is None else intervals[0]


def class_intervals(
    values: ArrayLike, images: ArrayLike, labels: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> dict[Any, Interval | None]:
    """By label, the interval of the mean over the class's cases; None with fewer than two images of it.

    Args:
        values: (N,) score of each case.
        images: (N,) the image of each case: as in `bootstrap_interval`, images are resampled.
        labels: (N,) the class of each case.
        resamples: number of resamples.
        seed: of the draws.
    """
    names, columns = np.unique(np.asarray(labels), return_inverse=True)
    _, rows = np.unique(np.asarray(images), return_inverse=True)
    totals, n = _totals(values, rows, columns), int(rows.max(initial=-1)) + 1

    def score(weights: Floats) -> Floats:
        sums, counts = _weighted(weights, totals)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    found = resampled_intervals(n, score, resamples=resamples, seed=seed)
    images_of = (totals[1] > 0).sum(0).tolist()
    return {
        name: found[i] if found is not None and images_of[i] > 1 else None
        for i, name in enumerate(names.tolist())
    }


Totals = tuple[sparse.csr_array, sparse.csr_array]


def _totals(values: ArrayLike, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Totals:
    """(images, classes) sums and counts; most images have few of the classes."""
    scores = np.asarray(values, np.float64)
    shape = int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1
    sums = sparse.csr_array((scores, (rows, columns)), shape)
    return sums, sparse.csr_array((np.ones(len(scores)), (rows, columns)), shape)


def _weighted(weights: Floats, totals: Totals) -> tuple[Floats, Floats]:
    """(rounds, images) times each of the totals."""
    if totals[0].shape[1] == 1:
        return weights @ totals[0].toarray(), weights @ totals[1].toarray()
    turned = np.ascontiguousarray(weights.T)
    return (totals[0].T @ turned).T, (totals[1].T @ turned).T


def group_means(
    values: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str | None],
    names: Sequence[str],
    average: Average = "cases",
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The score within each group of cases.

    Args:
        values: (N,) score of each case.
        images: (N,) the image of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        groups: (N,) the group of each case, or None for no group.
        names: the groups wanted.
        average: how the score is made from its cases.
        seed: of the intervals.

    Returns:
        By name `{"value": …, "count": cases, "interval": (low, high) or None}`; NaN for an empty group.

    >>> means = group_means([1, 0, 1], [0, 1, 2], [0, 0, 1], ["a", "a", None], ["a", "b"])
    >>> means["a"], means["b"]["count"]
    ({'value': 0.5, 'count': 2, 'interval': (0.0, 1.0)}, 0)
    """
    scores, owners = np.asarray(values, np.float64), np.asarray(images)
    _, columns = np.unique(labels, return_inverse=True)
    means: dict[str, dict[str, Any]] = {}
    for name in names:
        inside = np.array([group == name for group in groups], np.bool_)
        own = scores[inside], owners[inside], columns[inside]
        sums = np.bincount(own[2], own[0], minlength=1).astype(np.float64)
        counts = np.bincount(own[2], minlength=1).astype(np.float64)
        means[name] = {
            "value": float(mean_of(sums, counts, average)),
            "count": int(inside.sum()),
            "interval": bootstrap_interval(*own, average=average, seed=seed),
        }
    return means


def crossed_interval(
    values: ArrayLike,
    images: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of the mean over runs of the means of case scores: other images, and other runs.

    Every run (training seed) has scores of the same cases, such as paired differences of two methods. What
    is averaged is each run's mean.

    Args:
        values: (S, N) score of each case in each run; NaN where a run has no score of it.
        images: (N,) the image of each case; None = each is an image of its own.
        resamples: of the bootstrap over images.
        confidence: of the interval.
        seed: of the bootstrap.

    Returns:
        (low, high) as `interval_of_runs` has it, or None with fewer than two images.
    """
    scores = np.atleast_2d(np.asarray(values, np.float64))
    rows = np.arange(scores.shape[1]) if images is None else np.unique(images, return_inverse=True)[1]
    n = int(rows.max(initial=-1)) + 1
    if n < 2:
        return None
    known = ~np.isnan(scores)
    sums, counts = np.zeros((n, len(scores))), np.zeros((n, len(scores)))
    np.add.at(sums, rows, np.where(known, scores, 0.0).T)
    np.add.at(counts, rows, known.T.astype(np.float64))
    weights = image_weights(n, resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        points, draws = sums.sum(0) / counts.sum(0), (weights @ sums) / (weights @ counts)
    return interval_of_runs(points, draws, images=n, confidence=confidence)


def interval_of_runs(
    points: ArrayLike, draws: ArrayLike, *, images: int, confidence: float = 0.95
) -> Interval:
    """Interval of the mean over runs of any score, images and runs both taken as samples.

    The variance of the mean in a crossed design of S runs and N images is V_runs + V_images − V_both: the
    variance of the runs' scores over S; that of the mean score under a bootstrap over images; and what the
    images do to each run apart from all others, which both of these count (Owen, "The pigeonhole bootstrap",
    Annals of Applied Statistics 2007; Cameron, Gelbach and Miller, "Robust inference with multiway
    clustering", 2011). The interval is the mean ± t · √variance with the degrees of freedom of Satterthwaite
    (1946). Percentiles of runs drawn with replacement are no alternative: of five runs they cover far less
    than they promise.

    Args:
        points: (S,) the score of each run on all images; NaN where a run has none.
        draws: (R, S) the scores on R bootstrap samples of the images, the same images in each row.
        images: N.
        confidence: of the interval.

    Returns:
        (low, high), NaN without a run. Of a single run: percentiles over images, which say nothing of others.
    """
    scores, resampled = np.asarray(points, np.float64), np.asarray(draws, np.float64)
    keep = ~np.isnan(scores)
    scores, resampled = scores[keep], resampled[:, keep]
    resampled = resampled[~np.isnan(resampled).any(1)]
    runs, tail = len(scores), 0.5 * (1.0 - confidence)
    if not runs or not len(resampled):
        return float("nan"), float("nan")
    if runs == 1:
        low, high = np.percentile(resampled[:, 0], [100 * tail, 100 * (1 - tail)])
        return float(low), float(high)
    of_runs = scores.var(ddof=1) / runs
    of_images = resampled.mean(1).var()
    alone = resampled - resampled.mean(1, keepdims=True)
    of_both = alone.var(0).sum() / (runs * (runs - 1))
    variance = max(of_runs + of_images - of_both, of_runs, of_images)
    if not variance:
        return float(scores.mean()), float(scores.mean())
    freedom = variance**2 / (of_runs**2 / (runs - 1) + of_images**2 / max(images - 1, 1))
    half = float(stdtrit(max(freedom, runs - 1), 1.0 - tail)) * float(variance) ** 0.5
    return float(scores.mean()) - half, float(scores.mean()) + half
