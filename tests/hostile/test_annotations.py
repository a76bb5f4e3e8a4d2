"""Annotation files, beyond tests/data/test_faults.py: VOC, COCO, WSOL lists, folders. One line, by name."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import zlib
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
from wsod.data import Dataset, check, open_dataset
from wsod.data.coco import Coco
from wsod.data.folder import Folder
from wsod.data.voc import Voc2012
from wsod.data.wsol import Wsol
from wsod.errors import ConfigError, DataError


def faults(make: Callable[[], Dataset]) -> list[str]:
    """Everything there is to say about a data set, each a line."""
    try:
        found = check(make()).faults
    except (DataError, ConfigError) as error:
        found = [str(error)]
    assert all("\n" not in fault and len(fault) < 1000 for fault in found)
    return found


# --- VOC -------------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
VOC: dict[str, bytes | str] = {
    "a billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l9;</annotation>',
    "quadratic growth": f'<!DOCTYPE a [<!ENTITY x "{"x" * 9999}">]><annotation>{"&x;" * 999}</annotation>',
    "an entity from the net": '<!DOCTYPE a SYSTEM "http://localhost:9/a.dtd"><annotation/>',
    "a parameter entity": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]><annotation/>',
    "nested a thousandfold": "<annotation>" * 1000,
    "nested and closed": "<a>" * 50_000 + "</a>" * 50_000,
    "an unknown encoding": '<?xml version="1.0" encoding="no-such"?><annotation/>',
    "an encoding of UTF-7": '<?xml version="1.0" encoding="utf-7"?><annotation/>',
    "an encoding of several bytes": '<?xml version="1.0" encoding="utf-32"?><annotation/>',
    "UTF-16 cut short": xml(voc_object()).encode("utf-16")[:-3],
    "bytes that are no text": b"<annotation>\xff\xfe</annotation>",
    "NUL": b"<annotation>\0</annotation>",
    "two roots": "<annotation/><annotation/>",
    "an attribute twice": "<annotation a='1' a='2'/>",
    "an image": b"\x89PNG\r\n\x1a\n",
    "JSON": "{}",
    "a size of a trillion": xml(voc_object(), 10**6, 10**6),
    "a size beyond floats": xml(voc_object(), "1e400", 10),
    "a size of 1e300": xml(voc_object(), "1e300", 10),
    "a negative size": xml(voc_object(), -20, 10),
    "half a pixel": xml(voc_object(), "20.5", 10),
    "a size in Python's spelling": xml(voc_object(), "2_0", 10),
    "a size in Thai digits": xml(voc_object(), "\u0e52\u0e50", 10),
    "a size of infinity": xml(voc_object(), "inf", 10),
    "a size in hexadecimal": xml(voc_object(), "0x14", 10),
    "a box in Python's spelling": xml(voc_object(box=("1_0", 1, 20, 10))),
    "a box of infinity": xml(voc_object(box=(1, 1, "inf", 10))),
    "a huge box": xml(voc_object(box=(1, 1, "9" * 400, 10))),
    "a box the other way round": xml(voc_object(box=(20, 10, 1, 1))),
    "a box of nothing": xml(voc_object(box=("", "", "", ""))),
    "no box": xml("<object><name>dog</name></object>"),
    "difficult of words": xml(voc_object(difficult="yes")),
    "difficult of -1": xml(voc_object(difficult=-1)),
    "a class in other letters": xml(voc_object("Dog")),
    "a class with markup": xml(voc_object("<b>dog</b>")),
}


@pytest.mark.parametrize("kind", VOC)
def test_voc(tmp_path: Path, kind: str) -> None:
    year = write_voc(tmp_path)
    path = year / "Annotations/a.xml"
    content = VOC[kind]
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = faults(lambda: Voc2012(tmp_path))
    assert found
    assert all(fault.startswith(f"{path}: expected ") for fault in found)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "..", "x/..", "a\0b"])
def test_voc_ids_stay_inside(tmp_path: Path, name: str) -> None:
    year = write_voc(tmp_path)
    (year / "ImageSets/Main/val.txt").write_text(f"{name}\n")
    (fault,) = faults(lambda: Voc2012(tmp_path))
    assert "val.txt: expected image ids that stay inside" in fault


@pytest.mark.parametrize("place", ["Annotations/a.xml", "ImageSets/Main/val.txt", "JPEGImages/a.jpg"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_voc_files_that_are_none(tmp_path: Path, place: str, kind: str) -> None:
    path = write_voc(tmp_path) / place
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: os.symlink(path, path)}[kind](path)
    found = faults(lambda: Voc2012(tmp_path))
    assert found
    assert all(str(path) in fault for fault in found)


# --- COCO ------------------------------------------------------------------------------------------------

HUGE = 10**400
COCO_VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "words": "words",
    "a list": [1],
    "an object": {"a": 1},
    "a huge number": HUGE,
    "minus one": -1,
    "NaN": float("nan"),
}
COCO_PLACES: dict[str, tuple[Any, ...]] = {
    "image id": ("images", 0, "id"),
    "file_name": ("images", 0, "file_name"),
    "width": ("images", 0, "width"),
    "category id": ("categories", 0, "id"),
    "annotation id": ("annotations", 0, "id"),
    "image_id": ("annotations", 0, "image_id"),
    "category_id": ("annotations", 0, "category_id"),
    "iscrowd": ("annotations", 0, "iscrowd"),
    "bbox": ("annotations", 0, "bbox"),
    "a corner": ("annotations", 0, "bbox", 2),
    "segmentation": ("annotations", 0, "segmentation"),
    "a polygon": ("annotations", 0, "segmentation", 0),
    "a coordinate": ("annotations", 0, "segmentation", 0, 1),
    "RLE": ("annotations", 1, "segmentation"),
    "RLE size": ("annotations", 1, "segmentation", "size"),
    "RLE counts": ("annotations", 1, "segmentation", "counts"),
    "a count": ("annotations", 1, "segmentation", "counts", 0),
    "images": ("images",),
    "annotations": ("annotations",),
    "categories": ("categories",),
}
#: what may stand there: a flag may be true, an outline may pass the edge, ids may be any whole numbers
SOUND = {
    ("iscrowd", "true"), ("file_name", "words"), ("a coordinate", "minus one"),
    ("image id", "a huge number"),
    ("image id", "minus one"), ("category id", "minus one"), ("category id", "a huge number"),
    ("annotation id", "minus one"), ("annotation id", "a huge number"), ("segmentation", "null"),
    ("RLE", "null"),
}  # fmt: skip


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize("kind", COCO_VALUES)
@pytest.mark.parametrize("place", COCO_PLACES)
def test_coco_of_wrong_types(tmp_path: Path, place: str, kind: str) -> None:
    content = put(copy.deepcopy(coco_content()), COCO_PLACES[place], COCO_VALUES[kind])
    path, images = write_coco(tmp_path, content)
    found = faults(lambda: Coco(path, images))
    if (place, kind) not in SOUND:
        assert found
    assert all(str(path) in fault or str(images) in fault for fault in found)


COCO_TEXTS: dict[str, bytes | str] = {
    "nothing": "",
    "bytes that are no text": b"\xff\xfe\xff",
    "UTF-16 cut short": json.dumps(coco_content()).encode("utf-16")[:-1],
    "cut short": json.dumps(coco_content())[:-5],
    "two values": "{} {}",
    "a comment": "{} // images",
    "single quotes": "{'images': []}",
    "nested objects": '{"a":' * 100_000,
    "a number of a million digits": '{"images": [' + "9" * 1_000_000 + "]}",
    "a number beyond floats": json.dumps(coco_content()).replace('"bbox": [2', '"bbox": [1e999'),
    "a gzip": gzip.compress(b"{}"),
}


@pytest.mark.parametrize("kind", COCO_TEXTS)
def test_coco_that_is_no_json(tmp_path: Path, kind: str) -> None:
    text = COCO_TEXTS[kind]
    path, images = write_coco(tmp_path, {})
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = faults(lambda: Coco(path, images))
    assert found
    assert all(str(path) in fault for fault in found)


COUNTS: dict[str, Any] = {
    "a crash of pycocotools": "0" * 3,
    "a run longer than the image": [0, 2**31, -(2**31) + 200],
    "overflow that sums right": [2**64, 200],
    "negative differences": "0m0" * 40,
    "a character beyond the code": "5\x7f203",
    "letters beyond ASCII": "52203\u00e9",
    "a question mark for a letter": "5\u4e00203",
    "a space": "5 2203",
    "no runs": "",
    "many empty runs": [0] * 100_000,
    "bytes as numbers": [53, 50, 50, 48, 51],
    "nested": [[5, 5, 190]],
    "half a pixel": [5.5, 4.5, 190],
    "true": [True, 9, 190],
}


@pytest.mark.parametrize("kind", COUNTS)
def test_run_lengths(tmp_path: Path, kind: str) -> None:
    content = put(copy.deepcopy(coco_content()), COCO_PLACES["RLE counts"], COUNTS[kind])
    path, images = write_coco(tmp_path, content)
    (fault, *_) = faults(lambda: Coco(path, images))
    assert "annotation 2: expected" in fault


POLYGONS: dict[str, Any] = {
    "no points": [[]],
    "one point": [[2, 3]],
    "an odd number of coordinates": [[2, 3, 6, 3, 6, 8, 2]],
    "a million turns": [[-20, -10, 40, 20] * 100_000],
    "far away": [[0, 0, 1e15, 0, 1e15, 1e15]],
    "beyond whole numbers": [[0, 0, 1e308, 0, 1e308, 1e308]],
    "infinity": [[0, 0, float("inf"), 0, 5, 5]],
    "words for numbers": [["2", "3", "6", "3", "6", "8"]],
    "points in pairs": [[[2, 3], [6, 3], [6, 8]]],
    "a bare list": [2, 3, 6, 3, 6, 8],
    "an object among them": [[2, 3, 6, 3, 6, 8], {"size": [10, 20], "counts": "52203"}],
}


@pytest.mark.parametrize("kind", POLYGONS)
def test_polygons(tmp_path: Path, kind: str) -> None:
    content = put(copy.deepcopy(coco_content()), COCO_PLACES["segmentation"], POLYGONS[kind])
    path, images = write_coco(tmp_path, content)
    (fault, *_) = faults(lambda: Coco(path, images))
    assert "annotation 1: expected polygons" in fault


@pytest.mark.parametrize(
    "polygon", [[-20, -10, 40, -10, 40, 20, -20, 20], [5, 5, 5, 5, 5, 5], [0, 0, 20, 10, 0, 0]]
)
def test_odd_polygons_are_rasterised(tmp_path: Path, polygon: list[float]) -> None:
    """Outside, on a point, on a line: as pycocotools has them, without a crash."""
    content = put(copy.deepcopy(coco_content()), COCO_PLACES["segmentation"], [polygon])
    sample = Coco(*write_coco(tmp_path, content))[0]
    assert sample.masks is not None
    assert sample.masks.of(0).all() == (polygon[0] == -20)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../x.png", "a/../../b.png", "", ".", "a/", "a\0.png", "x/.."]
)
def test_coco_files_stay_inside(tmp_path: Path, name: str) -> None:
    path, images = write_coco(tmp_path, put(copy.deepcopy(coco_content()), COCO_PLACES["file_name"], name))
    (fault,) = faults(lambda: Coco(path, images))
    assert "image 7: expected a file_name inside the image folder" in fault


def test_half_characters_in_names_are_printable(tmp_path: Path) -> None:
    path, images = write_coco(
        tmp_path, put(copy.deepcopy(coco_content()), COCO_PLACES["file_name"], "a\ud800.png")
    )
    (fault, *_) = faults(lambda: Coco(path, images))
    fault.encode("utf-8")


# --- WSOL ------------------------------------------------------------------------------------------------

WSOL: dict[str, dict[str, str]] = {
    "a label of a trillion": {"class_labels": "val/x.png,3\nval/y,z.png,1000000000000"},
    "a label beyond floats": {"class_labels": "val/x.png,1e400\nval/y,z.png,0"},
    "a label of 1e300": {"class_labels": "val/x.png,1e300\nval/y,z.png,0"},
    "a label of NaN": {"class_labels": "val/x.png,nan\nval/y,z.png,0"},
    "a label in Python's spelling": {"class_labels": "val/x.png,1_0\nval/y,z.png,0"},
    "a label twice": {"class_labels": "val/x.png,3\nval/x.png,3\nval/y,z.png,0"},
    "an empty label": {"class_labels": "val/x.png,\nval/y,z.png,0"},
    "no comma": {"class_labels": "val/x.png 3\nval/y,z.png 0"},
    "ids of others": {"image_ids": "val/x.png\nval/w.png"},
    "no labels at all": {"class_labels": "\n\n"},
    "a size of a trillion": {"image_sizes": "val/y,z.png,20,10\nval/x.png,1000000,1000000"},
    "a negative size": {"image_sizes": "val/y,z.png,20,10\nval/x.png,-20,10"},
    "a size of 1e300": {"image_sizes": "val/y,z.png,20,10\nval/x.png,1e300,10"},
    "half a size": {"image_sizes": "val/y,z.png,20,10\nval/x.png,20"},
    "a corner of words": {"localization": "val/x.png,a,b,c,d"},
    "a corner of infinity": {"localization": "val/x.png,0,0,5,inf\nval/y,z.png,0,0,1,1"},
    "a corner in Python's spelling": {"localization": "val/x.png,0,0,1_0,5\nval/y,z.png,0,0,1,1"},
    "a negative corner": {"localization": "val/x.png,-1,0,5,5\nval/y,z.png,0,0,1,1"},
    "a box of no area": {"localization": "val/x.png,5,5,5,5\nval/y,z.png,0,0,1,1"},
    "a mask elsewhere": {"localization": "val/x.png,../../m.png,"},
    "a mask of the system": {"localization": "val/x.png,/etc/passwd,"},
    "an image elsewhere": {"image_ids": "../x.png\nval/y,z.png"},
    "an image of the system": {"image_ids": "/etc/passwd\nval/y,z.png"},
}


@pytest.mark.parametrize("kind", WSOL)
def test_wsol(tmp_path: Path, kind: str) -> None:
    root = write_wsol(tmp_path / "m", **WSOL[kind])
    found = faults(lambda: Wsol(root))
    assert found
    assert all(fault.startswith(str(tmp_path)) for fault in found)


def bomb() -> bytes:
    """A small gzip that unpacks to more than the limit: members of zeros, one after the other."""
    file = io.BytesIO()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    member = packer.compress(bytes(16 << 20)) + packer.flush()
    for _ in range(17):
        file.write(member)
    return file.getvalue()


PACKED: dict[str, bytes] = {
    "nothing": b"",
    "no gzip": b"val/x.png\nval/y,z.png",
    "cut short": gzip.compress(b"val/x.png\nval/y,z.png")[:-4],
    "a wrong checksum": gzip.compress(b"val/x.png\nval/y,z.png")[:-8] + bytes(8),
    "bytes that are no text": gzip.compress(b"\xff\xfe\xff"),
    "rubbish inside": gzip.compress(b"val/x.png")[:10] + b"\xff" * 30,
}


@pytest.mark.parametrize("kind", PACKED)
def test_wsol_packed(tmp_path: Path, kind: str) -> None:
    root = write_wsol(tmp_path / "m")
    (root / "image_ids.txt.gz").write_bytes(PACKED[kind])
    (fault,) = faults(lambda: Wsol(root))
    assert fault.startswith(f"{root}/")


@pytest.mark.slow
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    root = write_wsol(tmp_path / "m")
    (root / "image_ids.txt.gz").write_bytes(bomb())
    (fault,) = faults(lambda: Wsol(root))
    assert "image_ids.txt.gz: expected at most 268435456 bytes unpacked" in fault


# --- folders ---------------------------------------------------------------------------------------------

HEAD = "image,label,x0,y0,x1,y1"
FOLDER: dict[str, tuple[str, bytes | str]] = {
    "bytes that are no text": ("boxes.csv", b"image,label,x0,y0,x1,y1\n\xff,dog,1,2,3,4\n"),
    "UTF-16": ("boxes.csv", f"{HEAD}\na,dog,1,2,3,4\n".encode("utf-16")),
    "a quote left open": ("boxes.csv", f'{HEAD}\n"a,dog,1,2,3,4\n' + "x" * 200_000),
    "NUL": ("boxes.csv", f"{HEAD}\na\0,dog,1,2,3,4\n"),
    "nothing": ("boxes.csv", ""),
    "semicolons": ("boxes.csv", f"{HEAD}\na;dog;1;2;3;4\n".replace(",", ";")),
    "Python's spelling": ("boxes.csv", f"{HEAD}\na,dog,1,2,1_0,4\n"),
    "infinity": ("boxes.csv", f"{HEAD}\na,dog,1,2,inf,4\n"),
    "a huge number": ("boxes.csv", f"{HEAD}\na,dog,1,2,{'9' * 400},4\n"),
    "an image elsewhere": ("boxes.csv", f"{HEAD}\n../../etc/passwd,dog,1,2,3,4\n"),
    "a field of a megabyte": ("boxes.csv", f"{HEAD}\na,{'d' * (1 << 20)},1,2,3,4\n"),
    "an image without name": ("boxes.csv", f"{HEAD}\n,dog,1,2,3,4\n"),
    "JSON cut short": ("boxes.json", '[{"image": "a"'),
    "JSON without end": ("boxes.json", "[" * 100_000),
    "JSON of numbers": ("boxes.json", "[1, 2]"),
    "JSON of null": ("boxes.json", "null"),
    "JSON with a huge number": (
        "boxes.json",
        f'[{{"image":"a","label":"d","x0":{HUGE},"y0":0,"x1":3,"y1":4}}]',
    ),
    "JSON with true": ("boxes.json", '[{"image":"a","label":"d","x0":true,"y0":0,"x1":3,"y1":4}]'),
    "JSON with NaN": ("boxes.json", '[{"image":"a","label":"d","x0":NaN,"y0":0,"x1":3,"y1":4}]'),
    "JSON with a label of objects": ("boxes.json", '[{"image":"a","label":{},"x0":1,"y0":0,"x1":3,"y1":4}]'),
    "JSON with an image of lists": (
        "boxes.json",
        '[{"image":["a"],"label":"d","x0":1,"y0":0,"x1":3,"y1":4}]',
    ),
    "JSON with a box of lists": ("boxes.json", '[{"image":"a","label":"d","x0":[1],"y0":0,"x1":3,"y1":4}]'),
    "labels without header": ("labels.csv", "a,dog\n"),
    "labels of unknown images": ("labels.csv", "image,label\nzz,dog\n"),
    "a list of bytes": ("splits/val.txt", b"\xff\xfe\xff"),
    "a list of unknown images": ("splits/val.txt", "zz\n"),
    "a list that climbs": ("splits/val.txt", "../../a\n"),
}


@pytest.mark.parametrize("kind", FOLDER)
def test_folder(tmp_path: Path, kind: str) -> None:
    name, content = FOLDER[kind]
    path = write_folder(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (fault, *_) = faults(lambda: Folder(tmp_path))
    assert fault.startswith(str(path))


def test_folder_of_links_that_loop(tmp_path: Path) -> None:
    root = write_folder(tmp_path, labels_csv="image,label\na,dog\nsub/b.jpg,cat\n")
    (root / "images/loop").symlink_to(root / "images")
    (root / "images/self.png").symlink_to(root / "images/self.png")
    os.mkfifo(root / "images/pipe.png")
    assert set(Folder(root).ids) >= {"a", "sub/b"}
    assert not any("pipe" in name or "self" in name for name in Folder(root).ids)
    assert not faults(lambda: Folder(root))


def test_folder_of_links_to_each_other(tmp_path: Path) -> None:
    root = write_folder(tmp_path, labels_csv="image,label\na,dog\nsub/b.jpg,cat\n")
    for one in range(8):
        (root / f"images/{one}").mkdir()
        for other in range(8):
            (root / f"images/{one}/{other}").symlink_to(root / f"images/{other}")
    (fault,) = faults(lambda: Folder(root))
    assert "expected at most 100 links to one folder" in fault


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    os.rename(os.fsencode(root / "images/a.png"), os.fsencode(root / "images") + b"/\xff\xfe.png")
    dataset = Folder(root)
    assert len(dataset) == 2
    (root / "images/sub/b.jpg").write_bytes(b"")
    for fault in faults(lambda: Folder(root)):
        fault.encode("utf-8")


def test_masks_of_other_classes_and_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes_txt="dog\n")
    write_mask(root / "masks/a.png", np.full((10, 20), 7))
    write_mask(root / "masks/sub/b.png", np.ones((20, 10)))
    found = faults(lambda: Folder(root))
    assert any("masks/a.png: expected mask values 0..1 and 255" in fault for fault in found)
    assert any("masks/sub/b.png: expected a mask of 20x10" in fault for fault in found)


# --- specs -----------------------------------------------------------------------------------------------

SPECS = [
    "", ":", "voc2012", "voc2012:", "voc2012:/dev/null", "voc2012:\0", "voc2012:a,b",
    "coco:a.json", "coco:a,b,c",
    "wsol:/nowhere", "folder:/etc/passwd", "folder:" + "a" * 5000, "shapes:size=1e9", "shapes:size=100000",
    "shapes:count=1000000000000", "shapes:count=-1", "shapes:seed=x", "shapes:bias=nan", "shapes:bias=2",
    "shapes:cue=[", "shapes:__class__=1", "shapes:spec=1", "shapes:a", "shapes:seed=" + "[" * 5000, "SHAPES",
    f"shapes:seed={HUGE}", "shapes:bias=inf",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=[f"{n}" for n in range(len(SPECS))])
def test_specs(spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WSOD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError)) as caught:
        open_dataset(spec)
    assert "\n" not in str(caught.value)


def test_images_that_lie_about_their_size(tmp_path: Path) -> None:
    year = write_voc(tmp_path)
    write_image(year / "JPEGImages/a.jpg", 200, 100)
    found = faults(lambda: Voc2012(tmp_path))
    assert any("a.jpg: expected an image of 20x10 as annotated, got 200x100" in fault for fault in found)
