"""Boxes made elsewhere and lists of house numbers: each bad one refused by name in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.test_svhn import write_hdf5
from wsod.data import open_dataset
from wsod.detectionfiles import DetectionFiles
from wsod.errors import DataError
from wsod.types import Sample

SAMPLE = Sample("a", None, (10, 20), np.array([[0, 0, 3, 4]]), np.array([0]))
SOUND = {"image_id": 7, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}
MASK = {"size": [10, 20], "counts": "X6"}


def without(*names: str, **other: Any) -> dict[str, Any]:
    return {key: value for key, value in {**SOUND, **other}.items() if key not in names}


RESULTS: dict[str, Any] = {
    "no list": {"a": 1},
    "a number": [1],
    "no image": [without("image_id")],
    "another image": [without(image_id=8)],
    "an image of a list": [without(image_id=[7])],
    "no score": [without("score")],
    "a score of text": [without(score="much")],
    "no box": [without("bbox")],
    "a box of three": [without(bbox=[1, 2, 3])],
    "a box of words": [without(bbox=["1", "2", "x", "4"])],
    "a box of nothing": [without(bbox=None)],
    "a box turned round": [without(bbox=[5, 5, -3, 2])],
    "a box without bounds": [without(bbox=[0, 0, float("inf"), 2])],
    "a box beyond numbers": [without(bbox=[0, 0, 10**400, 2])],
    "a polygon without box": [without("bbox", segmentation=[[0, 0, 5, 0, 5, 5]])],
    "a mask of no size": [without("bbox", segmentation={"counts": "X6"})],
    "a mask of odd size": [without("bbox", segmentation={"size": ["10", 20], "counts": "X6"})],
    "a mask of counts that are no text": [without("bbox", segmentation={"size": [10, 20], "counts": [200]})],
    "a mask that ends within": [without("bbox", segmentation={"size": [10, 20], "counts": "01"})],
    "a mask beyond its end": [without("bbox", segmentation={"size": [10, 20], "counts": "0" * 50})],
    "a mask without end": [without("bbox", segmentation={"size": [10, 20], "counts": "o" * 90})],
    "a mask of negative runs": [without("bbox", segmentation={"size": [10, 20], "counts": "O"})],
    "a mask of another image": [without(segmentation={"size": [20, 10], "counts": "X6"})],
    "a mask that lies beside a box": [without(segmentation={"size": [10, 20], "counts": "o" * 90})],
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(RESULTS[kind]))
    with pytest.raises(DataError) as caught:
        DetectionFiles(path, ["a"], ["dog"], [7], [1]).read(SAMPLE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_text_is_read_as_the_number_it_is(tmp_path: Path) -> None:
    """Added as text, "1" and "3" would make a box that ends at 13."""
    path = tmp_path / "found.json"
    path.write_text(
        json.dumps([without(bbox=["1", "2", "3", "4"]), without(segmentation=[[0, 0, 5, 0, 5, 5]])])
    )
    boxes, _ = DetectionFiles(path, ["a"], ["dog"], [7], [1]).read(SAMPLE).found[0]
    assert boxes.tolist() == [[1, 2, 4, 6], [1, 2, 4, 6]]


LINES = [
    "b 0.5 1 2 3 4",
    "a 0.5 1 2 3",
    "a much 1 2 3 4",
    "a nan 1 2 3 4",
    "a 0.5 1 2 3 inf",
    "a 1_0 1 2 3 4",
]


@pytest.mark.parametrize("line", LINES)
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "comp4_det_val_dog.txt").write_text(f"a 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(DataError, match=r"comp4_det_val_dog\.txt:2: expected"):
        DetectionFiles(tmp_path, ["a"], ["dog"])


def struct(root: Path, name: Any = "1.png", **box: Any) -> str:
    """A list of one number of one digit."""
    values = {"label": 3.0, "left": 1.0, "top": 1.0, "width": 5.0, "height": 5.0, **box}
    boxes = np.zeros((1, 1), [(key, object) for key in values])
    boxes[0, 0] = tuple(values.values())
    entries = np.zeros((1, 1), [("name", object), ("bbox", object)])
    entries[0, 0] = (name, boxes)
    (root / "train").mkdir(parents=True)
    savemat(root / "train/digitStruct.mat", {"digitStruct": entries})
    return f"svhn:{root}"


NUMBERS: dict[str, dict[str, Any]] = {
    "a name that climbs": {"name": "../secret.png"},
    "a name from the root": {"name": "/etc/passwd"},
    "no name": {"name": ""},
    "a number as name": {"name": np.array([[3.0]]), "label": np.inf},
    "a label that is no digit": {"label": 11.0},
    "a label between two": {"label": 2.5},
    "a negative label": {"label": -3.0},
    "an infinite label": {"label": np.inf},
    "an edge of no number": {"left": np.nan},
    "a width of text": {"width": "wide"},
    "a height of nothing": {"height": np.zeros((0, 0))},
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_house_numbers_that_are_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"digitStruct\.mat: expected ") as caught:
        open_dataset(struct(tmp_path, **NUMBERS[kind]), "train")
    assert "\n" not in str(caught.value)


def test_a_name_of_odd_digits_is_a_name(tmp_path: Path) -> None:
    assert open_dataset(struct(tmp_path / "a", "²³.png"), "train").ids == ("²³",)
    assert open_dataset(struct(tmp_path / "b", "1" * 5000 + ".png"), "train").ids == ("1" * 5000,)


def test_digits_of_another_kind(tmp_path: Path) -> None:
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 1)) + 300.0, "y": [[1]]})
    with pytest.raises(DataError, match="float64 of shape"):
        open_dataset(f"svhn:{tmp_path}").image(0)


@pytest.mark.parametrize("kind", ["link", "stored elsewhere", "virtual", "endless", "twice"])
def test_house_numbers_that_reach_out_of_their_file(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path / "train")
    write_hdf5(tmp_path / "other")
    path, other = tmp_path / "train/digitStruct.mat", tmp_path / "other/digitStruct.mat"
    with h5py.File(path, "a") as file:
        group = file["#refs#/bbox1"]
        if kind == "twice":
            file["digitStruct/name"][0] = file["digitStruct/name"][1]
        else:
            del group["label"]
        if kind == "link":
            group["label"] = h5py.ExternalLink(str(other), "#refs#/bbox1/label")
        elif kind == "stored elsewhere":
            group.create_dataset("label", (1, 1), "f8", external=[(str(other), 0, 8)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((1, 1), "f8")
            layout[:] = h5py.VirtualSource(str(other), "#refs#/bbox1/label", (1, 1))
            group.create_virtual_dataset("label", layout)
        elif kind == "endless":
            group.create_dataset("label", (10**12, 1), "f8", chunks=(1024, 1))
    with pytest.raises(DataError, match=r"digitStruct\.mat: expected "):
        open_dataset(f"svhn:{tmp_path}", "train")
