"""Jaccard and precision of Otsu's mask, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wsod.data.masks import ArrayMasks
from wsod.metrics import METRICS
from wsod.protocols import load_protocol
from wsod.types import AttentionMaps, Sample

TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)


def sample(name: str, truth: np.ndarray) -> Sample:
    instances = truth.astype(np.uint8)
    some = bool(truth.any())
    return Sample(
        image_id=name,
        image_path=None,
        size=(4, 4),
        boxes=np.array([[0, 0, 2, 2]] if some else np.zeros((0, 4)), np.float64).reshape(-1, 4),
        labels=np.zeros(int(some), np.int64),
        difficult=np.zeros(int(some), bool),
        crowd=np.zeros(int(some), bool),
        masks=ArrayMasks(instances, (0,) if some else ()),
    )


def maps(name: str, values: np.ndarray) -> AttentionMaps:
    return AttentionMaps(name, (4, 4), np.array([0]), values[None].astype(np.float32))


def test_a_two_level_map_is_cut_exactly():
    metric = METRICS["jaccard"](classes=1)
    assert metric.update(maps("a", 0.2 + 0.5 * TRUTH), sample("a", TRUTH)) == {0: 1.0}
    assert metric.compute().value == 1.0
    assert metric.compute().extra == {"precision": 1.0}


def test_by_hand_and_noise_images():
    metric = METRICS["jaccard"](classes=1)
    claim = np.zeros((4, 4))
    claim[0, :] = 1.0  # 4 pixels, 2 of them right, 2 missed: J = 2/6, P = 12/16
    metric.update(maps("a", claim), sample("a", TRUTH))
    # nothing to find: J has no say, P = 12/16
    metric.update(maps("noise", claim), sample("noise", np.zeros((4, 4), bool)))
    # a constant map claims nothing: J = 0, P = 12/16
    metric.update(maps("flat", np.ones((4, 4))), sample("flat", TRUTH))
    score = metric.compute()
    assert score.value == pytest.approx((2 / 6 + 0) / 2)
    assert score.extra == {"precision": pytest.approx(0.75)}
    assert (score.count, score.skipped) == (2, 1)


def test_merged_counts_are_those_of_all_images():
    parts = [METRICS["jaccard"](classes=1) for _ in range(3)]
    generator = np.random.default_rng(0)
    for n in range(6):
        values = generator.random((4, 4))
        for metric in (parts[n % 2], parts[2]):
            metric.update(maps(str(n), values), sample(str(n), TRUTH if n < 4 else ~TRUTH & False))
    parts[0].merge(parts[1])
    assert parts[0].compute().value == pytest.approx(parts[2].compute().value)
    assert parts[0].compute().extra["precision"] == pytest.approx(parts[2].compute().extra["precision"])


def test_protocol_of_object_discovery_has_otsu_and_the_oracle():
    built = load_protocol("object-discovery").build(1)
    assert built["jaccard"].rule == "otsu"
    assert built["jaccard"].supervision == ()
    assert built["mask_iou"].supervision == ("threshold: evaluated split",)
    assert built["mask_iou"].step == 0.01


def test_probability_maps_are_scored_as_they_are():
    protocol = load_protocol("probability-maps")
    assert protocol.maps.normalise == "none"
    metric = protocol.build(1, ["mask_iou"])["mask_iou"]
    low = 1e-5 * TRUTH.astype(np.float64) + 1e-7
    metric.update(maps("a", low), sample("a", TRUTH))
    score = metric.compute()
    assert score.value == 1.0
    assert 1e-7 < score.best_threshold < 1e-5
