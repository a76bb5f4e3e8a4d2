"""COCO instances against pycocotools, on real and on small files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.conftest import SHARED, needs_shared
from tests.data.files import coco_content, write_coco
from wsod.data import check, open_dataset
from wsod.data.coco import Coco, decode_counts, decode_rle

# pycocotools' own decoder, the reference here, is not yet ready for NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REAL = ["annotations/instances_train2017.json", "eval_reference/instances_val2014_100.json"]


@needs_shared
def test_real_sample_counts() -> None:
    assert SHARED is not None
    root = SHARED / "data/coco_real"
    dataset = open_dataset(f"coco:{root}/train2017,{root}/{REAL[0]}")
    report = check(dataset)
    assert (report.images, report.boxes, len(dataset.classes), report.faults) == (50, 470, 80, [])
    assert report.crowd == 5
    assert report.masked == 49
    empty = dataset[dataset.ids.index("000000262284")]
    assert empty.boxes.shape == (0, 4)


@needs_shared
@pytest.mark.parametrize("name", REAL)
@pytest.mark.slow
def test_every_annotation_as_pycocotools_reads_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert SHARED is not None
    path = SHARED / "data/coco_real" / name
    theirs = COCO(path)
    capsys.readouterr()
    ours, count = Coco(path), 0
    assert ours.category_ids == tuple(sorted(theirs.getCatIds()))
    for index, sample in enumerate(ours):
        rows = theirs.loadAnns(theirs.getAnnIds(ours.image_ids[index]))
        assert len(rows) == len(sample.boxes)
        for n, row in enumerate(rows):
            x, y, w, h = row["bbox"]
            assert np.allclose(sample.boxes[n], [x, y, x + w, y + h], rtol=0, atol=1e-9)
            assert ours.category_ids[sample.labels[n]] == row["category_id"]
            assert sample.crowd[n] == row["iscrowd"]
            assert np.array_equal(sample.masks.instance(n), theirs.annToMask(row).astype(bool))
            count += 1
        for label in sample.classes:
            alike = [row for row in rows if row["category_id"] == ours.category_ids[label]]
            union = np.any([theirs.annToMask(row) for row in alike], axis=0)
            single = [theirs.annToMask(row) for row in alike if not row["iscrowd"]]
            assert np.array_equal(sample.masks.of(label) | sample.masks.ignore(label), union)
            assert np.array_equal(sample.masks.of(label), np.any(single, axis=0) if single else union & False)
    assert count == len(theirs.anns)
    assert capsys.readouterr().out == ""


def test_small_file(tmp_path: Path) -> None:
    dataset = Coco(*write_coco(tmp_path, coco_content()))
    # labels in the order of the category ids, not of the file
    assert dataset.classes == ("dog", "cat")
    assert dataset.ids == ("a",)
    sample = dataset[0]
    assert sample.labels.tolist() == [0, 1, 1]
    assert sample.crowd.tolist() == [False, False, True]
    assert sample.boxes[0].tolist() == [2, 3, 6, 8]
    assert np.array_equal(np.argwhere(sample.masks.of(0)).min(0), [3, 2])
    assert sample.masks.of(0).sum() == 20
    # the plain run length: five background, five object, in column order
    column = np.zeros((10, 20), bool)
    column[5:, 0] = True
    assert np.array_equal(sample.masks.of(1), column)
    # the crowd starts at the first pixel: an empty background run, thirty object
    assert np.array_equal(sample.masks.ignore(1) | sample.masks.of(1), _columns(3))
    assert not (sample.masks.ignore(1) & sample.masks.of(1)).any()
    assert sample.masks.semantic()[0, 0] == -1
    assert sample.masks.semantic()[9, 0] == 2
    assert dataset.image(0).size == (20, 10)


def _columns(n: int) -> np.ndarray:
    mask = np.zeros((10, 20), bool)
    mask[:, :n] = True
    return mask


@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(1, 30))
def test_run_lengths_as_pycocotools_decodes_them(counts: list[int], height: int) -> None:
    counts[-1] += -sum(counts) % height
    width = sum(counts) // height
    if not width:
        return
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    expected = coco_mask.decode(packed).astype(bool)
    assert decode_counts(packed["counts"]) == counts
    for form in (counts, packed["counts"], packed["counts"].decode()):
        rle = {"size": [height, width], "counts": form}
        assert np.array_equal(decode_rle(rle, (height, width), "a"), expected)


def test_boxes_past_the_edge_by_rounding_are_clipped(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [-0.5, 3, 20.9, 7.25]
    assert Coco(*write_coco(tmp_path, content))[0].boxes[0].tolist() == [0, 3, 20, 10]


def test_boxes_alone_have_no_masks(tmp_path: Path) -> None:
    content = coco_content()
    for row in content["annotations"]:
        del row["segmentation"], row["iscrowd"]
    content["annotations"][1]["difficult"] = 1
    sample = Coco(*write_coco(tmp_path, content))[0]
    assert sample.masks is None
    assert sample.difficult.tolist() == [False, True, False]
    assert not sample.crowd.any()


def test_names_of_images_stay_unique(tmp_path: Path) -> None:
    content = coco_content()
    content["images"] += [
        {"id": 8, "file_name": "a.jpg", "width": 5, "height": 5},
        {"id": 9, "file_name": "sub/a.jpg", "width": 5, "height": 5},
    ]
    dataset = Coco(*write_coco(tmp_path, content))
    assert dataset.ids == ("a.png", "a.jpg", "sub/a.jpg")
    assert dataset[1].boxes.shape == (0, 4)
    assert Coco(dataset.annotations)[0].image_path is None
