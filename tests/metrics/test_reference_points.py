"""The pointing game and CorLoc equal the public implementations' numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.conftest import needs_shared
from tests.metrics.reference import PairOfMasks, group, maps_of
from wsod.errors import DataError
from wsod.metrics import CorLoc, CorLocImage, PointingGame
from wsod.metrics.pointing_game import is_difficult_pair
from wsod.scoremaps import MapProcessing
from wsod.types import Sample

pytestmark = needs_shared


def coco_masks(shape: tuple[int, int], annotations: list[dict[str, Any]], category: int) -> PairOfMasks:
    """The pixels of a category's objects, and of its crowds."""
    masks = [np.zeros(shape, bool), np.zeros(shape, bool)]
    for annotation in annotations:
        if annotation["category_id"] == category:
            rle = annotation["segmentation"]
            if isinstance(rle, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(rle, *shape))
            elif isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, *shape)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, on NumPy 2
                masks[annotation["iscrowd"]] |= coco_mask.decode(rle).astype(bool)
    return PairOfMasks(*masks)


def voc_sample(image: dict[str, Any], classes: list[str]) -> Sample:
    objects = image["objects"]
    boxes = np.array([o["bndbox"] for o in objects], np.float64) - [1, 1, 0, 0]
    return Sample(
        image.get("filename", image.get("id")),
        None,
        (image["height"], image["width"]) if "height" in image else tuple(image["size_wh"][::-1]),
        boxes,
        np.array([classes.index(o["name"]) for o in objects]),
        np.array([o["difficult"] for o in objects]),
    )


