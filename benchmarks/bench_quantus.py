"""The localisation metrics of Quantus: each alone, and all of them together on one shared sort.

The peer is the package `quantus` where it is installed, called with its defaults on a batch of attributions;
else a loop written from its description, its input check included (every value of the batch in a Python
set). A line below the table says how much of the peer's time that check takes. Scores are compared before
anything is timed. Maps of 224x224 without ties, in memory on both sides. The floor is one pass over map and
mask, and for the metrics that rank, the sort of the values.

    python benchmarks/bench_quantus.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import alternate, options, report, row
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from wsod.metrics import METRICS
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample

Array = np.ndarray
SIZE = (224, 224)
MAPS = 64  # Quantus's own batch size
QUANTUS = {
    "pointing_game": "PointingGame",
    "relevance_mass": "RelevanceMassAccuracy",
    "attribution_localization": "AttributionLocalisation",
    "relevance_rank": "RelevanceRankAccuracy",
    "topk_intersection": "TopKIntersection",
    "auc": "AUC",
}
RANKING = ("relevance_rank", "topk_intersection", "auc")
OPTIONS: dict[str, dict[str, Any]] = {"pointing_game": {"tolerance": 0.0, "truth": "masks"}}


class Truth:
    """One class's pixels, in memory."""

    def __init__(self, inside: Array) -> None:
        self.inside = inside

    def of(self, label: int) -> Array:
        return self.inside

    def ignore(self, label: int) -> Array:
        return np.zeros_like(self.inside)

    def semantic(self) -> Array:
        return self.inside.astype(np.int64)


def batch() -> tuple[Array, Array]:
    """(N, H, W) attributions in [0, 1], and masks."""
    rng = np.random.default_rng(0)
    maps = np.stack([ndimage.gaussian_filter(rng.random(SIZE), 8) for _ in range(MAPS)])
    maps -= maps.min((1, 2), keepdims=True)
    maps /= maps.max((1, 2), keepdims=True)
    masks = np.zeros(maps.shape, bool)
    for n, (y, x) in enumerate(rng.integers(0, 120, (MAPS, 2))):
        masks[n, y : y + 90, x : x + 40 + n] = True
    return maps, masks


def ours(names: list[str], maps: Array, samples: list[Sample]) -> dict[str, list[float]]:
    metrics = [
        METRICS[n](classes=1, processing=MapProcessing(normalise="none"), **OPTIONS.get(n, {})) for n in names
    ]
    scores: dict[str, list[float]] = {name: [] for name in names}
    label = np.zeros(1, np.int64)
    for one, sample in zip(maps, samples, strict=True):
        given = AttentionMaps(sample.image_id, SIZE, label, one[None])
        for metric in metrics:
            scores[metric.name].append(float(metric.update(given, sample)[0]))
    return scores


def check(a: Array) -> None:
    """What Quantus asks of a batch before any metric."""
    assert not np.all(a == 0)
    assert not np.all(a == 1)
    assert len(set(a.flatten().tolist())) > 1
    assert not np.all(a < 0)


def described(name: str, a: Array, s: Array) -> list[float]:
    """A metric of Quantus from its description."""
    check(a)
    a = a / np.abs(a).max()
    scores = []
    for values, inside in zip(a.reshape(len(a), -1), s.reshape(len(s), -1), strict=True):
        inside = inside.astype(bool)
        k = 1000 if name == "topk_intersection" else int(inside.sum())
        if name == "pointing_game":
            score = np.any(inside[values == values.max()])
        elif name == "relevance_mass":
            score = values[inside].sum() / values.sum()
        elif name == "attribution_localization":
            score = np.abs(values)[inside].sum() / (np.abs(values).sum() + 1e-9)
        elif name == "auc":
            score = roc_auc_score(inside, values)
        else:
            score = inside[np.argsort(-values)[:k]].sum() / k
        scores.append(float(score))
    return scores


def installed() -> tuple[str, Callable[[str, Array, Array], list[float]], Callable[[Array], object]]:
    """The peer's name, its metrics and its input check."""
    if importlib.util.find_spec("quantus") is None:
        return "Quantus as described", described, check
    warnings.simplefilter("ignore")
    import quantus
    from quantus.helpers.asserts import assert_attributions

    def call(name: str, a: Array, s: Array) -> list[float]:
        metric = getattr(quantus, QUANTUS[name])(disable_warnings=True)
        found = metric(
            model=None, x_batch=a, y_batch=np.zeros(len(a), int), a_batch=a, s_batch=s, channel_first=True
        )
        return [float(score) for score in found]

    return f"quantus {quantus.__version__}", call, lambda a: assert_attributions(a, a)


def main() -> None:
    chosen = options(__doc__)
    peer, call, assertion = installed()
    maps, masks = batch()
    a, s = maps[:, None], masks[:, None].astype(np.uint8)
    label = np.zeros(1, np.int64)
    samples = [Sample(str(n), None, SIZE, labels=label, masks=Truth(mask)) for n, mask in enumerate(masks)]
    names, rows = list(QUANTUS), []
    for name, scores in ours(names, maps, samples).items():
        np.testing.assert_allclose(scores, call(name, a, s), rtol=1e-9, err_msg=name)
    asserted = {}
    for group in [*([name] for name in names), names]:
        turns = {
            "ours": lambda group=group: ours(group, maps, samples),
            "peer": lambda group=group: [call(name, a, s) for name in group],
            "floor": lambda: maps.reshape(MAPS, -1).sum(1) + np.einsum("nij,nij->n", maps, masks),
            "assertion": lambda: assertion(a),
        }
        if set(group) & set(RANKING):
            turns["floor"] = lambda: np.sort(maps.reshape(MAPS, -1))
        seconds = alternate(turns, chosen.rounds)
        title = group[0] if len(group) == 1 else f"all {len(names)}, one sort"
        rows.append(row(f"quantus {title}", peer, seconds, MAPS))
        # timed apart, it may come out a little longer than all of it
        asserted[title] = min(len(group) * seconds["assertion"] / seconds["peer"], 1.0)
    report(rows, chosen.json)
    print(f"\nOf the time of {peer}, its check of the attributions takes about:")
    print(", ".join(f"{title} {share:.0%}" for title, share in asserted.items()))


if __name__ == "__main__":
    main()
