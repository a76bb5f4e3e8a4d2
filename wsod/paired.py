"""Paired differences of case scores: intervals, permutation tests, corrections for many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from wsod.errors import ConfigError
from wsod.stats import Average, mean_of

__all__ = ["holm", "paired_interval", "sign_flip_test"]

Floats = NDArray[np.float64]
CHUNK = 4_000_000  # numbers held at once: few enough to stay near the processor


def paired_interval(
    differences: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    average: Average = "cases",
    divisor: int | None = None,
    strata: ArrayLike | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of the difference of two means over the same cases, images resampled.

    Both means are linear in the case scores, so their difference is the mean of the differences, and one
    resample serves both sides. Cases of one image are not independent: whole images are drawn.

    Args:
        differences: (N,) score of each case on one side minus that on the other.
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
    values = np.asarray(differences, np.float64)
    _, first, rows = np.unique(np.asarray(images), return_index=True, return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    if average == "cases":
        columns = np.zeros_like(columns)
    n = len(first)
    if n < 2:
        return None
    groups = np.zeros(n, np.int64)
    if strata is not None:
        _, places = np.unique(np.asarray(strata), return_inverse=True)
        groups = places[first]
        if (groups[rows] != places).any():
            raise ConfigError(
                "strata", "one stratum an image", "an image in several", "Resample whole images."
            )
    shape = (n, int(columns.max()) + 1)
    sums = sparse.csr_array((values, (rows, columns)), shape)
    counts = sparse.csr_array((np.ones(len(values)), (rows, columns)), shape)
    draws = _draws(np.random.default_rng(seed), groups, resamples)
    means = [mean_of(_weighted(drawn, sums), _weighted(drawn, counts), average) for drawn in draws]
    tail = 50.0 * (1.0 - confidence)
    share = shape[1] / divisor if divisor and average == "classes" else 1.0
    low, high = share * np.nanpercentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)


def _draws(
    generator: np.random.Generator, groups: NDArray[np.int64], resamples: int
) -> Iterator[NDArray[np.float64]]:
    """(rounds, n) how often each unit is drawn, in parts; every group keeps its size."""
    n = len(groups)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    part = max(1, CHUNK // n)
    for start in range(0, resamples, part):
        rounds = min(part, resamples - start)
        picked = [own[generator.integers(0, len(own), (rounds, len(own)))] for own in members]
        cells = np.concatenate(picked, 1) + n * np.arange(rounds)[:, None]
        yield np.bincount(cells.ravel(), minlength=rounds * n).reshape(rounds, n).astype(np.float64)


def _weighted(drawn: Floats, totals: sparse.csr_array) -> Floats:
    """(rounds, n) @ (n, C); most images have few of the classes."""
    weighted: Floats = drawn @ totals.toarray() if totals.shape[1] == 1 else (totals.T @ drawn.T).T
    return weighted


def sign_flip_test(
    differences: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    average: Average = "cases",
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a paired permutation test: mean difference zero, images as units.

    Were the two kinds of maps exchangeable, their scores on an image could be swapped, all its cases at
    once, which turns the sign of its differences. p = (1 + #{|T*| ≥ |T|}) / (1 + resamples) over random
    swaps (Phipson & Smyth 2010); with so few images that all swaps can be tried they are, and p is exact.

    Args:
        differences: (N,) paired differences of case scores.
        images: (N,) index of the image of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        average: how the score is made from its cases.
        resamples: number of random swaps.
        seed: of the swaps.

    >>> sign_flip_test([0.2, 0.1, 0.3, 0.1], [0, 1, 2, 3], [0, 0, 0, 0])  # 2 of 16 swaps are as extreme
    0.125
    """
    values = np.asarray(differences, np.float64)
    _, rows = np.unique(np.asarray(images), return_inverse=True)
    if average == "classes":
        _, columns, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        values = values / counts[columns]
    totals = np.bincount(rows, values)
    totals = totals[totals != 0]  # an image without a difference is the same swapped
    n = len(totals)
    observed = abs(totals.sum())
    # sums in another order differ in the last digits; a swap that equals the observed one must count
    least = observed - 1e-12 * np.abs(totals).sum()
    if 2**n <= resamples:
        swaps = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1.0 - 2.0 * swaps) @ totals) >= least).mean())
    generator = np.random.default_rng(seed)
    extreme, part = 0, max(1, CHUNK // n)
    for start in range(0, resamples, part):
        rounds = min(part, resamples - start)
        bits = np.frombuffer(generator.bytes(rounds * -(-n // 8)), np.uint8).reshape(rounds, -1)
        flipped = np.unpackbits(bits, axis=1, count=n).astype(np.float64) @ totals
        extreme += int((np.abs(totals.sum() - 2.0 * flipped) >= least).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the chance of any false one among them stays below p.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return adjusted.tolist()
