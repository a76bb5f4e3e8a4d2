"""One's own images: each kind of annotation, names, splits, orientation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED, needs_shared
from tests.data.files import write_folder, write_image, write_mask
from wsod.data import check, open_dataset
from wsod.data.folder import Folder
from wsod.errors import DataError

BOXES = "image,label,x0,y0,x1,y1,difficult\na.png,dog,0,0,20,10,1\nsub/b,cat,1.5,2,3,4,\na,cat,2,2,4,4,0\n"


def test_boxes_csv(tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{write_folder(tmp_path, boxes_csv=BOXES)}")
    assert (dataset.ids, dataset.classes, dataset.task) == (("a", "sub/b"), ("cat", "dog"), "multilabel")
    first, second = dataset
    assert first.boxes.tolist() == [[0, 0, 20, 10], [2, 2, 4, 4]]
    assert first.labels.tolist() == [1, 0]
    assert first.difficult.tolist() == [True, False]
    assert second.boxes.tolist() == [[1.5, 2, 3, 4]]
    assert check(dataset).faults == []


def test_boxes_json_is_the_same(tmp_path: Path) -> None:
    rows = [
        {"image": "a", "label": "dog", "x0": 0, "y0": 0, "x1": 20, "y1": 10, "difficult": True},
        {"image": "sub/b.jpg", "label": "cat", "x0": 1.5, "y0": 2, "x1": 3, "y1": 4},
        {"image": "a.png", "label": "cat", "x0": 2, "y0": 2, "x1": 4, "y1": 4},
    ]
    ours = Folder(write_folder(tmp_path / "json", boxes_json=json.dumps(rows)))
    theirs = Folder(write_folder(tmp_path / "csv", boxes_csv=BOXES))
    for one, other in zip(ours, theirs, strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.difficult.tolist() == other.difficult.tolist()


def test_order_of_classes_txt(tmp_path: Path) -> None:
    dataset = Folder(write_folder(tmp_path, boxes_csv=BOXES, classes_txt="yak\ndog\ncat\n"))
    assert dataset[0].labels.tolist() == [1, 2]


def test_masks_give_a_box_for_each_connected_part(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes_txt="dog\ncat\n")
    mask = np.zeros((10, 20))
    mask[1:3, 2:5], mask[3, 5], mask[6:9, 10:12], mask[0, 19] = 1, 1, 1, 2
    mask[9] = 255
    write_mask(root / "masks/a.png", mask)
    dataset = Folder(root)
    first, second = dataset
    # the diagonal neighbour (3, 5) belongs to the first part
    assert first.boxes.tolist() == [[2, 1, 6, 4], [10, 6, 12, 9], [19, 0, 20, 1]]
    assert first.labels.tolist() == [0, 0, 1]
    assert first.masks.of(0).sum() == 13
    assert first.masks.ignore(0).sum() == 20
    assert second.masks is None
    assert len(second.labels) == 0
    assert check(dataset).masked == 1


def test_boxes_and_masks_together(tmp_path: Path) -> None:
    root = write_folder(tmp_path, boxes_csv=BOXES, classes_txt="dog\ncat\n")
    write_mask(root / "masks/sub/b.png", np.ones((10, 20)))
    dataset = Folder(root)
    assert dataset[1].boxes.tolist() == [[1.5, 2, 3, 4]]
    assert dataset[1].masks.of(0).all()


@pytest.mark.parametrize("linked", [("images/sub",), ("masks/sub",), ("images/sub", "masks/sub")])
def test_linked_folders_are_folders(tmp_path: Path, linked: tuple[str, ...]) -> None:
    root = write_folder(tmp_path / "data", classes_txt="cat\n")
    write_mask(root / "masks/sub/b.png", np.ones((10, 20)))
    for number, name in enumerate(linked):
        (root / name).rename(tmp_path / f"elsewhere{number}")
        (root / name).symlink_to(tmp_path / f"elsewhere{number}")
    dataset = Folder(root)
    assert dataset.ids == ("a", "sub/b")
    assert [sample.masks is not None for sample in dataset] == [False, True]


def test_labels_csv(tmp_path: Path) -> None:
    one = Folder(write_folder(tmp_path / "1", labels_csv="image,label\na,dog\nsub/b,cat\n"))
    assert one.task == "multiclass"
    assert [sample.labels.tolist() for sample in one] == [[1], [0]]
    assert one[0].boxes.shape == (0, 4)
    two = Folder(write_folder(tmp_path / "2", labels_csv="image,label\na,dog\na,cat\nsub/b,cat\n"))
    assert two.task == "multilabel"
    assert two[0].labels.tolist() == [1, 0]


def test_folders_named_by_class(tmp_path: Path) -> None:
    for name in ("dog/1.png", "dog/2.png", "cat/1.jpg"):
        write_image(tmp_path / name)
    dataset = Folder(tmp_path)
    assert (dataset.classes, dataset.task) == (("cat", "dog"), "multiclass")
    assert [(sample.image_id, sample.labels.tolist()) for sample in dataset] == [
        ("cat/1", [0]),
        ("dog/1", [1]),
        ("dog/2", [1]),
    ]


def test_splits(tmp_path: Path) -> None:
    root = write_folder(tmp_path, boxes_csv=BOXES, splits__val_txt="sub/b.jpg\n", splits__train_txt="a\n")
    assert Folder(root).splits == ("train", "val")
    assert Folder(root, "val").ids == ("sub/b",)
    # classes are those of the whole data, whatever the split
    assert Folder(root, "val").classes == ("cat", "dog")


def test_orientation_turns_photos_but_not_annotated_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "p").mkdir()
    Image.new("RGB", (20, 10), "red").save(tmp_path / "p/t.jpg", exif=exif)
    photos = Folder(tmp_path)
    assert photos.image(0).size == (10, 20)
    assert photos[0].size == (20, 10)
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\np/t,dog,0,0,20,10\n")
    annotated = Folder(tmp_path)
    assert annotated.image(0).size == (20, 10)
    assert annotated[0].size == (10, 20)


@needs_shared
def test_real_photos_without_annotations() -> None:
    assert SHARED is not None
    dataset = Folder(SHARED / "data/demo_images")
    report = check(dataset)
    assert (report.images, report.boxes, report.faults, dataset.classes) == (9, 0, [], ())


def test_a_folder_of_masks_needs_class_names(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    write_mask(root / "masks/a.png", np.ones((10, 20)))
    with pytest.raises(DataError, match=r"classes\.txt: expected class names"):
        Folder(root)


def test_masks_alone_need_no_images(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks/sub/a.png", np.pad(np.ones((2, 3)), 1))
    (tmp_path / "classes.txt").write_text("thing\n")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (dataset.ids, dataset.has_images) == (("sub/a",), False)
    sample = dataset[0]
    assert (sample.image_path, sample.size, sample.boxes.tolist()) == (None, (4, 5), [[1, 1, 4, 3]])
