"""Each metric against a slow twin written straight from its definition, with its default options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.measure

from tests.metrics.reference import PairOfMasks
from tests.metrics.test_faithfulness import FAITHFULNESS_TWINS
from wsod.metrics import METRICS, Metric
from wsod.types import AttentionMaps, Sample

CLASSES, SIZE = 3, (20, 26)
Array = np.ndarray
Case = tuple[Array, Sample, int, list[int]]


class Masks(PairOfMasks):
    """One object's pixels a class, some pixels void."""

    def __init__(self, truth: Array) -> None:
        super().__init__(truth > 0, truth < 0)
        self.truth = truth

    def of(self, label: int) -> Array:
        return self.truth == label + 1

    def semantic(self) -> Array:
        return self.truth


def cases() -> list[Case]:
    """(score map in [0, 1], sample, label, ranking), several of one image in a row."""
    found: list[Case] = []
    for seed in range(14):
        rng = np.random.default_rng(seed)
        labels = np.sort(rng.choice(CLASSES, 1 + seed % 3, replace=False))
        truth, boxes, owners = np.zeros(SIZE, np.int64), [], []
        for label in labels:
            for _ in range(1 + seed % 2):
                x0, y0 = rng.integers(0, 16), rng.integers(0, 12)
                x1, y1 = x0 + rng.integers(3, 10), y0 + rng.integers(3, 8)
                truth[y0:y1, x0:x1] = label + 1
                boxes.append([x0, y0, x1, y1])
                owners.append(label)
        truth[rng.random(SIZE) < 0.03] = -1
        sample = Sample(
            f"{seed:02d}", None, SIZE, boxes, owners, rng.random(len(owners)) < 0.2, masks=Masks(truth)
        )
        ranking = rng.permutation(CLASSES).tolist()
        for label in labels:
            values = (truth == label + 1) + rng.random(SIZE) * (0.4 + 0.15 * seed)
            found.append((np.round(values, 2), sample, int(label), ranking))
    return found


def minmax(values: Array) -> Array:
    values = values - values.min()
    return values / values.max()


