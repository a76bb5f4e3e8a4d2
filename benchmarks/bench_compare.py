"""Paired interval and permutation test of 5 000 cases: ours over scipy's, in turn in one process.

    python benchmarks/bench_compare.py [--rounds N] [--json FILE]

10 000 resamples each. scipy knows no clusters: the peers treat every case as an image of its own, so the row
with several cases an image has them as the nearest there is. The floor is drawing the random numbers.
"""

from __future__ import annotations

import numpy as np
from measure import Row, alternate, options, report
from scipy import stats

from wsod.paired import sign_flip_test
from wsod.stats import bootstrap_interval

CASES, RESAMPLES = 5000, 10_000


def bench(name: str, images: int, classes: int, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    owners, labels = rng.integers(0, images, CASES), rng.integers(0, classes, CASES)
    if images == CASES:
        owners = np.arange(CASES)
    before, after = rng.random(CASES), rng.random(CASES)
    average = "cases" if classes == 1 else "classes"

    def ours() -> None:
        bootstrap_interval(after - before, owners, labels, average=average, resamples=RESAMPLES)
        sign_flip_test(after - before, owners, labels, average=average, resamples=RESAMPLES)

    def peer() -> None:
        stats.bootstrap(
            (after, before),
            lambda x, y, axis: x.mean(axis) - y.mean(axis),
            paired=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=100,
            rng=0,
        )
        stats.permutation_test(
            (after, before),
            lambda x, y, axis: (x - y).mean(axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=100,
            rng=0,
        )

    def floor() -> None:
        random = np.random.default_rng(0)
        for _ in range(10):
            random.integers(0, images, (RESAMPLES // 10, images))
        random.bytes(RESAMPLES * images // 8)

    seconds = alternate({"ours": ours, "peer": peer, "floor": floor}, rounds)
    row = {"name": name, "ours_s": seconds["ours"], "peer": "scipy bootstrap + permutation_test"}
    return {
        **row,
        "peer_s": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "floor_s": seconds["floor"],
    }


def main() -> None:
    given = options(__doc__)
    rows = [
        bench("5000 cases, 5000 images", CASES, 1, given.rounds),
        bench("5000 cases, 3000 images", 3000, 1, given.rounds),
        bench("5000 cases, 3000 images, 20 classes", 3000, 20, given.rounds),
    ]
    report(rows, given.json)


if __name__ == "__main__":
    main()
