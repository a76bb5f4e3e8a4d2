"""Every fault in data is a DataError whose text names the file at fault, and `check` finds it."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.files import (
    coco_content,
    voc_object,
    write_coco,
    write_folder,
    write_image,
    write_mask,
    write_voc,
    write_wsol,
    xml,
)
from wsod.data import Dataset, check
from wsod.data.coco import Coco
from wsod.data.folder import Folder
from wsod.data.voc import Voc2012
from wsod.data.wsol import Wsol
from wsod.errors import DataError

BOMB = """<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>"""
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


def check_or_open(open_: Callable[[], Dataset]) -> str:
    """All there is to say about the data; at least one thing."""
    try:
        report = check(open_())
    except DataError as error:
        return str(error)
    assert report.faults
    return "\n".join(report.faults)


VOC: dict[str, tuple[str, str, object]] = {
    "not XML": ("Annotations/a.xml", "XML that parses", "<annotation><object>"),
    "empty XML": ("Annotations/a.xml", "XML that parses", ""),
    "entity bomb": ("Annotations/a.xml", "XML that parses", BOMB),
    "entity from a file": ("Annotations/a.xml", "XML that parses", OUTSIDE),
    "other XML": ("Annotations/a.xml", "an <annotation> element", "<html/>"),
    "no XML": ("Annotations/a.xml", "no such file", None),
    "no size": ("Annotations/a.xml", "<size><height>", "<annotation></annotation>"),
    "size of zero": ("Annotations/a.xml", "whole number", xml(voc_object(), 0)),
    "size of words": ("Annotations/a.xml", "a number in", xml(voc_object(), "wide")),
    "another size": ("JPEGImages/a.jpg", "an image of 40x30 as annotated", xml(voc_object(), 40, 30)),
    "unknown class": ("Annotations/a.xml", "Did you mean 'dog'?", xml(voc_object("dogg"))),
    "no class": ("Annotations/a.xml", "<name>", xml(voc_object(""))),
    "box outside": ("Annotations/a.xml", "inside 20x10", xml(voc_object(box=(1, 1, 22, 10)))),
    "negative box": ("Annotations/a.xml", "inside 20x10", xml(voc_object(box=(-1, 1, 5, 10)))),
    "empty box": ("Annotations/a.xml", "non-empty", xml(voc_object(box=(5, 1, 4, 10)))),
    "box beyond the edge": ("Annotations/a.xml", "non-empty", xml(voc_object(box=(21, 1, 21, 10)))),
    "box of words": ("Annotations/a.xml", "a number in", xml(voc_object(box=("x", 1, 4, 10)))),
    "box of NaN": ("Annotations/a.xml", "a number in", xml(voc_object(box=("nan", 1, 4, 10)))),
    "box without xmax": ("Annotations/a.xml", "xmax", xml(voc_object().replace("xmax", "xmaximum"))),
    "odd difficult": ("Annotations/a.xml", "0 or 1", xml(voc_object(difficult=2))),
    "no image": ("JPEGImages/a.jpg", "no such file", None),
    "no JPEG": ("JPEGImages/a.jpg", "a readable image", "text"),
    "no PNG": ("SegmentationClass/a.png", "a readable image", "text"),
    "mask of another size": ("SegmentationClass/a.png", "a mask of 20x10", np.ones((10, 10))),
    "mask of other classes": ("SegmentationClass/a.png", "values 0..20", np.full((10, 20), 21)),
    "too many objects": ("SegmentationObject/a.png", "objects 1..1", np.full((10, 20), 2)),
    "double id": ("ImageSets/Main/val.txt", "a twice", "a\na\n"),
    "list of bytes": ("ImageSets/Main/val.txt", "a readable text file", b"\xff\xfe\xff"),
    "double class names": ("classes.txt", "different class names", "dog\ndog\n"),
}


@pytest.mark.parametrize("kind", VOC)
def test_voc(tmp_path: Path, kind: str) -> None:
    path, text, content = VOC[kind]
    year = write_voc(tmp_path)
    damaged = year / path
    if kind == "another size":
        damaged = year / "Annotations/a.xml"
        (year / "SegmentationClass/a.png").unlink()
    if content is None:
        damaged.unlink()
    elif isinstance(content, bytes):
        damaged.write_bytes(content)
    elif isinstance(content, np.ndarray):
        write_mask(damaged, content)
    else:
        damaged.write_text(str(content))
    fault = check_or_open(lambda: Voc2012(tmp_path))
    assert "\n" not in fault
    assert str(year / path) in fault
    assert text in fault


def edit(*path: object, value: object = None) -> Callable[[Any], Any]:
    """Set one value of the COCO file; None deletes it."""

    def apply(content: Any) -> Any:
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return content

    return apply


RLE = ("annotations", 1, "segmentation")
POLYGON = ("annotations", 0, "segmentation")
COCO: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not JSON": (lambda _: "{", "a.json: expected JSON that parses"),
    "deep JSON": (lambda _: "[" * 200_000, "a.json: expected JSON that parses"),
    "a list": (lambda _: [], "a.json: expected an object"),
    "no images": (edit("images"), "under 'images'"),
    "categories of numbers": (edit("categories", value=[1]), "under 'categories'"),
    "id of words": (edit("images", 0, "id", value="7"), "a.json: images: expected a whole number as id"),
    "double id": (edit("annotations", 1, "id", value=1), "a.json: annotations: expected each id once"),
    "image elsewhere": (
        edit("images", 0, "file_name", value="../a.png"),
        "image 7: expected a file_name inside",
    ),
    "no file name": (edit("images", 0, "file_name"), "image 7: expected a file_name"),
    "no width": (edit("images", 0, "width"), "image 7: expected a positive height and width"),
    "another size": (edit("images", 0, "width", value=21), "a.png: expected an image of 21x10"),
    "unknown image": (edit("annotations", 0, "image_id", value=8), "annotation 1: expected the image_id"),
    "no image": (edit("annotations", 0, "image_id"), "annotation 1: expected the image_id"),
    "unknown class": (
        edit("annotations", 0, "category_id", value=9),
        "annotation 1: expected the category_id",
    ),
    "odd crowd": (edit("annotations", 0, "iscrowd", value=3), "annotation 1: expected iscrowd 0 or 1"),
    "no box": (edit("annotations", 0, "bbox"), "annotation 1: expected a bbox"),
    "box of 3": (edit("annotations", 0, "bbox", value=[1, 2, 3]), "annotation 1: expected a bbox"),
    "box of words": (edit("annotations", 0, "bbox", value="abcd"), "annotation 1: expected a bbox"),
    "box of NaN": (
        edit("annotations", 0, "bbox", value=[1, 2, 3, float("nan")]),
        "annotation 1: expected a bbox",
    ),
    "box outside": (
        edit("annotations", 0, "bbox", value=[1, 2, 3, 9]),
        "annotation 1: expected a non-empty bbox",
    ),
    "empty box": (
        edit("annotations", 0, "bbox", value=[1, 2, 0, 3]),
        "annotation 1: expected a non-empty bbox",
    ),
    "short counts": (
        edit(*RLE, "counts", value=[5, 5, 189]),
        "annotation 2: expected run lengths that sum to 200",
    ),
    "long counts": (
        edit(*RLE, "counts", value=[5, 5, 2**40]),
        "annotation 2: expected run lengths that sum to",
    ),
    "negative counts": (
        edit(*RLE, "counts", value=[205, -5]),
        "annotation 2: expected run lengths of at least 0",
    ),
    "counts of floats": (edit(*RLE, "counts", value=[5.0, 195.0]), "annotation 2: expected run lengths"),
    "another RLE size": (edit(*RLE, "size", value=[20, 10]), "annotation 2: expected run lengths of size"),
    "no counts": (edit(*RLE, "counts"), "annotation 2: expected run lengths"),
    "short string": (edit(*RLE, "counts", value="5"), "annotation 2: expected run lengths that sum"),
    "cut string": (edit(*RLE, "counts", value="oo"), "annotation 2: expected COCO's compressed"),
    "odd string": (edit(*RLE, "counts", value="~~\u00e9"), "annotation 2: expected COCO's compressed"),
    "endless number": (edit(*RLE, "counts", value="o" * 40), "annotation 2: expected COCO's compressed"),
    "two points": (edit(*POLYGON, value=[[1, 2, 3, 4]]), "annotation 1: expected polygons of at least 3"),
    "odd polygon": (edit(*POLYGON, value=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: expected polygons"),
    "polygon far away": (
        edit(*POLYGON, value=[[0, 0, 1e9, 0, 1e9, 1e9]]),
        "annotation 1: expected polygons in",
    ),
    "polygon of NaN": (
        edit(*POLYGON, value=[[1, 2, 3, 4, 5, float("inf")]]),
        "annotation 1: expected polygons",
    ),
    "polygon of words": (edit(*POLYGON, value="abc"), "annotation 1: expected polygons or run lengths"),
}


@pytest.mark.parametrize("kind", COCO)
def test_coco(tmp_path: Path, kind: str) -> None:
    damage, text = COCO[kind]
    path, images = write_coco(tmp_path, damage(copy.deepcopy(coco_content())))
    faults = check_or_open(lambda: Coco(path, images))
    assert str(path) in faults or str(images / "a.png") in faults
    assert text in faults


WSOL: dict[str, tuple[dict[str, str], str]] = {
    "no ids": ({"image_ids": ""}, "m: expected image_ids.txt"),
    "double id": ({"image_ids": "val/x.png\nval/x.png"}, "image_ids.txt: expected each image once"),
    "no labels": ({"class_labels": ""}, "class_labels.txt: expected a text file"),
    "a label missing": ({"class_labels": "val/x.png,3"}, "class_labels.txt: expected one line for each"),
    "label of words": ({"class_labels": "val/x.png,cat\nval/y,z.png,0"}, "class_labels.txt: line 1"),
    "half a label": ({"class_labels": "val/x.png,1.5\nval/y,z.png,0"}, "class_labels.txt: expected whole"),
    "negative label": ({"class_labels": "val/x.png,-1\nval/y,z.png,0"}, "class_labels.txt: expected labels"),
    "unknown id": (
        {"localization": "val/w.png,1,2,3,4"},
        "localization.txt: line 1: expected an id of image_ids",
    ),
    "three corners": (
        {"localization": "val/x.png,0,0,5,5\nval/x.png,1,2,3"},
        "localization.txt: line 2: expected an id and 4 numbers",
    ),
    "NaN": ({"localization": "val/x.png,0,0,5,nan"}, "localization.txt: line 1"),
    "no box": (
        {"localization": "val/x.png,0,0,5,5"},
        "localization.txt: val/y,z.png: expected at least one box",
    ),
    "box outside": (
        {"localization": "val/x.png,0,0,21,5\nval/y,z.png,0,0,1,1"},
        "localization.txt: val/x.png: expected non-empty boxes",
    ),
    "size of zero": (
        {"image_sizes": "val/x.png,0,10\nval/y,z.png,20,10"},
        "localization.txt: val/x.png: expected a size",
    ),
    "no sizes": ({"image_sizes": ""}, "image_sizes.txt: expected the size of val/x.png"),
    "odd masks": ({"localization": "val/x.png,,"}, "localization.txt: line 1: expected id,mask,ignore"),
    "no mask": ({"localization": "val/x.png,m.png,"}, "m.png: expected an image file, got no such file"),
}


@pytest.mark.parametrize("kind", WSOL)
def test_wsol(tmp_path: Path, kind: str) -> None:
    lists, text = WSOL[kind]
    assert text in check_or_open(lambda: Wsol(write_wsol(tmp_path / "m", **lists)))


def test_wsol_files(tmp_path: Path) -> None:
    root = write_wsol(tmp_path / "m")
    write_image(tmp_path / "val/x.png", 20, 11)
    faults = check(Wsol(root, tmp_path)).faults
    assert len(faults) == 2
    assert "x.png: expected an image of 20x10 as annotated, got 20x11" in faults[0]
    assert "y,z.png: expected an image file, got no such file" in faults[1]
    (root / "image_ids.txt.gz").write_bytes(gzip.compress(b"val/x.png")[:-6])
    with pytest.raises(DataError, match=r"image_ids\.txt\.gz: expected a readable gzipped list"):
        Wsol(root)
    (tmp_path / "names.txt").write_text("a\n")
    (root / "image_ids.txt.gz").unlink()
    with pytest.raises(DataError, match=r"names\.txt: expected at least 4 class names"):
        Wsol(root, classes_file=tmp_path / "names.txt")


HEAD = "image,label,x0,y0,x1,y1\n"
FOLDER: dict[str, tuple[dict[str, str], str]] = {
    "no header": ({"boxes_csv": "a,dog,1,2,3,4\n"}, "boxes.csv: expected the header image,label,x0"),
    "unknown image": (
        {"boxes_csv": HEAD + "aa,dog,1,2,3,4\n"},
        "boxes.csv: line 2: expected the name of an image",
    ),
    "words": ({"boxes_csv": HEAD + "a,dog,1,2,x,4\n"}, "boxes.csv: line 2: expected numbers x0"),
    "too few": ({"boxes_csv": HEAD + "a,dog,1,2,3\n"}, "boxes.csv: line 2: expected numbers x0"),
    "NaN": ({"boxes_csv": HEAD + "a,dog,1,2,nan,4\n"}, "boxes.csv: line 2: expected numbers x0"),
    "outside": (
        {"boxes_csv": HEAD + "a,dog,1,2,3,11\n"},
        "boxes.csv: line 2: expected a non-empty box inside 20x10",
    ),
    "empty": ({"boxes_csv": HEAD + "a,dog,1,2,1,4\n"}, "boxes.csv: line 2: expected a non-empty box"),
    "no label": ({"boxes_csv": HEAD + "a,,1,2,3,4\n"}, "boxes.csv: line 2: expected a label"),
    "odd difficult": (
        {"boxes_csv": HEAD.strip() + ",difficult\na,dog,1,2,3,4,maybe\n"},
        "boxes.csv: line 2: expected difficult 0 or 1",
    ),
    "unknown class": (
        {"boxes_csv": HEAD + "a,dog,1,2,3,4\n", "classes_txt": "cat\n"},
        "boxes.csv: line 2: expected a class of classes.txt",
    ),
    "two files": ({"boxes_csv": HEAD, "labels_csv": "image,label\n"}, "boxes.csv and labels.csv"),
    "not JSON": ({"boxes_json": "["}, "boxes.json: expected JSON that parses"),
    "no list": ({"boxes_json": "{}"}, "boxes.json: expected a list"),
    "JSON without box": (
        {"boxes_json": '[{"image": "a", "label": "dog"}]'},
        "boxes.json: entry 0: expected numbers",
    ),
    "double names": (
        {"boxes_csv": HEAD, "classes_txt": "a\na\n"},
        "classes.txt: expected different class names",
    ),
    "split of others": (
        {"splits__val_txt": "zz\n"},
        "splits/val.txt: expected the name of an image, got 'zz'",
    ),
}


@pytest.mark.parametrize("kind", FOLDER)
def test_folder(tmp_path: Path, kind: str) -> None:
    files, text = FOLDER[kind]
    assert text in check_or_open(lambda: Folder(write_folder(tmp_path, **files)))


def test_folder_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected images"):
        Folder(tmp_path)
    root = write_folder(tmp_path / "a", boxes_csv=HEAD, classes_txt="dog\n")
    write_mask(root / "masks/a.png", np.full((10, 20), 2))
    assert "masks/a.png: expected mask values 0..1 and 255" in check(Folder(root)).faults[0]
    write_image(root / "images/a.jpg")
    with pytest.raises(DataError, match=r"a\.png: expected different names"):
        Folder(root)


def test_check_goes_on_after_a_fault(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "ImageSets/Main/val.txt").write_text("b\na\nc\n")
    steps: list[tuple[int, int]] = []
    report = check(Voc2012(tmp_path), progress=lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (report.images, report.boxes, report.masked) == (3, 1, 1)
    assert report.per_class["dog"] == 1
    assert [Path(fault.split(":")[0]).name for fault in report.faults] == ["b.xml", "c.xml"]


def test_check_without_pixels_reads_no_image(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    (year / "JPEGImages/a.jpg").unlink()
    assert check(Voc2012(tmp_path), pixels=False).faults == []
    assert len(check(Voc2012(tmp_path)).faults) == 1