def overlap(a: Array, b: Array) -> float:
    masks = np.zeros((2, *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, (a, b), strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def components(mask: Array) -> list[tuple[float, ...]]:
    regions = skimage.measure.regionprops(skimage.measure.label(mask, connectivity=2))
    return [(r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]) for r in regions]


def largest(mask: Array) -> list[tuple[float, ...]]:
    cv2 = pytest.importorskip("cv2")
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    if not contours:
        return []
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return [(x, y, x + w, y + h)]


def hit_table(boxes_of: Callable[[Array], list[Any]], iou: float, ts: Array, exact: bool = False) -> Array:
    """(cases, thresholds) does any box hit, of the bytes' or of the scores' own mask."""
    table = []
    for values, sample, label, _ in cases():
        scores = minmax(values)
        bytes_ = (scores * 255).astype(np.uint8)
        row = []
        for t in ts:
            boxes = boxes_of(scores > t if exact else bytes_ > int(t * 255))
            truth = sample.boxes[sample.labels == label]
            row.append(any(overlap(a, b) >= iou for a in boxes for b in truth))
        table.append(row)
    return np.array(table)


TS = np.arange(0, 1, 0.05)


def max_box_acc() -> float:
    return float(hit_table(largest, 0.5, TS).mean(0).max())


def max_box_acc_v2() -> float:
    return float(np.mean([hit_table(components, d, TS).mean(0).max() for d in (0.3, 0.5, 0.7)]))


def topk(k: int) -> float:
    hits, images = hit_table(largest, 0.5, TS), {}
    for row, (_, sample, label, ranking) in zip(hits, cases(), strict=True):
        own = images.setdefault(sample.image_id, np.zeros(len(TS), bool))
        own |= row & (label in ranking[:k])
    return float(np.mean(list(images.values()), axis=0).max())


def best_boxes() -> list[tuple[Sample, int, list[tuple[float, Any]]]]:
    found = []
    for values, sample, label, _ in cases():
        scores = minmax(values)
        mask = scores > 0.75
        labelled = skimage.measure.label(mask, connectivity=2)
        own = []
        for n, region in enumerate(skimage.measure.regionprops(labelled), 1):
            box = (region.bbox[1], region.bbox[0], region.bbox[3], region.bbox[2])
            own.append((scores[labelled == n].max(), (labelled == n).sum(), box))
        found.append((sample, label, [(s, box) for s, _, box in sorted(own, reverse=True)]))
    return found


def class_mean(values: list[tuple[int, float]]) -> float:
    labels = {label for label, _ in values}
    return float(np.mean([np.mean([v for c, v in values if c == label]) for label in labels]))


def corloc() -> float:
    hits = []
    for sample, label, boxes in best_boxes():
        truth = sample.boxes[sample.labels == label]
        hits.append((label, float(max(overlap(boxes[0][1], b) for b in truth) >= 0.5)))
    return class_mean(hits)


def corloc_image() -> float:
    seen: dict[str, float] = {}
    for sample, _, boxes in best_boxes():  # the lowest label's best: every map's maximum is 1
        best = max(overlap(boxes[0][1], b) for b in sample.boxes)
        seen.setdefault(sample.image_id, float(best >= 0.5))
    return float(np.mean(list(seen.values())))


def pointing_game() -> float:
    hits = []
    for values, sample, label, _ in cases():
        own = sample.labels == label
        if sample.difficult[own].all():
            continue
        y, x = divmod(int(values.ravel().tolist().index(values.max())), SIZE[1])
        near = False
        for x0, y0, x1, y1 in sample.boxes[own].astype(int):
            near |= any((u - x) ** 2 + (v - y) ** 2 < 9 for v in range(y0, y1) for u in range(x0, x1))
        hits.append((label, float(near)))
    return class_mean(hits)


def energy_pointing_game() -> float:
    shares = []
    for values, sample, label, _ in cases():
        inside = np.zeros(SIZE, bool)
        for x0, y0, x1, y1 in sample.boxes[sample.labels == label].astype(int):
            inside[y0:y1, x0:x1] = True
        scores = minmax(values)
        shares.append(scores[inside].sum() / scores.sum())
    return float(np.mean(shares))


def mask_iou() -> float:
    table = []
    for values, sample, label, _ in masked_cases():
        truth, void = sample.masks.of(label), sample.masks.ignore(label)  # type: ignore[union-attr]
        claims = [(minmax(values) > t) & ~void for t in TS]
        table.append([(c & truth).sum() / (c | truth).sum() for c in claims])
    return float(np.mean(table, axis=0).max())


def masked_cases() -> list[Case]:
    """Cases whose class has a visible pixel left."""
    return [case for case in cases() if case[1].masks.of(case[2]).any()]  # type: ignore[union-attr]


def pxap() -> float:
    true, scores = [], []
    for values, sample, label, _ in cases():
        kept = ~sample.masks.ignore(label)  # type: ignore[union-attr]
        true.append(sample.masks.of(label)[kept])  # type: ignore[union-attr]
        scores.append(minmax(values)[kept])
    truth, pixels = np.concatenate(true), np.concatenate(scores)
    area, before = 0.0, 0.0
    for t in [1.0, *TS[::-1]]:
        claim = pixels >= t
        recall = (claim & truth).sum() / truth.sum()
        if claim.any():
            area += (claim & truth).sum() / claim.sum() * (recall - before)
        before = recall
    return area


def miou() -> float:
    images: dict[str, tuple[Sample, dict[int, Array]]] = {}
    for values, sample, label, _ in cases():
        images.setdefault(sample.image_id, (sample, {}))[1][label] = minmax(values)
    means = []
    for t in TS:
        confusion = np.zeros((CLASSES + 1, CLASSES + 1))
        for sample, maps in images.values():
            stack = np.full((CLASSES + 1, *SIZE), -1.0)
            stack[0] = t
            for label, scores in maps.items():
                stack[label + 1] = scores
            truth, prediction = sample.masks.semantic(), stack.argmax(0)  # type: ignore[union-attr]
            np.add.at(confusion, (truth[truth >= 0], prediction[truth >= 0]), 1)
        hit = np.diag(confusion)
        means.append(np.mean(hit / (confusion.sum(0) + confusion.sum(1) - hit)))
    return float(max(means))


def miou_atcon() -> float:
    cv2 = pytest.importorskip("cv2")
    ious = []
    for values, sample, label, _ in cases():
        a = minmax(cv2.resize(values, (256, 256), interpolation=cv2.INTER_NEAREST))
        a = a - (np.median(a) - 0.5)
        a = np.clip(a, 0, a.mean() + 2 * a.std())
        claim = a / a.max() > 0.5
        inside = np.zeros((256, 256), bool)
        for x0, y0, x1, y1 in sample.boxes[sample.labels == label]:
            for i in range(256):
                for j in range(256):
                    sx, sy = 256 / SIZE[1], 256 / SIZE[0]
                    inside[i, j] |= (x0 + 1) * sx < j < x1 * sx and (y0 + 1) * sy < i < y1 * sy
        ious.append((claim & inside).sum() / (claim | inside).sum())
    return float(np.mean(ious))


def attribution(rule: Callable[[Array, Array], float]) -> Callable[[], float]:
    def twin() -> float:
        scores = []
        for values, sample, label, _ in masked_cases():
            kept = ~sample.masks.ignore(label)  # type: ignore[union-attr]
            scores.append(rule(minmax(values)[kept], sample.masks.of(label)[kept]))  # type: ignore[union-attr]
        return float(np.mean(scores))

    return twin


def mass(a: Array, s: Array) -> float:
    return float(a[s].sum() / a.sum())


def rank(a: Array, s: Array, k: int = 0) -> float:
    k = k or int(s.sum())
    order = sorted(range(len(a)), key=lambda i: (-a[i], i))
    return float(np.mean([s[i] for i in order[:k]]))


def auc(a: Array, s: Array) -> float:
    inside, outside = a[s][:, None], a[~s][None, :]
    return float(((inside > outside) + 0.5 * (inside == outside)).mean())


def average_precisions(needed: float) -> list[float]:
    """AP by class, every box against every truth, highest score first."""
    found = best_boxes()
    aps = []
    for label in range(CLASSES):
        images = {sample.image_id: sample for _, sample, c, _ in cases() if c == label}
        ranked = [
            (-score, sample.image_id, n, box)
            for sample, c, own in found
            for n, (score, box) in enumerate(own)
            if c == label
        ]
        taken, outcome = set(), []
        for _, image, _, box in sorted(ranked):
            truth = images[image].boxes[images[image].labels == label]
            difficult = images[image].difficult[images[image].labels == label]
            overlaps = [overlap(box, b) for b in truth]
            best = int(np.argmax(overlaps))
            if overlaps[best] > needed and difficult[best]:
                continue
            outcome.append(overlaps[best] > needed and (image, best) not in taken)
            if outcome[-1]:
                taken.add((image, best))
        n = sum(((s.labels == label) & ~s.difficult).sum() for s in images.values())
        true = np.cumsum(outcome)
        precision, recall = true / np.arange(1, len(true) + 1), true / n
        area, before = 0.0, 0.0
        for r in np.unique(recall):
            area += (r - before) * precision[recall >= r].max()
            before = r
        aps.append(area)
    return aps


SWEPT = {"thresholds": tuple(TS.tolist())}
HIGH = {"threshold": 0.75}


def jaccard() -> float:
    """Otsu's threshold by trying each of 256 bins' centres for the largest variance between the parts."""
    found = []
    for values, sample, label, _ in masked_cases():
        scores = minmax(values)
        edges = np.linspace(0, 1, 257)
        bins = np.minimum((scores * 256).astype(int), 255)
        centres = (edges[:-1] + edges[1:]) / 2
        best, level = -1.0, 0.0
        for cut in range(255):
            low, high = centres[bins[bins <= cut]], centres[bins[bins > cut]]
            if len(low) and len(high):
                between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
                if between > best * (1 + 1e-12):
                    best, level = between, centres[cut]
        truth, void = sample.masks.of(label), sample.masks.ignore(label)  # type: ignore[union-attr]
        claim = scores > level
        found.append((claim & truth & ~void).sum() / ((claim | truth) & ~void).sum())
    return float(np.mean(found))


TWINS: dict[str, tuple[Callable[[], float], dict[str, Any]]] = {
    "max_box_acc": (max_box_acc, SWEPT),
    "max_box_acc_v2": (max_box_acc_v2, SWEPT),
    "gt_known_loc": (max_box_acc, SWEPT),
    "top1_loc": (lambda: topk(1), SWEPT),
    "top5_loc": (lambda: topk(5), SWEPT),
    "corloc": (corloc, HIGH),
    "corloc_image": (corloc_image, HIGH),
    "pointing_game": (pointing_game, {"tolerance": 3.0}),
    "energy_pointing_game": (energy_pointing_game, {}),
    "mask_iou": (mask_iou, SWEPT),
    "pxap": (pxap, SWEPT),
    "miou": (miou, SWEPT),
    "miou_atcon": (miou_atcon, {}),
    "voc_ap": (lambda: float(np.mean(average_precisions(0.3))), {**HIGH, "iou": 0.3}),
    "attribution_localization": (attribution(mass), {}),
    "relevance_mass": (attribution(mass), {}),
    "relevance_rank": (attribution(rank), {}),
    "topk_intersection": (attribution(lambda a, s: rank(a, s, 30)), {"k": 30}),
    "auc": (attribution(auc), {}),
    "jaccard": (jaccard, {}),
}


def test_every_metric_has_a_twin() -> None:
    # COCO's AP is computed by pycocotools itself
    assert set(TWINS) | set(FAITHFULNESS_TWINS) | {"box_ap"} == set(METRICS)


def count(metric: Metric) -> None:
    images: dict[str, list[Case]] = {}
    for case in cases():
        images.setdefault(case[1].image_id, []).append(case)
    for own in images.values():
        _, sample, _, ranking = own[0]
        values = np.stack([case[0] for case in own])
        labels = np.array([case[2] for case in own])
        metric.update(AttentionMaps(sample.image_id, SIZE, labels, values, np.array(ranking)), sample)


@pytest.mark.parametrize("name", TWINS)
def test_metric_equals_its_twin(name: str) -> None:
    twin, options = TWINS[name]
    metric = METRICS[name](classes=CLASSES, **options)
    count(metric)
    value = twin()
    assert 0.05 < value <= 1
    assert metric.compute().value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("name", "boxes_of"), [("max_box_acc", largest), ("max_box_acc_v2", components)])
@pytest.mark.slow
def test_exact_thresholds_cut_the_scores_themselves(
    name: str, boxes_of: Callable[[Array], list[Any]]
) -> None:
    ts = np.arange(0.6, 0.75, 0.001)  # several to a byte
    options: dict[str, Any] = {"classes": CLASSES, "thresholds": tuple(ts.tolist())}
    exact, bytes_ = (METRICS[name](**options, exact=value) for value in (True, False))
    for metric in (exact, bytes_):
        count(metric)
    ious = (0.5,) if name == "max_box_acc" else (0.3, 0.5, 0.7)
    expected = [hit_table(boxes_of, iou, ts, exact=True).mean(0).tolist() for iou in ious]
    curve = exact.compute().curve
    assert expected == (list(curve.values()) if isinstance(curve, dict) else [curve])
    assert curve != bytes_.compute().curve
