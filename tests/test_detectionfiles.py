"""Boxes made elsewhere through the command line: COCO results and VOC result files, the public numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import SHARED, needs_shared
from tests.metrics.reference import group
from tests.metrics.test_reference_detections import coco_results
from tests.reference_files import evaluate, write_devkit, write_protocol
from wsod.cli import main
from wsod.data import open_dataset
from wsod.detectionfiles import DetectionFiles, is_detections
from wsod.errors import DataError, MapError
from wsod.evaluation import evaluate as run


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.array(got, np.float64), np.array(wanted, np.float64), rtol=1e-9)


def twelve(score: dict[str, Any]) -> list[float | None]:
    first = list(score).index("ap")
    return list(score.values())[first : first + 12]


@needs_shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.slow
def test_coco_s_own_fake_detections(tmp_path: Path, kind: str) -> None:
    """cocoapi's demo prints 0.505, 0.697, … for the boxes, 0.320, 0.562, … for the masks."""
    assert SHARED is not None
    place = SHARED / "data/coco_real/eval_reference"
    config: object = "coco-ap"
    if kind == "segm":
        config = write_protocol(tmp_path / "masks.toml", "coco-ap", "box_ap", overlap="masks")
    data = f"coco:annotations={place / 'instances_val2014_100.json'}"
    score = evaluate(tmp_path, place / f"instances_val2014_fake{kind}100_results.json", data, config)
    printed = {
        "bbox": [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564],
        "segm": [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381],
    }
    assert [round(value or 0.0, 3) for value in twelve(score["box_ap"])] == printed[kind]
    assert score["box_ap"]["value"] == score["box_ap"]["ap"]


@needs_shared
def test_coco_ap_of_the_reference(tmp_path: Path) -> None:
    """All twelve numbers, sizes by the areas in the file; ties in the file's order."""
    inputs, _, expected = group("coco_ap")
    truth = inputs["ground_truth"]
    truth = {**truth, "images": [{**i, "file_name": f"{i['id']:09d}.jpg"} for i in truth["images"]]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(coco_results()))
    data = f"coco:annotations={tmp_path / 'truth.json'}"
    score = evaluate(tmp_path, tmp_path / "found.json", data, "coco-ap")["box_ap"]
    close([np.nan if x is None else x for x in twelve(score)], expected["stats"])
    for name, values in expected["per_class"].items():
        assert score["per_class"].get(name, -1.0) == pytest.approx(values["AP"], rel=1e-9)


def voc_files(root: Path, lines: dict[str, list[str]]) -> Path:
    root.mkdir()
    for name, rows in lines.items():
        (root / f"comp4_det_test_{name}.txt").write_text("\n".join(rows) + "\n")
    return root


@needs_shared
@pytest.mark.parametrize(("protocol", "key"), [("voc-ap-07", "11point"), ("voc-ap-area", "area")])
def test_voc_ap_of_the_reference(tmp_path: Path, protocol: str, key: str) -> None:
    inputs, arrays, expected = group("voc_ap")
    data = write_devkit(tmp_path, {i["id"]: (i["size_wh"], i["objects"]) for i in inputs["images"]})
    lines = {
        name: [
            " ".join([image, *map(repr, map(float, row))])
            for image, row in zip(inputs["detection_image_ids"][name], arrays[f"det_{name}"], strict=True)
        ]
        for name in inputs["classes"]
    }
    score = evaluate(tmp_path, voc_files(tmp_path / "results", lines), data, protocol)["voc_ap"]
    close(score["value"], expected[f"mAP_{key}"])
    for name, values in expected["per_class"].items():
        close(score["per_class"][name], values[f"ap_{key}"])


@needs_shared
def test_corloc_of_pcl_s_own_result_lines(tmp_path: Path) -> None:
    inputs, _, expected = group("corloc")
    data = write_devkit(tmp_path, {i["id"]: (i["size_wh"], i["objects"]) for i in inputs["images"]})
    files = voc_files(tmp_path / "results", expected["dis_eval"]["result_lines"])
    score = evaluate(tmp_path, files, data, "corloc-voc")["corloc"]
    close(score["value"], expected["dis_eval"]["mean"])
    assert score["per_class"] == expected["dis_eval"]["per_class"]


