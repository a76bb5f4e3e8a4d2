"""VOC devkits: real ones, annotation-only ones, other classes; against a naive reading of the XML."""

from __future__ import annotations

import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED, needs_shared
from tests.data.files import voc_object, write_mask, write_voc, xml
from wsod.data import check, open_dataset
from wsod.data.masks import ObjectPngMasks
from wsod.data.voc import VOC_CLASSES, Voc2007, Voc2012
from wsod.errors import ConfigError, DataError


@needs_shared
def test_real_sample_counts_and_splits() -> None:
    assert SHARED is not None
    root = SHARED / "data/voc_real"
    sizes = {split: len(open_dataset(f"voc2012:{root}", split)) for split in ("train", "val", "trainval")}
    assert sizes == {"train": 65, "val": 81, "trainval": 146}
    assert {split: len(Voc2012(root, f"seg-{split}")) for split in ("train", "val")} == {
        "train": 50,
        "val": 67,
    }
    for place in (root / "VOCdevkit", root / "VOCdevkit/VOC2012"):
        assert Voc2012(place).ids == Voc2012(root).ids
    assert Voc2012(root).classes == VOC_CLASSES
    assert Voc2012(root).split == "val"


@needs_shared
def test_real_sample_is_read_as_the_xml_says() -> None:
    assert SHARED is not None
    dataset = Voc2012(SHARED / "data/voc_real", "trainval")
    objects = 0
    for sample in dataset:
        tree = ElementTree.parse(dataset.directory / "Annotations" / f"{sample.image_id}.xml")
        found = tree.findall("object")
        assert len(found) == len(sample.boxes)
        for element, box, label, difficult in zip(
            found, sample.boxes, sample.labels, sample.difficult, strict=True
        ):
            corners = [
                float(element.find("bndbox").findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")
            ]
            assert (box + np.array([1, 1, 0, 0])).tolist() == corners
            assert element.findtext("name") == VOC_CLASSES[label]
            assert (element.findtext("difficult") == "1") == difficult
        objects += len(found)
    assert objects > 400
    report = check(dataset)
    assert (report.images, report.boxes, report.faults) == (146, objects, [])
    assert sum(report.per_class.values()) == objects
    assert report.masked == 117


@needs_shared
def test_real_masks() -> None:
    assert SHARED is not None
    root = SHARED / "data/voc_real"
    dataset = Voc2012(root, "seg-trainval")
    for sample in dataset:
        raw = np.array(Image.open(dataset.directory / "SegmentationClass" / f"{sample.image_id}.png"))
        present = {int(value) - 1 for value in np.unique(raw) if 0 < value < 255}
        assert present <= set(sample.classes)
        for label in present:
            assert np.array_equal(sample.masks.of(label), raw == label + 1)
            assert np.array_equal(sample.masks.ignore(label), raw == 255)
    boxed = 0
    for sample in dataset:
        if isinstance(sample.masks, ObjectPngMasks):
            for n, box in enumerate(sample.boxes):
                rows, columns = np.nonzero(sample.masks.instance(n))
                tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                # VOC's boxes were drawn apart from its masks, but in the same order
                low, high = np.maximum(box, tight), np.minimum(box, tight)
                both = (high[2:] - low[:2]).prod()
                assert both / ((box[2:] - box[:2]).prod() + (tight[2:] - tight[:2]).prod() - both) > 0.7
                boxed += 1
    assert boxed == 8
    official = sum(sample.masks is not None for sample in Voc2012(root, "trainval"))
    augmented = sum(sample.masks is not None for sample in Voc2012(root, "trainval", masks="aug"))
    assert (official, augmented) == (117, 143)


@pytest.fixture(scope="module")
def voc2007_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if SHARED is None:
        pytest.skip("real data (../shared) is not here")
    folder = tmp_path_factory.mktemp("voc2007")
    (archive,) = (SHARED / "data/voc2007_test_annotations").glob("*.tar.xz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
def test_voc2007_test_annotations_without_images(voc2007_test: Path) -> None:
    dataset = open_dataset(f"voc2007:{voc2007_test}")
    assert dataset.split == "test"
    report = check(dataset)
    assert (report.images, report.boxes, report.difficult, report.faults) == (4952, 14976, 2945, [])
    assert not dataset.has_images
    assert dataset[0].image_path is None
    with pytest.raises(DataError, match="000001: expected an image file"):
        dataset.image(0)


def test_one_based_inclusive_becomes_half_open(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    sample = Voc2012(tmp_path)[0]
    assert sample.boxes.tolist() == [[0, 0, 20, 10]]
    assert sample.labels.tolist() == [VOC_CLASSES.index("dog")]
    assert sample.masks.of(11).sum() == 18
    assert sample.masks.ignore(11).sum() == 6
    assert sample.masks.semantic().min() == -1
    (year / "Annotations/a.xml").write_text(xml(voc_object(box=("2.5", "3", "7.25", "9"), difficult=1)))
    sample = Voc2012(tmp_path)[0]
    assert sample.boxes.tolist() == [[1.5, 2, 7.25, 9]]
    assert sample.difficult.tolist() == [True]


def test_boxes_past_the_edge_by_rounding_are_clipped(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "Annotations/a.xml").write_text(xml(voc_object(box=(0, 0, 21, 10.5))))
    assert Voc2012(tmp_path)[0].boxes.tolist() == [[0, 0, 20, 10]]


def test_an_image_without_objects_and_parts_of_objects(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "Annotations/a.xml").write_text(xml(""))
    sample = Voc2012(tmp_path)[0]
    assert sample.boxes.shape == (0, 4)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    text = xml(voc_object("person", (2, 2, 5, 5)).replace("</object>", part))
    (year / "Annotations/a.xml").write_text(text)
    assert Voc2012(tmp_path)[0].boxes.tolist() == [[1, 1, 5, 5]]


def test_other_classes(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "Annotations/a.xml").write_text(xml(voc_object("yak")))
    with pytest.raises(DataError, match=r"a\.xml: expected a known class, got 'yak'"):
        Voc2012(tmp_path)[0]
    (tmp_path / "names.txt").write_text("gnu\nyak\n")
    assert open_dataset(f"voc2012:{tmp_path},classes_file={tmp_path}/names.txt")[0].labels.tolist() == [1]
    (year / "classes.txt").write_text("yak\ngnu\n")
    assert Voc2012(tmp_path)[0].labels.tolist() == [0]


def test_augmented_masks_only_where_there_is_no_official_one(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    write_mask(year / "SegmentationClassAug/a.png", np.full((10, 20), 12))
    assert Voc2012(tmp_path, masks="aug")[0].masks.of(11).sum() == 18
    (year / "SegmentationClass/a.png").unlink()
    assert Voc2012(tmp_path)[0].masks is None
    assert Voc2012(tmp_path, masks="aug")[0].masks.of(11).sum() == 200


def test_per_class_lists_are_no_splits(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "ImageSets/Main/dog_val.txt").write_text("a  1\n")
    (year / "ImageSets/Main/mini_set.txt").write_text("a\n")
    (year / "ImageSets/Segmentation").mkdir()
    (year / "ImageSets/Segmentation/val.txt").write_text("a\n")
    assert Voc2012(tmp_path).splits == ("mini_set", "val", "seg-val")


def test_split_and_root_errors(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(ConfigError, match=r"split: expected a known split, got 'vall'\. Did you mean 'val'"):
        open_dataset(f"voc2012:{tmp_path}", "vall")
    with pytest.raises(DataError, match="VOC2007"):
        Voc2007(tmp_path)
    (tmp_path / "VOC2012/ImageSets/Main/val.txt").unlink()
    with pytest.raises(DataError, match="ImageSets: expected lists such as"):
        Voc2012(tmp_path)
