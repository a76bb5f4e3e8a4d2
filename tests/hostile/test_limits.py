"""Small files that ask for much: maps of a single row, the same map again and again, other compressions."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.hostile.test_maps import SAMPLE, VALUES, claims, pickle_file, refused, saved
from wsod.cli import main
from wsod.config import read_toml
from wsod.data.dataset import image_size
from wsod.errors import ConfigError, DataError, MapError
from wsod.mapfiles import read_maps
from wsod.models.preprocess import Preprocess
from wsod.report.boxes import boxes_of_files
from wsod.scoremaps import MapProcessing, resample_weights, resize_map
from wsod.types import Sample


@pytest.mark.parametrize("shape", [(1, 25_000_000), (25_000_000, 1)])
@pytest.mark.slow
def test_maps_of_a_single_row(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, values=np.arange(25_000_000, dtype=np.uint8).reshape(1, *shape), labels=[5])
    maps = read_maps(path, SAMPLE, 20)
    with pytest.raises(MapError, match="a resize of at most"):
        MapProcessing().score(maps, 0)
    refused(path, lambda: boxes_of_files([path], size=(100, 100)))


@pytest.mark.parametrize(("before", "after"), [((3, 10_500), (5, 10_500)), ((10_500, 3), (10_500, 5))])
def test_long_sides_that_stay_are_no_weights(before: tuple[int, int], after: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(before)
    axis = 0 if before[0] != after[0] else 1
    weights = resample_weights(before[axis], after[axis])
    expected = np.tensordot(weights, values, (1, axis))
    assert np.array_equal(resize_map(values, after), expected if axis == 0 else expected.T)


@pytest.mark.parametrize("size", [(10**9, 10**9), (10**9, 1), (1, 10**9)])
def test_maps_to_images_of_any_size(size: tuple[int, int]) -> None:
    with pytest.raises(MapError):
        resize_map(np.eye(20), size)


@pytest.mark.parametrize("frame", [-1, 10_001, 10**30])
def test_frames(frame: int) -> None:
    with pytest.raises(ConfigError, match="frame 0 to 10000"):
        MapProcessing(frame=frame)


def test_a_list_named_again_and_again(tmp_path: Path) -> None:
    path, n = tmp_path / "a.npy", 40_000
    again = b"".join(b"J" + struct.pack("<i", key) + b"h\x00" for key in range(1, n))
    data = b"\x80\x02}(J\x00\x00\x00\x00]q\x00(" + b"N" * n + b"e" + again + b"u."
    pickle_file(path, data)
    refused(path, lambda: read_maps(path, SAMPLE, n))
    refused(path, lambda: boxes_of_files([path]))


@pytest.mark.parametrize("lists", [False, True])
def test_a_map_named_again_and_again(tmp_path: Path, lists: bool) -> None:
    path, one = tmp_path / "a.npy", np.zeros((1000, 1000), np.uint8)
    content: Any = {"keys": [*range(20_000)], "high_res": [one] * 20_000} if lists else dict.fromkeys(
        range(20_000), one
    )  # fmt: skip
    pickle_file(path, pickle.dumps(content, 2))
    refused(path, lambda: read_maps(path, SAMPLE, 20_000))
    refused(path, lambda: boxes_of_files([path]))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("values.npy", saved(VALUES))
    assert "stored or deflated" in refused(path, lambda: read_maps(path, SAMPLE, 20))


@pytest.mark.slow
def test_a_table_of_a_million_boxes_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(10_000).reshape(100, 100) % 2)
    np.save(path, np.kron(np.eye(80), [[1, 0], [0, 0]]) + np.kron(np.ones((80, 80)), [[1, 0], [0, 0]]))
    found = boxes_of_files([path])
    assert sum(len(boxes) for boxes, _ in found.values()) == 6400
    told = CliRunner().invoke(main, ["boxes", str(path)]).stdout
    assert "6400 boxes, xyxy in pixels, half-open; the first 1000, all of them with --format json" in told
    assert told.count("a.npy ") == 1000


def test_images_of_a_single_row(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (70_000, 1)).save(path)
    with pytest.raises(DataError, match=r"a\.png: expected at most .* 65536 a side, got 70000x1"):
        image_size(path)
    with pytest.raises(DataError, match="65536 a side"):
        Sample("a", None, (1, 70_000))


def test_thin_images_are_not_blown_up() -> None:
    with pytest.raises(DataError, match="expected an image of at most 100000000 pixels then"):
        Preprocess(mode="shorter")(Image.new("RGB", (1, 60_000)))


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"a\.toml: expected a readable TOML file, got no ordinary file"):
        read_toml(tmp_path / "a.toml")


def test_claims_of_rows_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(claims("(1, 250000001)"))
    refused(path, lambda: read_maps(path, SAMPLE, 20))
