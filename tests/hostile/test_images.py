"""Image and mask files: each refused by name in one line, or read as what it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.pictures import (
    PIXELS,
    broken_exif,
    chunk,
    cut_short,
    deep,
    encoded,
    grey_png,
    turned,
    unreadable,
)
from wsod.data.dataset import image_size, read_grey, read_image, read_labels
from wsod.errors import DataError, MapError
from wsod.report.boxes import boxes_of_files

UNREADABLE = dict(unreadable())
DEEP = dict(deep())


def refused(path: Path, error: Exception) -> None:
    text = str(error)
    assert text.startswith(f"{path}: expected "), text
    assert "\n" not in text


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_images_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(UNREADABLE[kind])
    with pytest.raises(DataError) as caught:
        read_image(path, exif=True)
    refused(path, caught.value)
    for read in (read_grey, lambda path: read_labels(path, (30, 40))):
        with pytest.raises(DataError) as caught:
            read(path)
        refused(path, caught.value)
    with pytest.raises(MapError) as map_error:
        boxes_of_files([path])
    refused(path, map_error.value)


def test_no_changed_bit_of_a_png_s_pixels_is_missed(tmp_path: Path) -> None:
    """Pillow misses those in the last bytes of the pixels, whose checksum it does not look at."""
    path, sound = tmp_path / "a.png", encoded("PNG")
    first = sound.index(b"IDAT") + 4
    last = sound.index(b"IEND") - 8
    for place in range(first, last):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        with pytest.raises(DataError, match="expected a whole image"):
            read_image(path)


def test_a_damaged_comment_is_no_damaged_picture(tmp_path: Path) -> None:
    path, sound = tmp_path / "a.png", encoded("PNG")
    comment = chunk(b"tEXt", b"Comment\0words")
    end = sound.index(b"IEND") - 4
    path.write_bytes(sound[:end] + comment[:-1] + bytes([comment[-1] ^ 1]) + sound[end:])
    assert (np.asarray(read_image(path)) == PIXELS).all()


@pytest.mark.parametrize("kind", dict(cut_short()))
def test_a_size_is_right_or_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(UNREADABLE[kind])
    try:
        assert image_size(path, exif=True) == (30, 40)
    except DataError as error:
        refused(path, error)


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_are_no_photos_and_no_masks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(DEEP[kind])
    for read in (read_image, lambda path: read_labels(path, (30, 40))):
        with pytest.raises(DataError) as caught:
            read(path)
        refused(path, caught.value)
    # a heatmap may have them
    assert len(boxes_of_files([path])[str(path), ""][0])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_colour_is_read_as_its_picture(tmp_path: Path, mode: str) -> None:
    whole = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    whole.save(path)
    assert (np.asarray(read_image(path)) == np.asarray(whole.convert("RGB"))).all()


@pytest.mark.parametrize("orientation", range(9))
def test_turned_photos(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(turned(orientation))
    size = (40, 30) if orientation in (5, 6, 7, 8) else (30, 40)
    assert image_size(path, exif=True) == size
    assert read_image(path, size, exif=True).size == size[::-1]
    assert read_image(path).size == (40, 30)


def test_broken_exif_is_one_line_or_no_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(broken_exif())
    try:
        assert image_size(path, exif=True) in ((30, 40), (40, 30))
        read_image(path, exif=True)
    except DataError as error:
        refused(path, error)


@pytest.mark.parametrize("depth", [2, 4])
def test_masks_of_few_bits_are_not_spread(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(depth))
    with pytest.raises(DataError, match="less than 8 bits") as caught:
        read_labels(path, (8, 8))
    refused(path, caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "nothing", "long", "file as folder"])
def test_paths_that_are_no_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "long":
        path = tmp_path / ("a" * 300 + ".png")
    elif kind == "file as folder":
        path.write_bytes(encoded("PNG"))
        path = path / "b.png"
    for read in (read_image, image_size, read_grey):
        with pytest.raises(DataError) as caught:
            read(path)
        refused(path, caught.value)
