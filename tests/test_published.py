"""Rows that others have printed, from annotations alone: no image, no model."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHARED, needs_shared
from tests.reference_files import evaluate
from wsod.data import open_dataset
from wsod.metrics import METRICS
from wsod.metrics.box_ap import coco_scores
from wsod.protocols import load_protocol

pytestmark = needs_shared


@pytest.fixture(scope="module")
def voc2007(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All 4952 annotations of VOC2007 test."""
    assert SHARED is not None
    root = tmp_path_factory.mktemp("voc")
    packed = SHARED / "data/voc2007_test_annotations/VOCdevkit_VOC2007_test_annotations.tar.xz"
    with tarfile.open(packed) as archive:
        archive.extractall(root, filter="data")
    return f"voc2007:{root}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "printed", "percent", "pairs"),
    [("pointing-voc07", 69.6, 69.63, 7012), ("pointing-voc07-difficult", 42.4, 42.42, 2234)],
)
def test_center_row_of_torchray_on_voc2007(
    tmp_path: Path, voc2007: str, protocol: str, printed: float, percent: float, pairs: int
) -> None:
    score = evaluate(tmp_path, "center", voc2007, protocol)["pointing_game"]
    assert round(100 * score["value"], 1) == printed
    assert round(100 * score["value"], 2) == percent
    assert score["count"] == pairs
    rows = [row for row in load_protocol(protocol).published if row["maps"] == "center"]
    assert rows
    assert {row["value"] for row in rows} == {printed / 100}


def wsol_center(tmp_path: Path, metadata: Path) -> list[dict[str, Any]]:
    data = f"wsol:{metadata}"
    first = evaluate(tmp_path, "center", data, "max-box-acc")["max_box_acc"]
    return [first, evaluate(tmp_path, "center", data, "max-box-acc-v2")["max_box_acc_v2"]]


@pytest.mark.slow
def test_center_row_of_the_wsol_benchmark_on_cub(tmp_path: Path) -> None:
    assert SHARED is not None
    place = SHARED / "reference/wsol_center"
    first, second = wsol_center(tmp_path, place / "CUB_test")
    runs = json.loads((place / "expected.json").read_text())["runs"]
    wanted = next(r for r in runs if (r["centre"], r["sigma"]) == (112.0, 56.0) and r["multi_contour"])
    for name, percent in (("0.3", "30"), ("0.5", "50"), ("0.7", "70")):
        counted = np.rint(np.array(second["curve"][name]) * 5794).astype(int)
        assert counted.tolist() == wanted["num_correct"][percent]
    assert first["curve"] == second["curve"]["0.5"]
    assert round(100 * first["value"], 2) == 59.72
    assert round(100 * second["value"], 2) == 56.97


@pytest.mark.slow
def test_center_row_of_the_wsol_benchmark_on_imagenet(tmp_path: Path) -> None:
    """50 000 images, 80 477 boxes."""
    assert SHARED is not None
    first, second = wsol_center(tmp_path, SHARED / "data/wsol_metadata/ILSVRC_test")
    assert first["count"] == second["count"] == 50_000
    assert round(100 * first["value"], 3) == 54.082
    assert round(100 * second["value"], 3) == 53.447
    assert [round(100 * second[name], 3) for name in ("0.3", "0.5", "0.7")] == [76.824, 54.082, 29.436]


@pytest.mark.slow
def test_coco_s_own_fake_detections() -> None:
    """cocoapi's demo prints 0.505 and 0.697, …, for these boxes."""
    assert SHARED is not None
    place = SHARED / "data/coco_real/eval_reference"
    truth = json.loads((place / "instances_val2014_100.json").read_text())
    found = json.loads((place / "instances_val2014_fakebbox100_results.json").read_text())
    names, _ = coco_scores(truth, found)
    printed = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert [round(value, 3) for value in names.values()] == printed

    masks = json.loads((place / "instances_val2014_fakesegm100_results.json").read_text())
    assert round(next(iter(coco_scores(truth, masks, "segm")[0].values())), 3) == 0.320

    # and through the reader and the metric, image by image
    dataset = open_dataset(f"coco:annotations={place / 'instances_val2014_100.json'}")
    metric = METRICS["box_ap"](classes=len(dataset.classes))
    places: dict[int, dict[int, tuple[list[Any], list[float]]]] = {n: {} for n in dataset.image_ids}
    for row in found:
        x, y, w, h = row["bbox"]
        label = dataset.category_ids.index(row["category_id"])
        boxes, scores = places[row["image_id"]].setdefault(label, ([], []))
        boxes.append([x, y, x + w, y + h])
        scores.append(row["score"])
    for number, sample in zip(dataset.image_ids, dataset, strict=True):
        metric.update_boxes(places[number], sample)
    assert [round(value, 3) for value in metric.compute().extra.values()] == printed
