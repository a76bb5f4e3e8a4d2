"""Means and intervals of case scores: within groups of cases, over images, over images and training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = [
    "Average",
    "bootstrap_interval",
    "crossed_interval",
    "group_means",
    "image_weights",
    "interval_of_runs",
    "mean_of",
]

Average = Literal["cases", "classes"]


def mean_of(sums: NDArray[np.float64], counts: NDArray[np.float64], average: Average) -> NDArray[np.float64]:
    """(..., C) sums and counts by class → the mean over cases, or over the classes seen of their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if average == "cases":
            mean: NDArray[np.float64] = sums.sum(-1) / counts.sum(-1)
        else:
            seen = counts > 0
            mean = np.where(seen, sums / counts, 0.0).sum(-1) / seen.sum(-1)
    return mean


def group_means(
    values: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str | None],
    names: Sequence[str],
    average: Average = "cases",
) -> dict[str, dict[str, Any]]:
    """The score within each group of cases.

    Args:
        values: (N,) score of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        groups: (N,) the group of each case, or None for no group.
        names: the groups wanted.
        average: how the score is made from its cases.

    Returns:
        By name `{"value": …, "count": cases}`; NaN for an empty group.

    >>> group_means([1, 0, 1], [0, 0, 1], ["a", "a", None], ["a", "b"])
    {'a': {'value': 0.5, 'count': 2}, 'b': {'value': nan, 'count': 0}}
    """
    scores, (_, columns) = np.asarray(values, np.float64), np.unique(labels, return_inverse=True)
    means: dict[str, dict[str, Any]] = {}
    for name in names:
        inside = np.array([group == name for group in groups], np.bool_)
        sums = np.bincount(columns[inside], scores[inside], minlength=1).astype(np.float64)
        counts = np.bincount(columns[inside], minlength=1).astype(np.float64)
        means[name] = {"value": float(mean_of(sums, counts, average)), "count": int(inside.sum())}
    return means


def bootstrap_interval(
    values: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    average: Average = "cases",
    divisor: int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of a mean of case scores, images resampled with replacement.

    Cases of one image are not independent, hence images are drawn, not cases. A threshold chosen on the
    same data is held fixed: the interval says nothing of that choice.

    Args:
        values: (N,) score of each case.
        images: (N,) index of the image of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        average: how the score is made from its cases.
        divisor: number of classes a mean of classes is divided by, where those never seen count as 0; None =
            the classes seen. A class that only a resample lacks is left out of that resample's mean.

    Returns:
        (low, high), or None with fewer than two images.
    """
    scores = np.asarray(values, np.float64)
    _, rows = np.unique(np.asarray(images), return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    if average == "cases":
        columns = np.zeros_like(columns)
    n = int(rows.max(initial=-1)) + 1
    if n < 2:
        return None
    shape = (n, int(columns.max()) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows, columns), scores)
    np.add.at(counts, (rows, columns), 1.0)
    generator = np.random.default_rng(seed)
    means = []
    chunk = max(1, min(resamples, 20_000_000 // n))  # bounds memory at about 160 MB
    for start in range(0, resamples, chunk):
        rounds = min(chunk, resamples - start)
        weights = generator.multinomial(n, np.full(n, 1.0 / n), size=rounds).astype(np.float64)
        means.append(mean_of(weights @ sums, weights @ counts, average))
    tail = 50.0 * (1.0 - confidence)
    share = shape[1] / divisor if divisor and average == "classes" else 1.0
    low, high = share * np.nanpercentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)


def image_weights(images: int, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """(resamples, images) how often each image is drawn when as many are drawn with replacement."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(images, np.full(images, 1.0 / images), size=resamples)
    return counts.astype(np.float64)


def crossed_interval(
    values: ArrayLike,
    images: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
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
) -> tuple[float, float]:
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
