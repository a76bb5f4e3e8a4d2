"""`wsod boxes`: files of every kind in, every format out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.data.files import coco_content
from wsod.cli import main
from wsod.mapfiles import write_maps
from wsod.types import AttentionMaps

HEAT = np.zeros((10, 20))
HEAT[2:6, 4:9] = 200
HEAT[8, 15:18] = 100
BOXES = [[4, 2, 9, 6], [15, 8, 18, 9]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["boxes", *map(str, arguments)])


def found(*arguments: object) -> list[dict[str, Any]]:
    done = run(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.output)
    return rows


def save(path: Path, kind: str) -> Path:
    if kind == "npy":
        np.save(path / "a.npy", HEAT)
        return path / "a.npy"
    if kind == "npz":
        write_maps(path / "a.npz", AttentionMaps("a", HEAT.shape, [3], HEAT[None]))
        return path / "a.npz"
    if kind == "dictionary":
        content: Any = {3: HEAT}
        np.save(path / "a.npy", content, allow_pickle=True)
        return path / "a.npy"
    if kind == "irn":
        content = {"keys": np.array([3]), "cam": HEAT[None, ::4, ::4], "high_res": HEAT[None]}
        np.save(path / "a.npy", content, allow_pickle=True)
        return path / "a.npy"
    picture = Image.fromarray(
        (HEAT * (257 if kind == "I;16" else 1)).astype(np.uint16 if kind == "I;16" else np.uint8)
    )
    (picture if kind in ("L", "I;16") else picture.convert(kind)).save(path / "a.png")
    return path / "a.png"


@pytest.mark.parametrize("kind", ["npy", "npz", "dictionary", "irn", "L", "I;16", "RGB", "P"])
def test_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    rows = found(save(tmp_path, kind))
    assert [row["box"] for row in rows] == BOXES
    assert [row["score"] for row in rows] == pytest.approx([1, 0.5])
    assert {row["label"] for row in rows} == ({"3"} if kind in ("npz", "dictionary", "irn") else {""})


def test_options_reach_the_function(tmp_path: Path) -> None:
    file = save(tmp_path, "npy")
    assert [row["box"] for row in found(file, "--components", "largest")] == BOXES[:1]
    assert [row["box"] for row in found(file, "--min-area", 4)] == BOXES[:1]
    assert [row["box"] for row in found(file, "--area", "contour", "--min-area", 0.5)] == BOXES[:1]
    assert [row["box"] for row in found(file, "--rule", "absolute", "--threshold", 150)] == BOXES[:1]
    doubled = found(file, "--size", 20, 40, "--components", "largest")[0]["box"]
    assert np.abs(np.array(doubled) - 2 * np.array(BOXES[0])).max() <= 1
    frame = np.zeros((9, 9))
    frame[0, :7] = frame[:7, 0] = frame[3, 3] = 1
    np.save(file, frame)
    assert len(found(file)) == 2
    assert [row["box"] for row in found(file, "--merge-iou", 0)] == [[0, 0, 7, 7]]


def test_stored_maps_know_their_image(tmp_path: Path) -> None:
    values = np.zeros((2, 4, 4))
    values[:, 1:3, 1:3] = 1
    write_maps(tmp_path / "a.npz", AttentionMaps("a", (40, 80), [3, 7], values))
    rows = found(tmp_path / "a.npz", "--threshold", 0.5)
    assert [row["label"] for row in rows] == ["3", "7"]
    np.testing.assert_allclose(rows[0]["box"], [20, 10, 60, 30], atol=2)
    assert len(found(tmp_path / "a.npz", "--label", 7)) == 1
    # a map of the right half
    part = AttentionMaps("b", (40, 80), [3], values[:1], region=(40.0, 0.0, 80.0, 40.0))
    write_maps(tmp_path / "b.npz", part)
    np.testing.assert_allclose(
        found(tmp_path / "b.npz", "--threshold", 0.5)[0]["box"], [50, 10, 70, 30], atol=2
    )


def test_a_label_that_no_map_has_is_answered(tmp_path: Path) -> None:
    maps = AttentionMaps("a", HEAT.shape, list(range(12)), np.stack([HEAT] * 12))
    write_maps(tmp_path / "a.npz", maps)
    refused = run(tmp_path / "a.npz", "--label", "cat")
    assert (refused.exit_code, refused.stdout) == (1, "")
    got = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
    assert refused.stderr == f"--label cat: expected a label of the files' maps, got {got}.\n"
    np.save(tmp_path / "a.npy", HEAT)
    assert "got maps without labels" in run(tmp_path / "a.npy", "--label", "cat").stderr


def test_the_title_is_whole_above_a_narrow_table(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    assert run(tmp_path / "a.npy").stdout.splitlines()[0] == "0 boxes, xyxy in pixels, half-open"


def test_voc_lines_are_one_class(tmp_path: Path) -> None:
    write_maps(tmp_path / "a.npz", AttentionMaps("a", HEAT.shape, [3, 7], np.stack([HEAT, HEAT])))
    refused = run(tmp_path / "a.npz", "--format", "voc")
    assert refused.exit_code == 1
    assert "one a class" in refused.stderr
    lines = run(tmp_path / "a.npz", "--format", "voc", "--label", 7).output.splitlines()
    assert lines == ["a 1.000000 5.0 3.0 9.0 6.0", "a 0.500000 16.0 9.0 18.0 9.0"]


@pytest.mark.parametrize("style", ["voc", "coco"])
def test_two_files_of_one_image(tmp_path: Path, style: str) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "42.npy", HEAT)
    files = tmp_path / "x/42.npy", tmp_path / "y/42.npy"
    refused = run(*files, "--format", style)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert (
        refused.stderr
        == f"{files[0]}: expected one file an image for --format {style}, got {files[1]} too.\n"
    )
    assert len(json.loads(run(*files, "--format", "json").output)) == 4


def test_coco_ids_come_from_the_annotations(tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(coco_content()))
    write_maps(tmp_path / "a.npz", AttentionMaps("a", HEAT.shape, [1], HEAT[None]))
    done = run(tmp_path / "a.npz", "--format", "coco", "--annotations", tmp_path / "coco.json")
    rows = json.loads(done.output)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 5), (7, 5)]
    assert rows[0]["bbox"] == [4, 2, 5, 4]
    write_maps(tmp_path / "42.npz", AttentionMaps("42", HEAT.shape, [1], HEAT[None]))
    for more in ([], ["--annotations", tmp_path / "coco.json"]):
        refused = run(tmp_path / "42.npz", "--format", "coco", *more)
        assert refused.exit_code == 1
        assert "expected" in refused.stderr


def test_coco_numbers_before_what_else_a_file_is_called(tmp_path: Path) -> None:
    """000000391895.gradcam.npy is a map of image 391895."""
    names = ("000000000042.gradcam.npy", "42.npy", "x.gradcam.npy")
    for name in names:
        np.save(tmp_path / name, HEAT)
    one, same, of_none = (tmp_path / name for name in names)
    rows = json.loads(run(one, "--format", "coco").output)
    assert {row["image_id"] for row in rows} == {42}
    assert f"got {same} too" in run(one, same, "--format", "coco").stderr
    assert "named by its COCO image" in run(of_none, "--format", "coco").stderr
    images = [(7, "x.jpg"), (8, "n/y.v1.jpg"), (9, "m/y.v1.jpg"), (10, "y.jpg")]
    content = coco_content() | {
        "images": [{"id": n, "file_name": name, "width": 9, "height": 9} for n, name in images],
        "annotations": [],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    known = ("--format", "coco", "--annotations", tmp_path / "coco.json")
    assert {row["image_id"] for row in json.loads(run(of_none, *known).output)} == {7}
    np.save(tmp_path / "y.v1.npy", HEAT)  # of which of two images is not known: certainly not of a third
    assert "named by its COCO image" in run(tmp_path / "y.v1.npy", *known).stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"text", "grey picture"),
        ("a.png", b"junk", "grey picture"),
        ("a.npy", b"junk", "a.npy"),
        ("a.npz", b"junk", "a.npz"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = run(tmp_path / name)
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_coloured_overlay_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[2:6, 4:9] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    done = run(tmp_path / "a.png")
    assert done.exit_code == 1
    assert "a coloured one" in done.stderr
