"""Files written from any data set, read back by our readers, and the downloads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED, needs_shared
from tests.data.files import coco_content, write_coco, write_folder, write_voc
from wsod.data import Dataset, check, download, export, open_dataset
from wsod.data.coco import Coco
from wsod.data.folder import Folder
from wsod.data.shapes import Shapes
from wsod.data.voc import Voc2012
from wsod.errors import ConfigError, DataError


def same(one: Dataset, other: Dataset, *, instances: bool = True) -> None:
    assert len(one) == len(other) > 0
    assert one.classes == other.classes
    for a, b in zip(one, other, strict=True):
        assert a.size == b.size
        assert a.boxes.tolist() == b.boxes.tolist()
        assert a.labels.tolist() == b.labels.tolist()
        assert a.difficult.tolist() == b.difficult.tolist()
        assert (a.masks is None) == (b.masks is None)
        if a.masks is not None:
            assert np.array_equal(a.masks.semantic(), b.masks.semantic())
        if a.masks is not None and instances:
            for n in range(len(a.boxes)):
                assert np.array_equal(a.masks.instance(n), b.masks.instance(n))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_shapes_as_voc_and_back(tmp_path: Path, split: str) -> None:
    shapes = Shapes(count=6, seed=2)
    back = open_dataset(export(shapes, "voc", tmp_path / "out"), split)
    original = Shapes(split, count=6, seed=2)
    same(original, back)
    assert back.ids == original.ids
    assert back.splits == ("test", "train", "val", "seg-test", "seg-train", "seg-val")
    assert check(back).faults == []
    difference = np.abs(np.asarray(back.image(0), int) - np.asarray(original.image(0), int))
    assert 0 < difference.mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shapes_as_coco_and_back(tmp_path: Path) -> None:
    shapes, steps = Shapes("val", count=6), []
    spec = export(
        "shapes:count=6", "coco", tmp_path / "out", splits=("val",), progress=lambda *at: steps.append(at)
    )
    assert steps == [(n, 6) for n in range(1, 7)]
    back = open_dataset(spec)
    same(shapes, back)
    assert check(back).faults == []
    # PNG: not a pixel lost
    assert all(np.array_equal(shapes.image(i), back.image(i)) for i in range(6))
    assert back.ids == shapes.ids


@needs_shared
@pytest.mark.slow
def test_real_voc_as_voc_and_as_coco(tmp_path: Path) -> None:
    assert SHARED is not None
    dataset = Voc2012(SHARED / "data/voc_real", "val")
    as_voc = open_dataset(export(dataset, "voc", tmp_path / "voc", splits=("val", "seg-val")), "val")
    same(dataset, as_voc, instances=False)
    assert as_voc.splits == ("val", "seg-val")
    # stored JPEG bytes are passed on as they are
    assert as_voc[3].image_path.read_bytes() == dataset[3].image_path.read_bytes()
    palette = Image.open(as_voc.directory / "SegmentationClass/2007_000033.png").getpalette()
    theirs = Image.open(dataset.directory / "SegmentationClass/2007_000033.png").getpalette()
    assert palette[: 21 * 3] == theirs[: 21 * 3]
    assert palette[-3:] == [224, 224, 192]
    as_coco = open_dataset(export(dataset, "coco", tmp_path / "coco", splits=("val",)))
    for a, b in zip(dataset, as_coco, strict=True):
        assert a.boxes.tolist() == b.boxes.tolist()
        assert a.labels.tolist() == b.labels.tolist()
        assert a.difficult.tolist() == b.difficult.tolist()


def test_coco_as_voc_makes_crowds_difficult(tmp_path: Path) -> None:
    dataset = Coco(*write_coco(tmp_path, coco_content()))
    back = open_dataset(export(dataset, "voc", tmp_path / "out"), "all")
    assert back[0].difficult.tolist() == [False, False, True]
    assert back[0].boxes.tolist() == dataset[0].boxes.tolist()
    assert np.array_equal(back[0].masks.semantic(), dataset[0].masks.semantic())


def test_coco_as_coco_and_back(tmp_path: Path) -> None:
    dataset = Coco(*write_coco(tmp_path, coco_content()))
    back = open_dataset(export(dataset, "coco", tmp_path / "out"))
    same(dataset, back)
    assert back[0].crowd.tolist() == [False, False, True]


def test_ids_become_plain_file_names(tmp_path: Path) -> None:
    boxes = "image,label,x0,y0,x1,y1\na,dog,0.25,0,20,10\nsub/b,cat,1.5,2,3,4\n"
    dataset = Folder(write_folder(tmp_path / "in", boxes_csv=boxes))
    back = open_dataset(export(dataset, "voc", tmp_path / "voc"), "all")
    assert back.ids == ("a", "sub_b")
    assert back[0].boxes.tolist() == [[0.25, 0, 20, 10]]
    assert open_dataset(export(dataset, "coco", tmp_path / "coco")).ids == ("a", "sub_b")


def test_export_refuses(tmp_path: Path) -> None:
    shapes = Shapes(count=1)
    with pytest.raises(ConfigError, match=r"known format, got 'vock'\. Did you mean 'voc'"):
        export(shapes, "vock", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(ConfigError, match="full: expected a new or empty folder"):
        export(shapes, "voc", tmp_path / "full")
    with pytest.raises(ConfigError, match="split"):
        export(shapes, "voc", tmp_path / "b", splits=("tset",))
    labels = Folder(write_folder(tmp_path / "labels", labels_csv="image,label\na,dog\n"))
    with pytest.raises(DataError, match="a: expected a box for each label"):
        export(labels, "coco", tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/out"):
        export(shapes, "voc", tmp_path / "file/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "labels"]


def test_a_damaged_image_leaves_nothing_behind(tmp_path: Path) -> None:
    image = write_voc(tmp_path / "in") / "JPEGImages/a.jpg"
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(DataError, match=r"a\.jpg"):
        export(Voc2012(tmp_path / "in"), "voc", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_export_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(Shapes("val", count=1), "coco", tmp_path / "out", splits=("val",))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations", "images"]


@pytest.mark.parametrize(
    ("name", "sets"),
    [("voc2007", [("2007", "trainval"), ("2007", "test")]), ("voc2012", [("2012", "trainval")])],
)
def test_download_is_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sets: list[tuple[str, str]]
) -> None:
    import torchvision

    calls = []

    def fake(root: str, year: str, image_set: str, download: bool) -> None:
        assert download
        calls.append((root, year, image_set))

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fake)
    monkeypatch.delenv("WSOD_DATA", raising=False)
    with pytest.raises(ConfigError, match="WSOD_DATA"):
        download(name)
    assert download(name, tmp_path / "new") == f"{name}:{tmp_path / 'new'}"
    assert calls == [(str(tmp_path / "new"), *pair) for pair in sets]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", broken)
    with pytest.raises(DataError, match=f"{name} in .*File not found or corrupted"):
        download(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("coco", "cocodataset.org"), ("shapes", "generated"), ("x", "'x'")]
)
def test_what_cannot_be_downloaded_says_where_it_is(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        download(name, tmp_path)


def test_nothing_here_imports_torch() -> None:
    import subprocess

    code = "import sys, wsod.data; wsod.data.open_dataset('shapes')[0]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
