"""The WSOL benchmark's lists: real ones at full size, against a naive reading; masks with ignore regions."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED, needs_shared
from tests.data.files import write_image, write_mask, write_wsol
from wsod.data import check, open_dataset
from wsod.data.wsol import Wsol
from wsod.errors import ConfigError, DataError


@needs_shared
@pytest.mark.slow
def test_imagenet_lists_at_full_size() -> None:
    assert SHARED is not None
    path = SHARED / "data/wsol_metadata/ILSVRC_test"
    dataset = open_dataset(f"wsol:{path}")
    assert (len(dataset), len(dataset.classes), dataset.split, dataset.task) == (
        50000,
        1000,
        "all",
        "multiclass",
    )
    boxes = 0
    expected: dict[str, list[list[float]]] = {}
    for line in gzip.decompress((path / "localization.txt.gz").read_bytes()).decode().split():
        name, *corners = line.split(",")
        expected.setdefault(name, []).append([float(corner) for corner in corners])
    for sample in dataset:
        # corners exactly as listed: the benchmark rescales these numbers
        assert sample.boxes.tolist() == expected[sample.image_id]
        boxes += len(sample.boxes)
    assert boxes == 80477
    assert open_dataset(f"wsol:{path.parent}").split == "ILSVRC_test"


@needs_shared
@pytest.mark.parametrize(
    ("name", "images", "boxes", "classes"), [("ilsvrc_val_mini", 52, 100, 1000), ("cub_mini", 13, 13, 194)]
)
def test_real_images(name: str, images: int, boxes: int, classes: int) -> None:
    assert SHARED is not None
    root = SHARED / "data/wsol_real"
    names = f",classes_file={root}/imagenet_class_names.txt" if classes == 1000 else ""
    dataset = open_dataset(f"wsol:{root}/{name}/metadata,{root}/{name}/images{names}")
    report = check(dataset)
    assert (report.images, report.boxes, report.faults) == (images, boxes, [])
    assert len(dataset.classes) == classes


@needs_shared
def test_real_cub_masks_as_mask_lists(tmp_path: Path) -> None:
    assert SHARED is not None
    root = SHARED / "data/wsol_real/cub_mask_mini"
    ids = sorted(path.name for path in root.glob("*.jpg"))
    write_wsol(
        tmp_path,
        image_ids="\n".join(ids),
        class_labels="\n".join(f"{name},0" for name in ids),
        image_sizes="",
        localization="\n".join(f"{name},{name[:-4]}_mask.png," for name in ids),
    )
    dataset = Wsol(tmp_path, root)
    report = check(dataset)
    assert (report.images, report.masked, report.faults) == (4, 4, [])
    for sample in dataset:
        assert 0.02 < sample.masks.of(0).mean() < 0.8
        assert sample.masks.of(0).shape == sample.size
        assert not sample.masks.ignore(0).any()


def test_small_lists(tmp_path: Path) -> None:
    dataset = Wsol(write_wsol(tmp_path / "m"))
    assert dataset.ids == ("val/x.png", "val/y,z.png")
    assert dataset.classes == ("0", "1", "2", "3")
    first, second = dataset
    assert first.boxes.tolist() == [[0, 0, 5, 5]]
    assert first.size == (10, 20)
    assert second.boxes.tolist() == [[1, 2, 20, 10], [3, 3, 4, 4]]
    assert second.labels.tolist() == [0, 0]
    assert not dataset.has_images
    (tmp_path / "names.txt").write_text("a\na\nb\nc\nd\n")
    assert Wsol(tmp_path / "m", classes_file=tmp_path / "names.txt").classes == ("a", "a", "b", "c", "d")


def test_splits_are_folders_of_lists(tmp_path: Path) -> None:
    for folder in ("CUB/test", "CUB/val", "ILSVRC/test"):
        write_wsol(tmp_path / folder)
    assert Wsol(tmp_path / "CUB").splits == ("test", "val")
    assert Wsol(tmp_path / "CUB").split == "test"
    assert Wsol(tmp_path).splits == ("CUB/test", "CUB/val", "ILSVRC/test")
    assert Wsol(tmp_path, split="CUB/val").directory == tmp_path / "CUB/val"
    with pytest.raises(ConfigError, match="CUB/val"):
        Wsol(tmp_path, split="CUB/vall")


def test_without_localization_there_are_labels(tmp_path: Path) -> None:
    sample = Wsol(write_wsol(tmp_path, localization=""))[0]
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.tolist() == [3]


def write_masks(root: Path) -> Path:
    """Image x with two masks and an ignore region at twice the scale, image y with one mask."""
    write_wsol(
        root,
        image_sizes="",
        image_ids="x.png\ny.png",
        class_labels="x.png,1\ny.png,0",
        localization="x.png,x_1.png,x_i.png\nx.png,x_2.png,\ny.png,y_1.png,",
    )
    for name in ("x", "y"):
        write_image(root / f"{name}.png")
    one, two, ignored = np.zeros((3, 10, 20))
    one[:2], two[4, 3:5], ignored[1:6, :4] = 255, 1, 255
    write_mask(root / "x_1.png", one)
    write_mask(root / "x_2.png", two)
    write_mask(root / "x_i.png", ignored.repeat(2, 0).repeat(2, 1))
    write_mask(root / "y_1.png", two)
    return root


def test_masks_are_joined_and_ignored_where_no_mask_is(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    for dataset in (Wsol(root, root), Wsol(root), Wsol(root, masks=root)):
        sample = dataset[0]
        assert sample.size == (10, 20)
        assert sample.labels.tolist() == [1]
        assert len(sample.boxes) == 0
        assert sample.masks.of(1).sum() == 42
        assert sample.masks.of(0).sum() == 0
        expected = np.zeros((10, 20), bool)
        expected[2:6, :4] = True
        expected[4, 3] = False
        assert np.array_equal(sample.masks.ignore(1), expected)
        assert set(np.unique(sample.masks.semantic())) == {-1, 0, 2}
        assert not dataset[1].masks.ignore(0).any()


def test_masks_of_another_shape_are_a_fault(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    write_mask(root / "y_1.png", np.ones((20, 20)))
    with pytest.raises(DataError, match=r"y_1\.png: expected a mask shaped as 20x10, got 20x20"):
        Wsol(root, root)[1].masks.of(0)