@needs_shared
@pytest.mark.parametrize(("kind", "strict"), [("int64", False), ("float64", True)])
def test_corloc_image_of_lost(tmp_path: Path, kind: str, strict: bool) -> None:
    """Also boxes that leave the image. In float64 LOST's epsilon makes an IoU of exactly .5 a miss."""
    inputs, _, expected = group("corloc")
    data = write_devkit(tmp_path, {i["id"]: (i["size_wh"], i["objects"]) for i in inputs["images"]})
    lines = [
        f"{image['id']} 1 {x0 + 1} {y0 + 1} {x1} {y1}"
        for image, (x0, y0, x1, y1) in zip(inputs["images"], inputs["image_level_boxes"], strict=True)
    ]
    config = write_protocol(tmp_path / "lost.toml", "corloc-image", "corloc_image", strict=strict)
    scores = evaluate(tmp_path, voc_files(tmp_path / "results", {"person": lines}), data, config)
    wanted = expected["lost"][kind]
    assert [case["scores"]["corloc_image"] for case in scores["cases"]] == wanted["hits"]
    close(scores["corloc_image"]["value"] * 100, wanted["corloc_percent"])


@pytest.fixture
def truth(tmp_path: Path) -> str:
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 2, 5, 5], "iscrowd": 0}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return f"coco:annotations={tmp_path / 'truth.json'}"


RESULT = {"image_id": 7, "category_id": 3, "bbox": [2, 2, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "a list of COCO results"),
        ([{**RESULT, "image_id": 8}], "result 0: expected image_id and category_id"),
        ([RESULT, {**RESULT, "category_id": 1}], "result 1: expected image_id and category_id"),
        ([{**RESULT, "bbox": [1, 2, 3]}], "result 0"),
        ([{**RESULT, "bbox": "abcd"}], "result 0"),
        ([{**RESULT, "score": None}], "result 0: expected a finite box and score"),
        ([{**RESULT, "score": 1e999}], "result 0: expected a finite box and score"),
        ([{"image_id": 7, "category_id": 3, "score": 1}], "result 0"),
        ([[]], "result 0"),
        (["x"], "result 0"),
    ],
)
def test_results_that_are_none(tmp_path: Path, truth: str, rows: object, message: str) -> None:
    (tmp_path / "found.json").write_text(json.dumps(rows))
    done = CliRunner().invoke(
        main, ["evaluate", "--maps", str(tmp_path / "found.json"), "--data", truth, "--config", "coco-ap"]
    )
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    assert message in done.stderr
    assert "found.json" in done.stderr


def test_boxes_are_no_maps(tmp_path: Path, truth: str) -> None:
    found = tmp_path / "found.json"
    found.write_text(json.dumps([RESULT]))
    assert run(found, data=truth, config="coco-ap").rows[0].scores["box_ap"]["value"] == pytest.approx(1)
    done = CliRunner().invoke(main, ["evaluate", "--maps", str(found), "--data", truth, "--config", "pxap"])
    assert "expected a protocol that scores boxes" in done.stderr
    # of a protocol with both kinds of metrics those for boxes remain
    scores = run(found, data=truth, config="default", metrics=["corloc_image", "mask_iou"]).rows[0].scores
    assert {name: score["value"] for name, score in scores.items()} == {"corloc_image": 1.0}
    with pytest.raises(DataError, match="COCO data set"):
        DetectionFiles(found, ["a"], ["cat"])
    masks = write_protocol(tmp_path / "masks.toml", "coco-ap", "box_ap", overlap="masks")
    with pytest.raises(MapError, match="expected COCO results with a segmentation each"):
        run(found, data=truth, config=str(masks))


def test_voc_lines_that_are_none(tmp_path: Path) -> None:
    for text in ("a 1 1 1 5", "b 1 1 1 5 5", "a x 1 1 5 5", "a 1 nan 1 5 5"):
        folder = voc_files(tmp_path / text.replace(" ", "_"), {"cat": ["a 1 1 1 5 5", text]})
        assert is_detections(str(folder))
        with pytest.raises(DataError, match=r"comp4_det_test_cat\.txt:2: expected"):
            DetectionFiles(folder, ["a"], ["cat"])
    with pytest.raises(DataError, match="expected a class of the data set"):
        DetectionFiles(voc_files(tmp_path / "dog", {"dog": ["a 1 1 1 5 5"]}), ["a"], ["cat"])
    sample = open_dataset("shapes")[0]
    files = DetectionFiles(
        voc_files(tmp_path / "two_words", {"tv_monitor": [f"{sample.image_id} 0.5 1 1 5 5"]}),
        [sample.image_id],
        ["tv_monitor"],
    )
    found = files.read(sample).found
    assert found[0][0].tolist() == [[0, 0, 5, 5]]
    assert not is_detections(str(tmp_path))
