"""VOC AP and COCO AP equal the public implementations' numbers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.conftest import needs_shared
from tests.metrics.reference import group
from tests.metrics.test_reference_points import voc_sample
from wsod.metrics import BoxAP, VocAP
from wsod.metrics.box_ap import coco_scores
from wsod.types import Sample

pytestmark = needs_shared


def voc_metric(**options: Any) -> VocAP:
    inputs, arrays, _ = group("voc_ap")
    metric = VocAP(classes=len(inputs["classes"]), **options)
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for label, name in enumerate(inputs["classes"]):
        for image, row in zip(inputs["detection_image_ids"][name], arrays[f"det_{name}"], strict=True):
            found.setdefault(image, {}).setdefault(label, []).append(row)
    for image in inputs["images"]:
        detections = {
            label: (np.array(rows)[:, 1:] - [1, 1, 0, 0], np.array(rows)[:, 0])
            for label, rows in found.get(image["id"], {}).items()
        }
        metric.update_boxes(detections, voc_sample(image, inputs["classes"]))
    return metric


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"method": "11point"}, "ap_11point"),
        ({"method": "area"}, "ap_area"),
        ({"iou": 0.3}, "ap_area_iou30"),
        ({"iou": 0.7}, "ap_area_iou70"),
    ],
)
def test_voc_ap_of_the_devkit(options: dict[str, Any], key: str) -> None:
    inputs, _, expected = group("voc_ap")
    metric = voc_metric(**options)
    score = metric.compute()
    for label, name in enumerate(inputs["classes"]):
        wanted = expected["per_class"][name]
        assert score.per_class is not None
        np.testing.assert_allclose(score.per_class[label], wanted[key], rtol=1e-12)
        if options.get("iou", 0.5) == 0.5:
            recall, precision = metric.curve(label)
            np.testing.assert_allclose(recall, wanted["recall"], rtol=1e-12)
            np.testing.assert_allclose(precision, wanted["precision"], rtol=1e-12)
            assert metric._state["truth"][label] == wanted["npos"]
    if key in ("ap_11point", "ap_area"):
        np.testing.assert_allclose(score.value, expected[f"mAP_{key.removeprefix('ap_')}"], rtol=1e-12)


@pytest.mark.parametrize(("difficult", "key"), [("count", "as_normal"), ("remove", "removed")])
@pytest.mark.parametrize("method", ["area", "11point"])
def test_voc_ap_of_object_detection_metrics(difficult: str, key: str, method: str) -> None:
    inputs, _, expected = group("voc_ap")
    score = voc_metric(difficult=difficult, method=method, strict=False).compute()
    wanted = expected["object_detection_metrics"][f"difficult_{key}"]
    assert score.per_class is not None
    for label, name in enumerate(inputs["classes"]):
        np.testing.assert_allclose(score.per_class[label], wanted[f"ap_{method}"][name], rtol=1e-12)
    np.testing.assert_allclose(score.value, wanted[f"map_{method}"], rtol=1e-12)


def coco_results() -> list[dict[str, Any]]:
    _, arrays, _ = group("coco_ap")
    keys = ("image_id", "category_id")
    return [
        {**dict(zip(keys, map(int, row[:2]), strict=True)), "bbox": row[2:6].tolist(), "score": float(row[6])}
        for row in arrays["detections"]
    ]


def test_coco_scores_are_pycocotools_twelve() -> None:
    inputs, _, expected = group("coco_ap")
    names, per_class = coco_scores(inputs["ground_truth"], coco_results())
    wanted = [np.nan if x in (None, -1) else x for x in expected["stats"]]
    np.testing.assert_allclose(list(names.values()), wanted, rtol=1e-12)
    categories = {c["name"]: c["id"] for c in inputs["ground_truth"]["categories"]}
    for name, values in expected["per_class"].items():
        assert per_class.get(categories[name], -1.0) == pytest.approx(values["AP"], rel=1e-12)


def test_box_ap_through_the_metric() -> None:
    inputs, _, expected = group("coco_ap")
    truth, results = inputs["ground_truth"], coco_results()
    labels = {c["id"]: n for n, c in enumerate(truth["categories"])}
    metrics = [BoxAP(classes=len(labels)) for _ in range(2)]
    for place, image in enumerate(truth["images"]):
        rows = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([r["bbox"] for r in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = Sample(
            f"{image['id']:09d}",
            None,
            (image["height"], image["width"]),
            boxes,
            [labels[r["category_id"]] for r in rows],
            crowd=[r["iscrowd"] for r in rows],
            areas=[r["area"] for r in rows],
        )
        detections = {}
        for category, label in labels.items():
            own = [r for r in results if (r["image_id"], r["category_id"]) == (image["id"], category)]
            found = np.array([r["bbox"] for r in own], np.float64).reshape(-1, 4)
            found[:, 2:] += found[:, :2]
            detections[label] = found, [r["score"] for r in own]
        metrics[place % 2].update_boxes(detections, sample)
    metrics[0].merge(metrics[1])
    score = metrics[0].compute()
    np.testing.assert_allclose(list(score.extra.values()), expected["stats"], rtol=1e-9)
    assert score.count == sum(not a["iscrowd"] for a in truth["annotations"])


def test_a_faster_backend_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where faster-coco-eval is installed it is used; where not, the call is the same."""
    inputs, _, _ = group("coco_ap")
    calls = []

    def without(name: str) -> Any:
        calls.append(name)
        if name == "faster_coco_eval":
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr("wsod.metrics.box_ap.import_module", without)
    plain = coco_scores(inputs["ground_truth"], coco_results())
    assert calls[0] == "faster_coco_eval"
    monkeypatch.undo()
    pytest.importorskip("faster_coco_eval")
    names, per_class = coco_scores(inputs["ground_truth"], coco_results())
    np.testing.assert_array_equal(list(names.values()), list(plain[0].values()))
    assert per_class == pytest.approx(plain[1], rel=1e-12)
