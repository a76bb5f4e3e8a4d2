"""Names that collide or cannot be written: no map, box or image of another one is taken silently."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.files import coco_content, write_coco, write_folder, write_mask
from wsod import evaluate
from wsod.data import export, open_dataset
from wsod.data.shards import Shards
from wsod.detectionfiles import DetectionFiles
from wsod.errors import ConfigError, DataError, MapError
from wsod.evaluation import compute_maps
from wsod.mapfiles import find_map_file
from wsod.report.boxes import boxes_of_files, format_boxes
from wsod.store import MapStore
from wsod.types import Sample

# --- maps and boxes of images ----------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["a.1", "a.2.b", "a.", "a" * 300])
def test_maps_of_another_image_are_not_taken(tmp_path: Path, image: str) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))
    with pytest.raises(MapError, match="a map of image"):
        find_map_file(tmp_path, Sample(image, None, (4, 4)))
    if len(image) < 200:
        np.save(tmp_path / f"{image}.npy", np.eye(4))
        assert find_map_file(tmp_path, Sample(image, None, (4, 4))).name == f"{image}.npy"
        assert find_map_file(tmp_path, Sample(f"{image}.jpg", None, (4, 4))).name == f"{image}.npy"


def test_a_map_is_not_that_of_two_images(tmp_path: Path) -> None:
    """Whichever of them is read first, or alone, as by one process of several."""
    for name in ("x", "y"):
        np.save(tmp_path / f"{name}.npy", np.eye(4))
    store = MapStore(tmp_path, 3, ids=["cat/x.jpg", "dog/x.jpg", "dog/y.jpg"])
    store.read(Sample("dog/y.jpg", None, (4, 4), labels=[0]))  # type: ignore[arg-type]
    for image in ("cat/x.jpg", "dog/x.jpg"):
        with pytest.raises(MapError, match=f"expected a map of image '{image}'"):
            store.read(Sample(image, Path(image), (4, 4), labels=[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "line"), [(["cat/1", "dog/1"], "1"), (["a.b"], "a"), (["a.b"], "a.c"), (["a"], "a.b")]
)
def test_detections_of_another_image_are_not_taken(tmp_path: Path, ids: list[str], line: str) -> None:
    (tmp_path / "comp4_det_val_dog.txt").write_text(f"{line} 0.5 1 1 4 4\n")
    with pytest.raises(DataError, match="an image of the data set"):
        DetectionFiles(tmp_path, ids, ["dog"])


def test_detections_by_a_name_that_is_one_image_alone(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_val_dog.txt").write_text("x.b.JPG 0.5 1 1 4 4\n2 0.5 1 1 4 4\n")
    found = DetectionFiles(tmp_path, ["n/x.b.jpg", "cat/1", "dog/1", "dog/2.png"], ["dog"])
    assert set(found._rows) == {"n/x.b.jpg", "dog/2.png"}


@pytest.mark.parametrize("file", ["1.npy", "1.jpg.npy"])
def test_boxes_are_not_given_another_images_number(tmp_path: Path, file: str) -> None:
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": name, "width": 9, "height": 9}
                   for n, name in ((7, "x/1.jpg"), (8, "y/1.jpg"), (9, "x/2.v1.jpg"))],
        "annotations": [], "categories": [],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    np.save(tmp_path / file, np.eye(4))
    np.save(tmp_path / "2.v1.npy", np.eye(4))
    with pytest.raises(ConfigError, match="named by its COCO image"):
        format_boxes(boxes_of_files([tmp_path / file]), "coco", tmp_path / "a.json")
    found = json.loads(format_boxes(boxes_of_files([tmp_path / "2.v1.npy"]), "coco", tmp_path / "a.json"))
    assert {row["image_id"] for row in found} == {9}


# --- rows of a result ------------------------------------------------------------------------------------

DATA = "shapes:count=2,size=48"


@pytest.mark.parametrize("first", [True, False])
def test_a_method_and_its_stored_maps_are_two_rows(tmp_path: Path, first: bool) -> None:
    compute_maps(["center", "random"], tmp_path, data=DATA)
    maps = ["center", str(tmp_path)] if first else [str(tmp_path), "center"]
    rows = evaluate(maps, data=DATA, metrics=["energy_pointing_game"]).rows
    assert {row.maps for row in rows} == {"center", "random", f"{tmp_path}/center"}


def test_two_classes_of_one_name_are_two(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"][0]["name"] = "dog"
    path, images = write_coco(tmp_path, content)
    result = evaluate("center", data=f"coco:{images},{path}", metrics=["energy_pointing_game"])
    assert {case.label for case in result.cases} == {"dog (0)", "dog (1)"}
    assert set(result.rows[0].scores["energy_pointing_game"]["per_class"]) == {"dog (0)", "dog (1)"}


def test_a_folder_called_as_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_maps(["center"], tmp_path, data=DATA)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--maps center: .*got both.*\./center"):
        evaluate("center", data=DATA)
    assert evaluate("./center", data=DATA, metrics=["energy_pointing_game"]).rows[0].maps == "center"


# --- annotations -----------------------------------------------------------------------------------------


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (value, value, value)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "label"),
    [("0000000002", 2), ("02", 2), ("1" * 100, None), ("0" * 100, None), ("\u0663", None), ("\uff11", None)],
)
def test_classes_by_number(tmp_path: Path, text: str, label: int | None) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    write_shard(tmp_path / "val-0.tar", {"1.png": png(), "1.cls": text.encode()})
    if label is not None:
        assert Shards(tmp_path)[0].labels.tolist() == [label]
        return
    with pytest.raises(DataError, match="a number below 4"):
        Shards(tmp_path)[0]


HEAD = "image,label,x0,y0,x1,y1"


@pytest.mark.parametrize("text", [f"{HEAD}\na,dog,1,2,3,4,5\n", f"{HEAD},x1\na,dog,1,2,3,4,9\n"])
def test_columns_that_are_moved_or_doubled(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"boxes\.csv"):
        open_dataset(f"folder:{write_folder(tmp_path, boxes_csv=text)}")


def test_a_comma_at_the_end_of_each_line_is_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path, boxes_csv=f"{HEAD},\na,dog,1,2,3,4,\nsub/b,dog,1,2,3,4,,\n")
    assert open_dataset(f"folder:{root}")[0].boxes.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("name", ["a.PNG", "a.Png"])
def test_masks_in_capital_letters(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path, classes_txt="dog\n")
    write_mask(root / "masks/x.png", np.eye(10, 20)).rename(root / "masks" / name)
    assert open_dataset(f"folder:{root}")[0].masks is not None


@pytest.mark.parametrize("name", ["a_mask.png", "a.png.png", "c.png"])
def test_masks_called_otherwise_than_all_images(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path, classes_txt="dog\n")
    write_mask(root / "masks/x.png", np.eye(10, 20)).rename(root / "masks" / name)
    with pytest.raises(DataError, match=r"masks: expected masks called as images are, such as a\.png"):
        open_dataset(f"folder:{root}")


# --- export ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["voc", "coco"])
def test_two_images_of_one_name_in_two_splits(tmp_path: Path, style: str) -> None:
    """train-0.tar's 1.png is another image than val-0.tar's."""
    (tmp_path / "classes.txt").write_text("a\nb\n")
    box = b'{"boxes": [{"label": "a", "x0": 0, "y0": 0, "x1": 5, "y1": 5}]}'
    for split, value in (("train", 10), ("val", 200)):
        write_shard(tmp_path / f"{split}-0.tar", {"1.png": png(value), "1.json": box})
    with pytest.raises(DataError, match="1: expected an id that is unique as a file name in all splits"):
        export(f"shards:{tmp_path}", style, tmp_path / "out")
    assert not (tmp_path / "out").exists()


CLASSES = ["a\nb", "a\0", "a\x08", "\ud800", " a", "a ", "", "a\x85b", "a\u2028b", "cat"]


@pytest.mark.parametrize("name", CLASSES, ids=ascii)
def test_class_names_that_a_list_would_not_give_back(tmp_path: Path, name: str) -> None:
    content = coco_content()
    content["categories"][1]["name"] = name
    path, images = write_coco(tmp_path, content)
    with pytest.raises(ConfigError, match="class names of one line, each once"):
        export(f"coco:{images},{path}", "voc", tmp_path / "out")


@pytest.mark.parametrize("name", ["ice\xa0cream", "می‌خواهم", "👩‍🚀", "ice cream"])
def test_names_of_all_languages_are_given_back(tmp_path: Path, name: str) -> None:
    content = coco_content()
    content["categories"][1]["name"] = name
    content["images"][0]["file_name"] = f"{name.replace(' ', '').replace(chr(160), '')}.png"
    path, images = write_coco(tmp_path, content)
    (images / "a.png").rename(images / content["images"][0]["file_name"])
    back = open_dataset(export(f"coco:{images},{path}", "voc", tmp_path / "out"))
    assert name in back.classes
    assert Path(content["images"][0]["file_name"]).stem in back.ids


@pytest.mark.parametrize("name", ["a b", "a\tb", " a", "a\nb", "a\udcff"], ids=ascii)
def test_ids_that_a_list_would_not_give_back(tmp_path: Path, name: str) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = f"{name}.png"
    path, images = write_coco(tmp_path, content)
    (images / "a.png").rename(images / f"{name}.png")
    with pytest.raises(DataError, match="an id without spaces"):
        export(f"coco:{images},{path}", "voc", tmp_path / "out")
    assert export(f"coco:{images},{path}", "coco", tmp_path / "out")


def test_homes_of_nobody() -> None:
    with pytest.raises(ConfigError, match="a path that exists"):
        open_dataset("folder:~no-such-user/x")
