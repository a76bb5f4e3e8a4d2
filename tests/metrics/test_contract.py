"""What every entry of METRICS must do, whatever it measures."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate

from tests.metrics.reference import SemanticTruth
from wsod.config import bind, plain
from wsod.errors import ConfigError, DataError, MapError, WsodError
from wsod.metrics import METRICS, Metric
from wsod.metrics.base import Scene
from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.metrics.probe import View
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample, Score

CLASSES = 4
SIZE = (24, 30)
# what a map without any claim scores, where that is not 0
CHANCE = {"auc": 0.5, "average_drop": 1.0, "deletion": 1.0}
# metrics that need no truth: what a map of the wrong class is worth is for the classifier to say
UNTAUGHT = {name for name, metric in METRICS.items() if not metric(classes=1).needs & {"boxes", "masks"}}


class Oracle:
    """A classifier that sees a class by the share of its pixels shown, and is disturbed by the rest."""

    def frame(self, image_id: str) -> tuple[tuple[int, int], None]:
        return SIZE, None

    def __call__(self, views: Iterable[View]) -> np.ndarray:
        answers = [np.zeros((0, CLASSES))]
        for view in views:
            truth = image(int(view.image_id.split("-")[1])).masks
            shown = np.ones(SIZE) if view.weights is None else view.weights
            assert truth is not None
            masks = [truth.of(label) for label in range(CLASSES)]
            sights = [shown[mask].mean() if mask.any() else 0.1 for mask in masks]
            answers.append(np.array([sights]) * (1 - 0.5 * shown[~np.any(masks, 0)].mean()))
        return np.concatenate(answers)


def make(name: str, **options: Any) -> Metric:
    metric = METRICS[name](classes=CLASSES, **options)
    if isinstance(metric, FaithfulnessMetric):
        metric.attach(Oracle())
    return metric


def count(metric: Metric, maps: AttentionMaps, sample: Sample, others: str = "noisy") -> dict[int, Any]:
    """What the evaluation does with one image: its other rows are maps of that kind."""
    metric.prepare([Scene(maps, sample, [claim(sample, others)])])
    return metric.update(maps, sample)


def image(seed: int) -> Sample:
    """One or two objects of one or two classes, apart from each other, with pixel masks."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(CLASSES)[: 1 + seed % 2]
    boxes, truth = [], np.zeros(SIZE, np.int64)
    for place, label in enumerate(labels):
        x, y = rng.integers((1 + 14 * place, 5), (4 + 14 * place, 8))
        boxes.append([x, y, x + rng.integers(5, 9), y + rng.integers(6, 12)])
        x0, y0, x1, y1 = boxes[-1]
        truth[y0:y1, x0:x1] = label + 1
    return Sample(f"image-{seed}", None, SIZE, np.array(boxes), labels, masks=SemanticTruth(truth))


def claim(sample: Sample, kind: str) -> AttentionMaps:
    values = []
    rng = np.random.default_rng(len(sample.image_id))
    for label in sample.classes:
        assert sample.masks is not None
        mask = sample.masks.of(label).astype(np.float32)
        noise = rng.random(SIZE, np.float32)
        kinds = {
            "perfect": mask,
            "inverse": 1 - mask,
            "empty": np.full_like(mask, 0.3),
            "noisy": mask + noise,
        }
        values.append(kinds[kind])
    ranking = [*sample.classes, *(c for c in range(CLASSES) if c not in sample.classes)]
    return AttentionMaps(sample.image_id, SIZE, np.array(sample.classes), np.stack(values), np.array(ranking))


def counted(name: str, seeds: list[int], kind: str = "noisy", **options: Any) -> Metric:
    metric = make(name, **options)
    for seed in seeds:
        sample = image(seed)
        count(metric, claim(sample, kind), sample, kind)
    return metric


def close(a: Score, b: Score) -> None:
    """Equal to the last bit: sums do not depend on their order."""
    for name in ("value", "curve", "per_class", "best_threshold", "extra"):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            left, right = list(left.values()), list(right.values())
        if left is not None:
            np.testing.assert_array_equal(left, right)
    assert (a.count, a.skipped) == (b.count, b.skipped)


@pytest.mark.parametrize("name", METRICS)
def test_merging_parts_is_counting_all(name: str) -> None:
    whole = counted(name, list(range(9)))
    parts = [counted(name, seeds) for seeds in ([3, 1, 4], [], [8, 0, 7, 2], [6, 5])]
    parts.reverse()
    first = parts[0]
    for part in parts[1:]:
        first.merge(pickle.loads(pickle.dumps(part)))
    close(first.compute(), whole.compute())


@pytest.mark.parametrize("name", METRICS)
def test_counting_does_not_depend_on_order(name: str) -> None:
    close(counted(name, list(range(8))).compute(), counted(name, list(range(8))[::-1]).compute())


