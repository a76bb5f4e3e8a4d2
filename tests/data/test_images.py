"""Reading pixels and masks: what is refused and what is converted."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.files import write_image, write_mask
from wsod.data import read_image
from wsod.data.dataset import image_size, read_labels
from wsod.errors import DataError


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_usual_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (7, 5), "white").convert(mode).save(path)
    image = read_image(path, (5, 7))
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert np.asarray(image).min() >= 254


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (7, 5))
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png", transparency=bytes([128]))
    assert np.asarray(read_image(tmp_path / "a.png"))[0, 0].tolist() == [10, 20, 30]


def test_orientation_only_when_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_image(path).size == (20, 10)
    assert read_image(path, exif=True).size == (10, 20)
    assert read_image(path, (20, 10), exif=True).size == (10, 20)
    assert image_size(path) == (10, 20)
    assert image_size(path, exif=True) == (20, 10)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def damaged(path: Path, how: str) -> Path:
    if how == "missing":
        return path
    if how == "folder":
        path.mkdir()
        return path
    write_image(path, 200, 100)
    data = path.read_bytes()
    {
        "truncated": lambda: path.write_bytes(data[: len(data) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("no image"),
        "bomb": lambda: bomb(path, 20_000, 6_000),
        "great bomb": lambda: bomb(path, 100_000, 100_000),
        "size": lambda: write_image(path, 100, 200),
        "depth": lambda: Image.fromarray(np.zeros((100, 200), np.uint16)).save(path),
    }[how]()
    return path


KINDS = ["missing", "folder", "truncated", "empty", "text", "bomb", "great bomb", "size", "depth"]


@pytest.mark.parametrize("how", KINDS)
def test_damaged_images_are_named(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path / "photo.png", how)
    with pytest.raises(DataError, match=r"photo\.png: expected"):
        read_image(path, (100, 200))


def test_a_truncated_jpeg_is_not_half_an_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 200, 100)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.jpg: expected a whole image"):
        read_image(path)


@pytest.mark.parametrize("how", ["missing", "truncated", "text", "size", "rgb"])
def test_damaged_masks_are_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "mask.png"
    rng = np.random.default_rng(0)
    if how == "rgb":
        write_image(path, 200, 100)
    elif how != "missing":
        write_mask(path, rng.integers(0, 20, (100, 100 if how == "size" else 200)))
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    if how == "text":
        path.write_text("no mask")
    with pytest.raises(DataError, match=r"mask\.png: expected"):
        read_labels(path, (100, 200))
