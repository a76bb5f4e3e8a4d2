"""Tar shards: what is in them is what is read, and whatever is wrong is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsod.data import open_dataset
from wsod.errors import DataError, WsodError

BOX = {"label": "dog", "x0": 1, "y0": 2, "x1": 19.5, "y1": 10}


def png(values: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(file, "PNG")
    return file.getvalue()


def picture(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 255, (10, 20, 3)))


def write_tar(path: Path, files: dict[str, bytes | str | dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(root: Path) -> Path:
    """Three images in two tars of `val`, one in `train`: boxes and a mask, a name, a number."""
    mask = np.zeros((10, 20))
    mask[2:5, 3:9], mask[5, 3:9] = 2, 255
    first = {"a/1.png": picture(1), "a/1.json": {"boxes": [BOX]}, "a/1.mask.png": png(mask)}
    second = {
        "x.cls": "cat",
        "x.png": picture(2),
        "readme": "no image",
        "./y.cls": "1",
        "./y.png": picture(3),
    }
    write_tar(root / "val-000000.tar", first)
    write_tar(root / "val-000001.tar", second)
    write_tar(root / "train-000000.tar", {"z.jpeg": picture(4), "z.json": {"labels": ["cat", "dog"]}})
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def test_what_is_in_them(tmp_path: Path) -> None:
    dataset = open_dataset(f"shards:{write_shards(tmp_path)}")
    assert (dataset.split, dataset.splits, dataset.ids) == ("val", ("train", "val"), ("a/1", "x", "y"))
    assert (dataset.classes, dataset.task) == (("cat", "dog"), "multilabel")
    first, second, third = dataset
    assert (first.boxes.tolist(), first.labels.tolist()) == ([[1, 2, 19.5, 10]], [1])
    assert first.masks is not None
    assert first.masks.of(1).sum() == 18
    assert first.masks.ignore(1).sum() == 6
    assert (second.labels.tolist(), third.labels.tolist(), len(third.boxes)) == ([0], [1], 0)
    for n, seed in enumerate((1, 2, 3)):
        assert np.array_equal(np.asarray(dataset.image(n)), Image.open(io.BytesIO(picture(seed))))
    assert open_dataset(f"shards:{tmp_path}", "train")[0].labels.tolist() == [0, 1]


def test_a_run_over_shards_is_a_run_over_files(tmp_path: Path) -> None:
    from wsod.evaluation import evaluate

    shapes = open_dataset("shapes:count=6,size=48")
    (tmp_path / "tars").mkdir()
    (tmp_path / "files" / "images").mkdir(parents=True)
    lines = ["image,label,x0,y0,x1,y1"]
    for tar in range(2):
        files: dict[str, Any] = {}
        for index in range(3 * tar, 3 * tar + 3):
            sample, name = shapes[index], shapes.ids[index]
            rows = [
                {"label": shapes.classes[label], **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))}
                for label, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)
            ]
            files |= {f"{name}.png": png(shapes.image(index)), f"{name}.json": {"boxes": rows}}
            (tmp_path / "files" / "images" / f"{name}.png").write_bytes(files[f"{name}.png"])
            lines += [f"{name},{','.join(str(value) for value in row.values())}" for row in rows]
        write_tar(tmp_path / "tars" / f"val-{tar}.tar", files)
    (tmp_path / "files" / "boxes.csv").write_text("\n".join(lines))
    for place in ("tars", "files"):
        (tmp_path / place / "classes.txt").write_text("\n".join(shapes.classes))
    options = {"metrics": ["max_box_acc", "pointing_game"]}
    tars = evaluate(["center", "sobel"], data=f"shards:{tmp_path / 'tars'}", **options)
    files_ = evaluate(["center", "sobel"], data=f"folder:{tmp_path / 'files'}", **options)
    assert (tars.rows, tars.cases) == (files_.rows, files_.cases)
    assert len(tars.cases) >= 12


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"a.json": {"labels": []}}, "expected an image"),
        ({"../a.png": b""}, "expected a name inside the tar"),
        ({"a.png": b"", "a.jpg": b""}, "expected each image once"),
        ({"a.png": b"none"}, "a.png: expected a readable image"),
        ({"a.png": picture(0)[:90]}, "a.png: expected a whole image"),
        ({"a.png": picture(0), "a.cls": "2"}, "expected a class of classes.txt, or a number below 2"),
        ({"a.png": picture(0), "a.cls": "-1"}, "expected a class of classes.txt, or a number below 2"),
        ({"a.png": picture(0), "a.json": "{"}, "a.json: expected JSON that parses"),
        ({"a.png": picture(0), "a.json": "[]"}, "expected an object with boxes or labels"),
        ({"a.png": picture(0), "a.json": {"labels": ["cow"]}}, "expected a class of classes.txt, got 'cow'"),
        ({"a.png": picture(0), "a.json": {"boxes": [7]}}, "expected objects with label, x0, y0, x1, y1"),
        ({"a.png": picture(0), "a.json": {"boxes": [BOX | {"x1": 21}]}}, "a non-empty box inside 20x10"),
        ({"a.png": picture(0), "a.json": {"boxes": [BOX | {"x1": None}]}}, "expected numbers x0, y0, x1, y1"),
        ({"a.png": picture(0), "a.json": {"boxes": [BOX | {"difficult": 2}]}}, "difficult 0 or 1"),
    ],
)
def test_faults_are_named(tmp_path: Path, files: dict[str, Any], text: str) -> None:
    write_tar(tmp_path / "val-0.tar", files)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")

    def read() -> None:
        dataset = open_dataset(f"shards:{tmp_path}")
        _ = [(sample, dataset.image(n)) for n, sample in enumerate(dataset)]

    with pytest.raises(DataError) as caught:
        read()
    assert text in str(caught.value)
    assert "val-0.tar" in str(caught.value)


def test_tars_that_are_none_or_cut_or_hold_links(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "val-0.tar", {"a.png": picture(0)})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    whole = path.read_bytes()
    for content in (b"no tar" * 200, whole[:600], whole[:512] + whole[700:900], b"\x1f\x8b" + whole):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"val-0\.tar"):
            open_dataset(f"shards:{tmp_path}")
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert len(open_dataset(f"shards:{tmp_path}")) == 0
    path.unlink()
    with pytest.raises(WsodError, match="expected tar files"):
        open_dataset(f"shards:{tmp_path}")


def test_an_image_in_two_tars_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_tar(tmp_path / "val-000002.tar", {"x.png": picture(0)})
    with pytest.raises(DataError, match=r"val-000002\.tar: x\.png: expected each image once"):
        open_dataset(f"shards:{tmp_path}")
