"""Tests of paired differences of case scores, and the correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from wsod.stats import CHUNK, Average

__all__ = ["holm", "sign_flip_test"]


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