@pytest.mark.parametrize("name", METRICS)
def test_an_image_counts_once(name: str) -> None:
    metric, sample = counted(name, [0, 1]), image(1)
    before = metric.compute()
    with pytest.raises(MapError, match="image-1: expected each image once"):
        metric.update(claim(sample, "noisy"), sample)
    with pytest.raises(MapError, match=f"{metric.name}: expected each image once, got 1 counted on both"):
        metric.merge(counted(name, [1, 2]))
    close(metric.compute(), before)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_other_options_do_not_merge(name: str) -> None:
    with pytest.raises(ConfigError, match="same options"):
        make(name).merge(make(name, processing=MapProcessing(frame=16)))


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_claim_scores_one(name: str) -> None:
    score = counted(name, list(range(6)), "perfect", **({"k": 20} if name == "topk_intersection" else {}))
    value = score.compute().value
    if name == "miou_atcon":
        # its open pixel intervals and the contrast rule do not let a perfect map reach 1
        assert 0.5 < value <= 1
    elif name == "average_drop":
        assert value == 0
    elif name in ("insertion", "deletion"):
        # areas under a curve: as good as an order of pixels can be
        inverse = counted(name, list(range(6)), "inverse").compute().value
        assert value > inverse + 0.2 if name == "insertion" else value < inverse - 0.2
    else:
        assert value == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
def test_a_map_that_claims_nothing_scores_nothing(name: str) -> None:
    metric = counted(name, list(range(6)), "empty")
    score = metric.compute()
    assert score.count > 0
    if name == "pxap":
        # every pixel at the lowest threshold: the precision of the whole image
        share = np.mean([image(seed).masks.of(label) for seed in range(6) for label in image(seed).classes])  # type: ignore[union-attr]
        assert score.value == pytest.approx(share)
    elif name == "miou":
        assert score.value == pytest.approx(score.extra["background"] / (CLASSES + 1))
    else:
        assert score.value == CHANCE.get(name, 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_counted_is_nan(name: str) -> None:
    score = make(name).compute()
    assert math.isnan(score.value)
    assert (score.count, score.skipped) == (0, 0)


@pytest.mark.parametrize("name", METRICS)
def test_scores_stay_in_range_and_class_values_are_there(name: str) -> None:
    score = counted(name, list(range(8))).compute()
    values = [score.value, *(score.per_class or {}).values(), *score.extra.values()]
    assert all(0 <= value <= 1 for value in values if not math.isnan(value))
    if name != "corloc_image":
        assert set(score.per_class or {}) == set(range(CLASSES))
    curves = score.curve if isinstance(score.curve, dict) else {"": score.curve}
    for curve in curves.values():
        assert curve is None or len(curve) == len(score.thresholds or [])


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.average])
def test_the_value_is_the_mean_of_the_case_scores(name: str) -> None:
    metric = make(name)
    evidence: list[tuple[int, Any]] = []
    for seed in range(9):
        sample = image(seed)
        evidence += count(metric, claim(sample, "noisy"), sample).items()
    score = metric.compute()
    cases: dict[int, list[float]] = {}
    for label, own in evidence:
        cases.setdefault(label, []).append(metric.case_score(own, score))
    assert sum(map(len, cases.values())) == score.count
    if metric.average == "cases":
        mean = np.mean([x for own in cases.values() for x in own])
    else:
        mean = np.mean([np.mean(own) for own in cases.values()])
    assert score.value == pytest.approx(mean, abs=1e-6)  # arrays over thresholds may be float32


@pytest.mark.parametrize("name", METRICS)
def test_evidence_is_compact(name: str) -> None:
    sample = image(3)
    for own in count(make(name), claim(sample, "noisy"), sample).values():
        assert isinstance(own, float) or own.dtype in (np.bool_, np.uint8, np.float32)


@pytest.mark.parametrize("name", METRICS)
def test_options_bind_from_toml_tables(name: str) -> None:
    kind = METRICS[name]
    metric = make(name)
    table = {key: value for key, value in plain(metric).items() if key not in ("classes", "processing")}
    processing = MapProcessing(frame=16)
    again = bind(kind, {**table, "classes": CLASSES, "processing": processing}, f"metrics.{name}")
    assert again.options() == {**metric.options(), "processing": processing}
    with pytest.raises(ConfigError, match="nonsense"):
        bind(kind, {"classes": CLASSES, "nonsense": 1}, f"metrics.{name}")
    with pytest.raises(ConfigError, match="class"):
        kind(classes=0)