@pytest.mark.parametrize("subset", ["all", "difficult"])
def test_pointing_on_voc(subset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, arrays, expected = group("pointing")
    flags = inputs["voc_difficult_flags"]
    wanted = expected["voc"][subset]
    # the vectors' flags are arbitrary, to test the bookkeeping; the rule itself is tested apart
    monkeypatch.setattr(
        "wsod.metrics.pointing_game.is_difficult_pair",
        lambda sample, label: bool(flags.get(sample.image_id.split(".")[0], [1] * 20)[label]),
    )
    results = []
    metrics = {
        kind: PointingGame(
            classes=20,
            processing=MapProcessing(normalise="none"),
            subset="difficult" if subset == "difficult" else "all",
            smooth=0.02 if kind == "smooth" else 0.0,
            unseen="zero",
        )
        for kind in ("plain", "smooth")
    }
    for i, pair in enumerate(inputs["voc_pairs"]):
        image = inputs["voc_images"][pair["image"]]
        # pairs come one by one, images are counted once: each pair is an image here
        sample = voc_sample({**image, "filename": f"{image['filename']}/{i}"}, inputs["voc_classes"])
        metric = metrics["smooth" if pair["kind"] == "smooth" else "plain"]
        maps = maps_of(sample, arrays[pair["array"]], [pair["class_id"]])
        evidence = metric.update(maps, sample)
        results.append(0 if not evidence else (1 if evidence[pair["class_id"]] else -1))
        assert list(metric.point(maps, 0)) == expected["voc"]["points"][i]
    assert results == wanted["results"]
    metrics["smooth"].smooth = metrics["plain"].smooth
    metrics["plain"].merge(metrics["smooth"])
    score = metrics["plain"].compute()
    np.testing.assert_allclose(score.value, wanted["accuracy"], rtol=1e-12)
    for label, accuracy in (score.per_class or {}).items():
        np.testing.assert_allclose(accuracy, wanted["class_accuracies"][label], rtol=1e-12)
    assert score.count == sum(wanted["hits"]) + sum(wanted["misses"])


def test_pointing_on_coco_masks() -> None:
    inputs, arrays, expected = group("pointing")
    coco, wanted = inputs["coco"], expected["coco"]["all"]
    metric = PointingGame(
        classes=80,
        processing=MapProcessing(normalise="none"),
        truth="masks",
        crowd=True,
        unseen="zero",
    )
    results = []
    for i, pair in enumerate(inputs["coco_pairs"]):
        image = next(image for image in coco["images"] if image["id"] == pair["image_id"])
        shape = (image["height"], image["width"])
        annotations = [a for a in coco["annotations"] if a["image_id"] == pair["image_id"]]
        masks = coco_masks(shape, annotations, pair["category_id"])
        assert (masks.foreground | masks.ignored).sum() == expected["coco"]["mask_pixels"][i]
        sample = Sample(str(i), None, shape, labels=np.array([pair["class_id"]]), masks=masks)
        maps = maps_of(sample, arrays[pair["array"]], [pair["class_id"]])
        evidence = metric.update(maps, sample)
        results.append(1 if evidence[pair["class_id"]] else -1)
        assert list(metric.point(maps, 0)) == expected["coco"]["points"][i]
    assert results == wanted["results"]
    np.testing.assert_allclose(metric.compute().value, wanted["accuracy"], rtol=1e-12)


def test_pointing_tolerance_is_strict() -> None:
    _, _, expected = group("pointing")
    metric = PointingGame(classes=1)
    sizes = (100, 100)
    for i, (dx, dy, result) in enumerate(expected["boundary_offsets_hit"]):
        for sx, sy in ((1, 1), (-1, 1), (1, -1)):
            sample = Sample(f"{i}{sx}{sy}", None, sizes, np.array([[50, 50, 51, 51]]), np.array([0]))
            values = np.zeros(sizes)
            values[50 + sy * dy, 50 + sx * dx] = 1
            assert metric.update(maps_of(sample, values), sample) == {0: float(result == 1)}


def test_difficult_pairs_by_list(tmp_path: Path) -> None:
    box, labels = np.array([[0, 0, 9, 9], [0, 0, 9, 9]]), np.array([0, 1])
    sample = Sample("a.jpg", None, (9, 9), box, labels)
    maps = maps_of(sample, np.stack([np.eye(9)] * 2), (0, 1))
    (tmp_path / "flags.txt").write_text("a\t0\t1\nb\t1\t0\n")
    metric = PointingGame(classes=2, subset="difficult", flags=tmp_path / "flags.txt")
    assert set(metric.update(maps, sample)) == {1}
    other = Sample("c.jpg", None, (9, 9), box, labels)
    assert set(metric.update(maps_of(other, maps.values, (0, 1)), other)) == {0, 1}
    for text in ("a 0", "a 0 2"):
        (tmp_path / "flags.txt").write_text(text)
        with pytest.raises(DataError, match=r"flags\.txt: a: expected 0 or 1 for 2 classes"):
            PointingGame(classes=2, subset="difficult", flags=tmp_path / "flags.txt").update(maps, sample)


def test_difficult_pairs_by_rule() -> None:
    def sample(*objects: tuple[list[int], int, int]) -> Sample:
        boxes, labels, difficult = (np.array(column) for column in zip(*objects, strict=True))
        return Sample("a", None, (100, 100), boxes, labels, difficult)

    small, half, quarter = [0, 0, 10, 10], [0, 0, 50, 100], [0, 0, 50, 50]
    assert is_difficult_pair(sample((small, 0, 0), (half, 1, 0)), 0)
    assert not is_difficult_pair(sample((small, 0, 0), (half, 1, 0)), 1)
    assert not is_difficult_pair(sample((small, 0, 0)), 0)
    assert not is_difficult_pair(sample((small, 0, 0), (half, 1, 1)), 0)
    assert not is_difficult_pair(sample((quarter, 0, 0), (half, 1, 0)), 0)
    assert is_difficult_pair(sample((quarter, 0, 1), (small, 0, 0), (half, 1, 0)), 0)


def test_corloc_of_voc_detections() -> None:
    inputs, arrays, expected = group("corloc")
    classes = inputs["classes"]
    metric = CorLoc(classes=len(classes), strict=True, decimals=1)
    for i, image in enumerate(inputs["images"]):
        boxes = arrays[f"boxes_{i:02d}"] + [0, 0, 1, 1]
        scores = arrays[f"scores_{i:02d}"]
        detections = {c: (boxes, scores[:, c]) for c in range(len(classes))}
        metric.update_boxes(detections, voc_sample(image, classes))
    score = metric.compute()
    wanted = expected["dis_eval"]
    assert score.per_class == {classes.index(name): value for name, value in wanted["per_class"].items()}
    np.testing.assert_allclose(score.value, wanted["mean"], rtol=1e-12)


def test_corloc_image_of_lost() -> None:
    inputs, _, expected = group("corloc")
    metric = CorLocImage(classes=len(inputs["classes"]))
    hits = []
    for image, box in zip(inputs["images"], inputs["image_level_boxes"], strict=True):
        sample = voc_sample(image, inputs["classes"])
        hits += metric.update_boxes({0: ([box], [1.0])}, sample).values()
    assert hits == expected["lost"]["int64"]["hits"]
