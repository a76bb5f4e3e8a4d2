"""MaxBoxAcc, MaxBoxAccV2 and Top-k localization equal the public implementations' numbers."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest

from tests.conftest import needs_shared
from tests.metrics.reference import folder, group, maps_of
from wsod.boxes import iou, threshold_sweep
from wsod.metrics import METRICS, GTKnownLoc, MaxBoxAcc, MaxBoxAccV2, Metric, Top1Loc, Top5Loc
from wsod.metrics.truth import boxes_in_frame
from wsod.scoremaps import MapProcessing
from wsod.types import Sample

pytestmark = needs_shared

CUBIC = MapProcessing(frame=224, resize="bicubic-opencv", constant="resized")
AS_IT_IS = MapProcessing(normalise="none")
WSOL: dict[str, Any] = {"holes": True, "edge": 1, "clip": True, "truth": "truncated", "empty": "origin"}
IOUS = (0.3, 0.5, 0.7)


def wsol_metric(step: float, multi: bool, processing: MapProcessing) -> MaxBoxAccV2:
    components: Any = "all" if multi else "largest"
    options = WSOL | {"step": step, "components": components, "ious": IOUS}
    return MaxBoxAccV2(classes=1, processing=processing, **options)


@pytest.mark.parametrize("run", range(4))
@pytest.mark.parametrize("runs", ["runs", "runs_nondyadic"])
@pytest.mark.slow
def test_wsol_boxes(run: int, runs: str) -> None:
    inputs, arrays, expected = group("wsol_boxes")
    wanted = expected[runs][run]
    # score maps come as they are, and low-resolution maps are resized: two processings of one protocol
    low = wsol_metric(wanted["step"], wanted["multi_contour"], CUBIC)
    high = wsol_metric(wanted["step"], wanted["multi_contour"], MapProcessing(frame=224, normalise="none"))
    kept = slice(expected["n_maps"]) if runs == "runs" else slice(expected["n_maps"], None)
    hits_per_image = []
    for entry in inputs["maps"][kept]:
        width, height = entry["size"]
        boxes = entry["boxes"]
        sample = Sample(entry["image_id"], None, (height, width), np.array(boxes), np.zeros(len(boxes)))
        raw = arrays[entry["array"]][entry["index"]]
        full = entry["array"].startswith("full")
        raw = raw / 65535.0 if entry["array"] == "full_u16" else raw
        evidence = (high if full else low).update(maps_of(sample, raw), sample)
        hits_per_image.append(np.asarray(evidence[0]).sum(1))
    counted = low._state["hits"][0] + high._state["hits"][0]
    for i, needed in enumerate(("30", "50", "70")):
        assert counted[i].tolist() == wanted["num_correct"][needed]
        assert [row[i] for row in hits_per_image] == wanted["hits_per_image"][needed]
    high.processing = low.processing
    low.merge(high)
    score = low.compute()
    assert score.count == wanted["cnt"]
    np.testing.assert_allclose(score.value * 100, wanted["mean_over_iou"], rtol=1e-12)
    values = [score.extra[name] * 100 for name in ("0.3", "0.5", "0.7")]
    np.testing.assert_allclose(values, wanted["max_box_acc_30_50_70"], rtol=1e-12)
    for name, percent in zip(("0.3", "0.5", "0.7"), (30, 50, 70), strict=True):
        assert isinstance(score.best_threshold, dict)
        place = wanted["best_threshold_index"][str(percent)]
        assert score.best_threshold[name] == np.arange(0, 1, wanted["step"])[place]


def test_score_maps_have_the_benchmark_s_bytes() -> None:
    inputs, arrays, expected = group("wsol_boxes")
    for entry, u8_sum, u8_max in zip(inputs["maps"], expected["u8_sum"], expected["u8_max"], strict=True):
        if not entry["array"].startswith("full"):
            sample = Sample(entry["image_id"], None, (9, 9))
            maps = maps_of(sample, arrays[entry["array"]][entry["index"]])
            values = (CUBIC.score(maps, 0).scores * 255).astype(np.uint8)
            assert (int(values.sum()), int(values.max())) == (u8_sum, u8_max)


def cub_samples() -> list[Sample]:
    place = folder("wsol_center") / "CUB_test"

    def rows(name: str) -> list[list[str]]:
        with gzip.open(place / f"{name}.txt.gz", "rt") as lines:
            return [line.strip().split(",") for line in lines]

    sizes = {name: (int(height), int(width)) for name, width, height in rows("image_sizes")}
    boxes: dict[str, list[list[float]]] = {}
    for name, *box in rows("localization"):
        boxes.setdefault(name, []).append([float(x) for x in box])
    return [
        Sample(name, None, sizes[name], np.array(boxes[name]), np.zeros(len(boxes[name])))
        for name, *_ in rows("image_ids")
    ]


@pytest.mark.parametrize("which", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_wsol_center_on_cub(which: int) -> None:
    _, _, expected = group("wsol_center")
    run = expected["runs"][which]
    centre, sigma = run["centre"], run["sigma"]
    axis = np.arange(224.0)
    bell = np.exp(-((axis[:, None] - centre) ** 2 + (axis[None, :] - centre) ** 2) / (2 * sigma**2))
    bell -= bell.min()
    bell /= bell.max()
    processing = MapProcessing(frame=224, normalise="none")
    metrics: list[Metric] = [
        MaxBoxAcc(classes=1, processing=processing, **WSOL),
        wsol_metric(0.001, True, processing),
    ]
    cache: dict[Any, Any] = {}
    for sample in cub_samples():
        maps = maps_of(sample, bell)
        object.__setattr__(maps, "cache", cache)  # one map for all images: one sweep for all of them
        for metric in metrics:
            metric.update(maps, sample)
    for i, needed in enumerate(("30", "50", "70")):
        assert metrics[1]._state["hits"][0, i].tolist() == run["num_correct"][needed]
    assert metrics[0]._state["hits"][0, 0].tolist() == run["num_correct"]["50"]
    np.testing.assert_allclose(metrics[0].compute().value * 100, run["max_box_acc_30_50_70"][1], rtol=1e-12)


def topk_samples() -> list[tuple[dict[str, Any], Sample]]:
    inputs, _, _ = group("topk_loc")
    samples = []
    for image in inputs["images"]:
        width, height = image["size_wh"]
        boxes = np.trunc(np.array(image["boxes"], np.float64))
        if image["style"] == "cub":
            boxes[:, 2:] += boxes[:, :2]
        labels = np.full(len(boxes), image["label"])
        samples.append((image, Sample(image["name"], None, (height, width), boxes, labels)))
    return samples


#: TS-CAM's names of what becomes of an image, and ours
WRONG = {
    "right": "right",
    "cls_wrong": "wrong_class",
    "multi_instance": "several_objects",
    "part": "part",
    "more": "more",
    "wrong": "elsewhere",
}


@pytest.mark.parametrize("run", range(8))
def test_topk_loc(run: int) -> None:
    inputs, arrays, expected = group("topk_loc")
    wanted = expected["runs"][run]
    processing = MapProcessing(frame=224, resize="bilinear")
    options: dict[str, Any] = {
        "classes": inputs["n_classes"],
        "processing": processing,
        "thresholds": (wanted["cam_thr"],),
        "edge": 1,
        "truth": "tscam",
    }
    metrics = {
        "loc_gt_known": GTKnownLoc(**options),
        "loc_top1": Top1Loc(**options, strict=True),
        "loc_top5": Top5Loc(**options, strict=True),
    }
    for i, (image, sample) in enumerate(topk_samples()):
        cams = arrays[image["cams"]].astype(wanted["cam_dtype"])
        ranking = np.argsort(-np.array(image["logits"]), kind="stable")
        maps = maps_of(sample, cams, range(len(cams)), ranking)
        assert ranking[:5].tolist() == expected["top5_idx"][i]
        boxes = [
            threshold_sweep(processing.score(maps, label).scores).largest_at(wanted["cam_thr"])[0].tolist()
            for label in (image["label"], *ranking[:5].tolist())
        ]
        assert boxes[0] == wanted["gt_known_box"][i]
        if wanted["top5_boxes"]:  # listed once a type of number
            assert boxes[1:] == wanted["top5_boxes"][i]
        truth = boxes_in_frame(sample.boxes, sample.size, (224, 224), "tscam")
        assert truth.ravel().tolist() == expected["gt_boxes_224"][i]
        assert iou(boxes[0], truth, 1).max() == pytest.approx(wanted["gt_known_iou"][i], rel=1e-12)
        maps = maps_of(sample, cams[image["label"]], [image["label"]], ranking)
        for name, metric in metrics.items():
            evidence = metric.update(maps, sample)
            assert float(np.asarray(evidence[image["label"]]).ravel()[0]) == wanted["per_image"][name][i]
    shares = metrics["loc_top1"].compute().extra
    for theirs, ours in WRONG.items():
        assert shares[ours] * len(inputs["images"]) == pytest.approx(wanted["wrong_details"][theirs])
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric.compute().value, wanted["means"][name], rtol=1e-12)
        assert metric.supervision == ()


def test_registry_names_are_the_result_names() -> None:
    assert {"max_box_acc", "max_box_acc_v2", "gt_known_loc", "top1_loc", "top5_loc"} <= set(METRICS)