@pytest.mark.parametrize("name", METRICS)
def test_it_says_what_it_needs_and_used(name: str) -> None:
    metric = make(name)
    assert metric.needs <= {"boxes", "masks", "ranking", "classifier", "rows"}
    swept = metric.compute().thresholds is not None or hasattr(metric, "thresholds")
    used = ("threshold: evaluated split",) if swept and name != "pxap" else ()
    assert metric.supervision == used
    if used:
        assert make(name, thresholds=(0.3,)).supervision == ()


@pytest.mark.parametrize("name", METRICS)
def test_other_images_maps_and_unknown_labels_are_refused(name: str) -> None:
    metric, sample = make(name), image(0)
    maps = claim(sample, "noisy")
    faults: list[tuple[type[WsodError], AttentionMaps]] = [
        (MapError, replace(maps, image_id="other")),
        (MapError, replace(maps, size=(9, 9))),
        (DataError, replace(maps, labels=np.array([CLASSES]))),
    ]
    if "ranking" in metric.needs:
        faults.append((MapError, replace(maps, ranking=None)))
    for error, wrong in faults:
        with pytest.raises(error, match="image-0"):
            metric.update(wrong, sample)
    assert metric.compute().count == 0
    count(metric, maps, sample)


@pytest.mark.parametrize("name", sorted(set(METRICS) - UNTAUGHT))
def test_an_image_without_truth_of_that_kind_is_left_out_and_counted(name: str) -> None:
    metric, sample = make(name), image(2)
    bare = Sample(sample.image_id, None, SIZE, labels=np.array(sample.classes))
    assert metric.update(claim(sample, "noisy"), bare) == {}
    score = metric.compute()
    assert math.isnan(score.value) or score.count == 0
    assert score.skipped >= 1 or name in ("voc_ap", "box_ap")


@pytest.mark.parametrize("name", sorted(UNTAUGHT))
def test_no_truth_is_needed_where_none_is_asked_for(name: str) -> None:
    metric, sample = make(name), image(2)
    bare = Sample(sample.image_id, None, SIZE)
    maps = claim(sample, "noisy")
    metric.prepare([Scene(maps, bare, [claim(sample, "perfect")])])
    assert set(metric.update(maps, bare)) == set(sample.classes)
    assert metric.compute().count == len(sample.classes)


@pytest.mark.parametrize("name", sorted(set(METRICS) - UNTAUGHT))
def test_a_class_that_is_not_there_is_no_credit(name: str) -> None:
    """A confident map of an absent class never raises the score."""
    right, wrong = make(name), make(name)
    sample = image(0)
    maps = claim(sample, "perfect")
    absent = next(c for c in range(CLASSES) if c not in sample.classes)
    both = replace(
        maps,
        labels=np.array([*sample.classes, absent]),
        values=np.concatenate([maps.values, maps.values[:1] * 0.9]),
        cache={},
    )
    right.update(maps, sample)
    wrong.update(both, sample)
    assert wrong.compute().value <= right.compute().value


def test_thresholds_are_checked() -> None:
    for name in ("max_box_acc", "mask_iou", "pxap", "miou"):
        for options in ({"step": 0.0}, {"thresholds": (0.5, 0.2)}, {"thresholds": (1.0,)}):
            with pytest.raises(ConfigError, match=name):
                make(name, **options).compute()


@pytest.mark.parametrize("name", ["insertion", "deletion"])
def test_the_curve_s_area_is_the_value(name: str) -> None:
    score = counted(name, list(range(6)), steps=7).compute()
    assert score.thresholds == np.linspace(0, 1, 8).tolist()
    assert integrate.trapezoid(score.curve, score.thresholds) == pytest.approx(score.value)
    # maps that claim nothing have no order, hence no curve
    metric = counted(name, [0, 1, 2], steps=7)
    before = metric.compute()
    count(metric, claim(image(3), "empty"), image(3))
    assert metric.compute().curve == before.curve
    assert metric.compute().value != before.value


#: those whose definition needs every image's boxes and scores until the end
GROW = {"voc_ap", "box_ap"}


def held(metric: Metric) -> int:
    """Numbers held, but for the ids of images that refuse a second count."""
    state = {key: value for key, value in vars(metric).items() if key != "_seen"}
    return len(pickle.dumps(state))


@pytest.mark.parametrize("name", METRICS)
def test_memory_does_not_grow_with_images(name: str) -> None:
    metric = counted(name, list(range(4)))
    if isinstance(metric, FaithfulnessMetric):
        metric = pickle.loads(pickle.dumps(metric))  # without its classifier
        metric.attach(Oracle())
    before = held(metric)
    for seed in range(4, 64):
        count(metric, claim(image(seed), "noisy"), image(seed))
    grown = held(metric) - before
    # a large count takes some bytes more than a small one
    assert grown > 60 * 50 if name in GROW else grown < 64
