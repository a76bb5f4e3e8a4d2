"""Maps on disk: ours, other tools', and hostile ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsod.errors import DataError, MapError, OutputError
from wsod.mapfiles import find_map_file, read_maps, write_maps
from wsod.store import MANY, MapStore, expand_map_folders
from wsod.types import AttentionMaps, Sample

SAMPLE = Sample(
    "a.jpg", Path("images/a.jpg"), (10, 12), np.array([[0, 0, 3, 4], [1, 1, 5, 5]]), np.array([5, 2])
)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["a.jpg.npy", "a.npy", "a.jpg.npz", "a.npz"])
def test_file_is_found_by_id_or_stem(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert find_map_file(tmp_path, SAMPLE) == tmp_path / name


def test_stem_id_finds_map_of_the_image_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg.npy").touch()
    assert find_map_file(tmp_path, Sample("a", None, (2, 2))) == tmp_path / "a.jpg.npy"


def test_maps_in_one_folder_serve_ids_with_folders(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    assert find_map_file(tmp_path, Sample("test/a.jpg", None, (2, 2))) == tmp_path / "a.npy"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapError, match=r"a map of image 'a.jpg' \(a\.jpg\.npz, a\.jpg\.npy"):
        find_map_file(tmp_path, SAMPLE)


def test_arrays_of_every_shape(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    one = RNG.random((4, 5))
    np.save(file, one)
    maps = read_maps(file, SAMPLE, classes=20)
    assert maps.labels.tolist() == [2, 5]  # a map without class serves each label
    assert (maps.values == one).all()
    assert maps.values.dtype == np.float64  # float64 is kept: protocols quantise it
    stack = RNG.random((20, 4, 5)).astype(np.float32)
    np.save(file, stack)
    assert read_maps(file, SAMPLE, classes=20).labels.tolist() == list(range(20))
    np.save(file, stack[:2])
    assert read_maps(file, SAMPLE, classes=20).labels.tolist() == [2, 5]
    np.save(file, stack[:3])
    with pytest.raises(MapError, match=r"a\.npy: expected shape"):
        read_maps(file, SAMPLE, classes=20)


@pytest.mark.parametrize("keys", [np.array([2, 5]), torch.tensor([2, 5]), [2, 5]])
def test_irn_dictionary(tmp_path: Path, keys: Any) -> None:
    high = RNG.random((2, 10, 12)).astype(np.float32)
    content: Any = {"keys": keys, "cam": torch.rand(2, 3, 3), "high_res": high}
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    maps = read_maps(tmp_path / "a.npy", SAMPLE, classes=20)
    assert maps.labels.tolist() == [2, 5]
    assert (maps.values == high).all()


def test_seam_dictionary(tmp_path: Path) -> None:
    content: Any = {5: RNG.random((10, 12)), 2: RNG.random((10, 12))}
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    maps = read_maps(tmp_path / "a.npy", SAMPLE, classes=20)
    assert maps.labels.tolist() == [5, 2]
    assert (maps.values[1] == content[2]).all()


def test_maps_of_different_sizes(tmp_path: Path) -> None:
    small, large = RNG.random((3, 4)), RNG.random((10, 12)).astype(np.float32)
    content: Any = {5: small, 2: large}
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    maps = read_maps(tmp_path / "a.npy", SAMPLE, classes=20)
    assert (maps.values[0] == small).all()
    assert (maps.values[1] == large).all()
    assert [value.dtype for value in maps.values] == [np.float64, np.float32]
    for bad in (np.zeros(3), np.full((2, 2), np.nan), np.array([["x"]])):
        content = {5: small, 2: bad}
        np.save(tmp_path / "a.npy", content, allow_pickle=True)
        with pytest.raises(MapError, match=r"a\.npy"):
            read_maps(tmp_path / "a.npy", SAMPLE, classes=20)


def test_npz_needs_values_alone(tmp_path: Path) -> None:
    values = RNG.random((2, 3, 4))
    np.savez(tmp_path / "a.npz", values=values, ranking=[2, 5, 1])
    maps = read_maps(tmp_path / "a.npz", SAMPLE, classes=20)
    assert (maps.labels.tolist(), maps.size) == ([2, 5], SAMPLE.size)
    assert maps.ranking is not None
    assert maps.ranking.tolist() == [2, 5, 1]
    np.savez(tmp_path / "a.npz", values=values, labels=[5, 7])
    assert read_maps(tmp_path / "a.npz", SAMPLE, classes=20).labels.tolist() == [5, 7]


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content: Any = {2: Bomb()}
    np.save("a.npy", content, allow_pickle=True)
    with pytest.raises(MapError, match=r"a\.npy: expected arrays.*it would run posix\.system"):
        read_maps(Path("a.npy"), SAMPLE, classes=20)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x09\xff\xff"]
)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_broken_files_are_named(tmp_path: Path, junk: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(junk)
    with pytest.raises(MapError, match=name):
        read_maps(tmp_path / name, SAMPLE, classes=20)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 0, 4)), np.array([["x"]]), np.full((3, 3), np.nan), np.zeros((3, 3), complex)],
)
def test_arrays_that_are_no_maps(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(MapError, match=r"a\.npy"):
        read_maps(tmp_path / "a.npy", SAMPLE, classes=20)


def test_store_round_trip(tmp_path: Path) -> None:
    store = MapStore(tmp_path / "gradcam", classes=20)
    maps = AttentionMaps(
        "sub/a.jpg", (10, 12), [2, 5], RNG.random((2, 3, 4)), [5, 2, 1], (0.0, 1.0, 12.0, 9.0)
    )
    assert not store.has("sub/a.jpg")
    store.write(maps)
    store.finish({"maps": "gradcam", "supervision": ["image labels"]})
    again = MapStore(tmp_path / "gradcam", classes=20)
    assert again.has("sub/a.jpg")
    assert again.supervision == ("image labels",)
    read = again.read(Sample("sub/a.jpg", None, (10, 12)))
    for name in ("labels", "values", "ranking"):
        assert (getattr(read, name) == getattr(maps, name)).all()
    assert (read.size, read.region) == (maps.size, maps.region)
    assert expand_map_folders(str(tmp_path)) == [tmp_path / "gradcam"]
    assert expand_map_folders(str(tmp_path / "gradcam")) == [tmp_path / "gradcam"]
    assert expand_map_folders("gradcam") == []


def test_a_store_of_many_images_spreads_its_files(tmp_path: Path) -> None:
    """And goes on where a smaller one had begun: both places are looked at."""
    made = {"maps": "gradcam"}
    small = MapStore(tmp_path, 20, images=MANY)
    small.begin(made)
    small.write(AttentionMaps("a/1", (2, 2), [0], np.ones((1, 2, 2))))
    small.commit()
    large = MapStore(tmp_path, 20, images=MANY + 1)
    large.begin(made)
    assert large.has("a/1")
    large.write(AttentionMaps("a/2", (2, 2), [0], np.ones((1, 2, 2))))
    large.commit()
    first = hashlib.sha256(b"a/2").hexdigest()[:3]
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npz")}
    assert files == {"a/1.npz", f"{first}/a/2.npz"}
    for store in (MapStore(tmp_path, 20), MapStore(tmp_path, 20, images=MANY + 1)):
        for name in ("a/1", "a/2"):
            assert store.read(Sample(name, None, (2, 2))).values.shape == (1, 2, 2)
    for path, name in ((tmp_path / "a/1.npz", "a/1"), (tmp_path / first / "a/2.npz", "a/2")):
        path.write_bytes(b"damaged")
        assert not large.has(name)
        assert large.damaged.pop() == path


def test_several_write_one_store(tmp_path: Path) -> None:
    """Each its own list; lists of other maps, which a killed run left, do not count."""

    def one(name: str, rank: int) -> None:
        store = MapStore(tmp_path, 20, rank=rank)
        store.write(AttentionMaps(name, (2, 2), [0], np.ones((1, 2, 2))))
        store.commit()

    MapStore(tmp_path, 20).begin({"maps": "old"})
    one("old", 3)
    left = (tmp_path / "files.3.jsonl").read_bytes()
    MapStore(tmp_path, 20).begin({"maps": "new"}, anew=lambda: None)
    assert not (tmp_path / "files.3.jsonl").exists()
    (tmp_path / "files.3.jsonl").write_bytes(left)
    for rank in range(3):
        one(f"new{rank}", rank)
    with (tmp_path / "files.2.jsonl").open("ab") as file:
        file.write(b'{"new3": "half a li')
    names = ["new0", "new1", "new2"]
    store = MapStore(tmp_path, 20)
    assert [name for name in (*names, "new3", "old") if store.has(name)] == names
    store.finish({})
    assert sorted(path.name for path in tmp_path.glob("files*")) == ["files.jsonl"]
    assert all(MapStore(tmp_path, 20).has(name) for name in names)


def test_what_a_killed_process_left_aside_is_written_over(tmp_path: Path) -> None:
    """Of any process that writes the same map again."""
    left = tmp_path / ".a.npz.0.tmp"
    left.write_bytes(b"half")
    MapStore(tmp_path, 20).write(AttentionMaps("a", (2, 2), [0], np.ones((1, 2, 2))))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_store_stays_inside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stays inside"):
        MapStore(tmp_path / "s", 2).write(AttentionMaps("../../evil", (2, 2), [0], np.ones((1, 2, 2))))


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"a\.npz: .*disk full"):
        write_maps(tmp_path / "a.npz", AttentionMaps("a", (2, 2), [0], np.ones((1, 2, 2))))
    assert not list(tmp_path.iterdir())
