"""Map files and stores: wrong shapes and types, bombs, code, damage. One line by name; nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsod import heatmap_to_boxes
from wsod.errors import ConfigError, DataError, MapError
from wsod.mapfiles import read_maps
from wsod.report.boxes import boxes_of_files
from wsod.store import MapStore
from wsod.types import AttentionMaps, Sample

SAMPLE = Sample("a", None, (10, 20), np.array([[0, 0, 3, 4], [1, 1, 5, 5]]), np.array([5, 2]))
VALUES = np.arange(24.0).reshape(2, 3, 4)


def refused(path: Path, read: Callable[[], object]) -> str:
    with pytest.raises((MapError, DataError)) as caught:
        read()
    text = str(caught.value)
    assert text.startswith(f"{path}: expected "), text
    assert "\n" not in text
    assert len(text) < 1000
    return text


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin1") + data


def claims(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n", data)


ARRAYS: dict[str, Any] = {
    "one number": np.float64(3),
    "a line": np.zeros(3),
    "four axes": np.zeros((1, 2, 3, 3)),
    "nothing": np.zeros((0, 0)),
    "no rows": np.zeros((2, 0, 4)),
    "other classes": np.zeros((7, 3, 4)),
    "NaN": np.full((3, 3), np.nan),
    "infinity": np.full((3, 3), np.inf),
    "minus infinity": np.where(np.eye(3) > 0, -np.inf, 0.0),
    "one NaN among many": np.where(np.arange(10_000).reshape(100, 100) == 77, np.nan, 1.0),
    "values whose sum is infinite": np.array([[1e308, -1e308], [0, 0]]),
    "complex numbers": np.zeros((3, 3), complex),
    "flags": np.ones((3, 3), bool),
    "words": np.array([["x"]]),
    "dates": np.array([["2020-01-01"]], "datetime64[D]"),
    "records": np.zeros((3, 3), [("a", "f4")]),
    "raw bytes": np.zeros((3, 3), "V8"),
}
FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"0 1 2\n",
    "magic alone": b"\x93NUMPY",
    "a version of the future": b"\x93NUMPY\x09\x09\xff\xff",
    "a header cut short": saved(VALUES)[:40],
    "values cut short": saved(VALUES)[:-1],
    "a header of a sentence": header("import os\n"),
    "a header of brackets": header("(" * 5000 + "\n"),
    "a header of calls": header("__import__('os').system('touch hacked')\n"),
    "a header without shape": header("{'descr': '<f8', 'fortran_order': False}\n"),
    "a shape of 10^18": claims("(1000000000, 1000000000)"),
    "a shape beyond 64 bits": claims("(9999999999999999999, 9999999999999999999)"),
    "a shape of a terabyte": claims("(1099511627776,)", data=bytes(8)),
    "a negative shape": claims("(-1, 3)", data=bytes(24)),
    "a shape of words": claims("('a', 3)"),
    "a shape of floats": claims("(2.0, 3.0)", data=bytes(48)),
    "a type of 2 GiB": claims("(2, 2)", "'|S2147483647'"),
    "a type of nothing": claims("(2, 2)", "'|S0'"),
    "a type of Python": claims("(2, 2)", "'os.system'"),
    "objects of nothing": claims("(2, 2)", "'|O'"),
    "a broken zip": b"PK\x03\x04junk",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a picture": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_maps(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, ARRAYS[kind])
    refused(path, lambda: read_maps(path, SAMPLE, 20))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_files_that_are_no_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(FILES[kind])
    refused(path, lambda: read_maps(path, SAMPLE, 20))
    if kind != "an empty zip":  # of which `wsod boxes` says that there is nothing in it
        refused(path, lambda: boxes_of_files([path]))
    assert not (tmp_path / "hacked").exists()


# --- archives --------------------------------------------------------------------------------------------

NPZ: dict[str, dict[str, Any]] = {
    "no values": {"labels": [2, 5]},
    "values of words": {"values": np.array(["x", "y"])},
    "values of one axis": {"values": np.zeros(3)},
    "fewer labels": {"values": VALUES, "labels": [2]},
    "labels twice": {"values": VALUES, "labels": [2, 2]},
    "labels of floats": {"values": VALUES, "labels": [2.0, 5.0]},
    "labels of words": {"values": VALUES, "labels": ["a", "b"]},
    "labels in a square": {"values": VALUES, "labels": [[2], [5]]},
    "negative labels": {"values": VALUES, "labels": [-1, 5]},
    "labels beyond the classes": {"values": VALUES, "labels": [2, 20]},
    "labels beyond 32 bits": {"values": VALUES, "labels": [2, 2**40]},
    "labels beyond 63 bits": {"values": VALUES, "labels": np.array([2, 2**64 - 1], np.uint64)},
    "another image's size": {"values": VALUES, "labels": [2, 5], "size": [20, 10]},
    "a size of three": {"values": VALUES, "labels": [2, 5], "size": [10, 20, 3]},
    "a size of one": {"values": VALUES, "labels": [2, 5], "size": 10},
    "a size of floats": {"values": VALUES, "labels": [2, 5], "size": [10.0, 20.0]},
    "a size of nothing": {"values": VALUES, "labels": [2, 5], "size": [0, 0]},
    "a negative size": {"values": VALUES, "labels": [2, 5], "size": [-10, -20]},
    "a size of a trillion": {"values": VALUES, "labels": [2, 5], "size": [10**6, 10**6]},
    "a region of three": {"values": VALUES, "region": [0, 0, 5]},
    "a region of NaN": {"values": VALUES, "region": [0, 0, np.nan, 5]},
    "a region of no area": {"values": VALUES, "region": [5, 0, 5, 5]},
    "a region of words": {"values": VALUES, "region": ["a", "b", "c", "d"]},
    "a region of 1e300": {"values": VALUES, "region": [0, 0, 1e300, 5]},
    "a ranking of words": {"values": VALUES, "ranking": ["a"]},
    "a ranking of floats": {"values": VALUES, "ranking": [0.5]},
    "a ranking in a square": {"values": VALUES, "ranking": [[1, 2]]},
    "NaN": {"values": np.where(VALUES == 5, np.nan, VALUES), "labels": [2, 5]},
}


@pytest.mark.parametrize("kind", NPZ)
def test_npz_with_wrong_fields(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **NPZ[kind])
    refused(path, lambda: read_maps(path, SAMPLE, 20))
    with suppress(MapError):
        boxes_of_files([path])  # knows no image: sizes and labels may be any


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..\\evil", "a/../../b", "C:\\evil", "\u202e"])
def test_members_are_names_not_paths(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m" / "a.npz"
    path.parent.mkdir()
    archive(
        path,
        {f"{name}.npy": saved(VALUES), "values.npy": saved(VALUES), "labels.npy": saved(np.array([2, 5]))},
    )
    assert (read_maps(path, SAMPLE, 20).values == VALUES).all()
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "a.npz"]


def test_archives_that_unpack_to_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("values.npy", "w") as member:
        member.write(claims("(3000, 1000, 1000)"))
        for _ in range(20):
            member.write(bytes(1 << 20))
    assert "values" in refused(path, lambda: read_maps(path, SAMPLE, 20))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # the size in the directory at the end
    content[place : place + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    assert "bytes unpacked" in refused(path, lambda: read_maps(path, SAMPLE, 20))


@pytest.mark.parametrize("byte", range(0, 1200, 60))
def test_a_changed_byte_is_found(tmp_path: Path, byte: int) -> None:
    """The archive's own checksum, without one of ours: values are the same, or the file is refused."""
    path = tmp_path / "a.npz"
    archive(path, {"values.npy": saved(VALUES), "labels.npy": saved(np.array([2, 5]))})
    content = bytearray(path.read_bytes())
    content[byte % len(content)] ^= 16
    path.write_bytes(content)
    with suppress(MapError):
        assert (read_maps(path, SAMPLE, 20).values == VALUES).all()


@pytest.mark.parametrize("flag", [1, 64])
def test_encrypted_members(tmp_path: Path, flag: int) -> None:
    path = tmp_path / "a.npz"
    archive(path, {"values.npy": saved(VALUES)})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= flag
    path.write_bytes(content)
    refused(path, lambda: read_maps(path, SAMPLE, 20))


# --- pickles ---------------------------------------------------------------------------------------------


class Runs:
    """Calls what it is told when unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch() -> Any:
    return Runs(os.system, "touch hacked")


def nested(depth: int) -> list[Any]:
    one: list[Any] = [0.0]
    for _ in range(depth):
        one = [one] * 10
    return one


def itself() -> list[Any]:
    one: list[Any] = []
    one.append(one)
    return one


PICKLES: dict[str, Any] = {
    "a program": {2: touch()},
    "a program as key": {"keys": touch(), "high_res": VALUES},
    "eval": {2: Runs(eval, "open('hacked', 'w')")},
    "NumPy's own eval": {2: Runs(np.lib.format.read_array, 1)},
    "a file opened": {2: Runs(open, "hacked", "w")},
    "a module imported": {2: Runs(__import__, "this")},
    "an attribute asked for": {2: Runs(getattr, "a", "b")},
    "a codec": {2: Runs(__import__("codecs").decode, b"x", "zip")},
    "a list": [VALUES],
    "a number": 3,
    "words": "maps",
    "nothing": {"keys": np.array([2, 5])},
    "maps of words": {2: "map", 5: "map"},
    "maps of lists": {2: [[1.0]], 5: [[1.0]]},
    "lists of lists of lists": {2: nested(15)},
    "a list in itself": {2: itself()},
    "a class of words": {"dog": VALUES[0]},
    "a class of floats": {2.5: VALUES[0]},
    "a class of true": {True: VALUES[0]},
    "a class too many": {2: VALUES[0], 20: VALUES[0]},
    "a negative class": {-1: VALUES[0]},
    "a huge class": {2**70: VALUES[0]},
    "three axes": {2: VALUES},
    "NaN": {2: np.full((2, 2), np.nan)},
    "complex numbers": {2: np.zeros((2, 2), complex)},
    "keys of words": {"keys": ["a", "b"], "high_res": VALUES},
    "keys in a square": {"keys": np.array([[2], [5]]), "high_res": VALUES},
    "fewer keys": {"keys": np.array([2]), "high_res": VALUES},
    "maps that are a number": {"keys": np.array([2]), "high_res": 3},
    "maps that are a dictionary": {"keys": np.array([2]), "high_res": {2: VALUES}},
}


def pickle_file(path: Path, data: bytes) -> None:
    path.write_bytes(claims("()", "'|O'", data))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    pickle_file(path, pickle.dumps(PICKLES[kind], protocol))
    refused(path, lambda: read_maps(path, SAMPLE, 20))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


RAW: dict[str, bytes] = {
    "nothing": b"",
    "no pickle": b"junk",
    "a memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a string of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "a bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a bytearray of 3 GiB": b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b"x.",
    "a frame cut short": b"\x80\x04\x95" + struct.pack("<Q", 1000) + b"}.",
    "an empty stack": b"0000.",
    "marks without end": b"(" * 100_000,
    "a persistent object": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "a function changed": b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00nameX\x01\x00\x00\x00as\x86b.",
    "an array without content": b"\x80\x02}K\x02cnumpy._core.multiarray\n_reconstruct\n)Rs.",
    "an array of a program": (
        b"\x80\x02}K\x02cnumpy._core.multiarray\n_reconstruct\n)R(K\x01K\x02\x85cposix\nsystem\ntbs."
    ),
    "a protocol of the future": b"\x80\xff}.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
}


@pytest.mark.parametrize("kind", RAW)
def test_pickles_by_hand(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    pickle_file(path, RAW[kind])
    refused(path, lambda: read_maps(path, SAMPLE, 20))


DTYPES = ["O", "V8", "f4,f4", "M8[D]", "S2147483647", "f3", "", "os", "f8" * 1000, 3, None]


@pytest.mark.parametrize("code", DTYPES, ids=str)
def test_pickled_arrays_of_odd_types(tmp_path: Path, code: Any) -> None:
    """NumPy's own constructors are not called with what a file says."""

    class Odd:
        def __reduce__(self) -> Any:
            state = (1, (2, 2), Runs(np.dtype, code), False, b"\0" * 32)
            return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    path = tmp_path / "a.npy"
    pickle_file(path, pickle.dumps({2: Odd()}, 2))
    refused(path, lambda: read_maps(path, SAMPLE, 20))


TENSORS: list[Any] = [
    (5, (2, 2), (2, 1)), (0, (2, 2), (1000, 1)), (0, (10**9, 10**9), (0, 0)), (-1, (2, 2), (2, 1)),
    (0, (2, 2), (-1, 1)), (0, (2,), (1, 1)), (0, (2**62, 4), (1, 1)), (0, 4, 1), (0.5, (2, 2), (2, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "size", "stride"), TENSORS)
def test_tensors_beyond_their_storage(tmp_path: Path, offset: Any, size: Any, stride: Any) -> None:
    import torch

    class Odd:
        def __reduce__(self) -> Any:
            storage = torch.zeros(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    path = tmp_path / "a.npy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TypedStorage, which such files hold
        pickle_file(path, pickle.dumps({2: Odd()}, 2))
    refused(path, lambda: read_maps(path, SAMPLE, 20))


# --- values ----------------------------------------------------------------------------------------------

SOUND: dict[str, Any] = {
    "constant": np.ones((5, 7)),
    "zeros": np.zeros((5, 7)),
    "negative": -np.eye(5, 7),
    "one pixel": np.ones((1, 1)),
    "one row": np.arange(7.0)[None],
    "the smallest numbers": np.eye(5, 7) * 5e-324,
    "large numbers": np.eye(5, 7) * 1e149,
    "half precision": np.eye(5, 7, dtype=np.float16),
    "whole numbers": np.eye(5, 7, dtype=np.int64),
    "bytes in another order": np.eye(5, 7).astype(">f8"),
    "columns first": np.asfortranarray(np.eye(5, 7)),
    "many": np.random.default_rng(0).random((1500, 1500)),
}


@pytest.mark.parametrize("kind", SOUND)
def test_odd_but_sound_maps_have_finite_boxes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, SOUND[kind])
    boxes, scores = boxes_of_files([path])[str(path), ""]
    assert np.isfinite(boxes).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    if np.ptp(np.asarray(SOUND[kind], float)) == 0:
        assert not len(boxes)
    sample = Sample("a", None, (10, 20), np.array([[0, 0, 3, 4]]), np.array([5]))
    maps = read_maps(path, sample, 20)
    from wsod.scoremaps import MapProcessing

    scored = MapProcessing().score(maps, 0)
    assert ((scored.scores >= 0) & (scored.scores <= 1)).all()
    assert scored.constant == (not len(boxes))


NO_HEATMAPS: list[Any] = [
    [], [[]], 3.0, "map", None, [["a"]], [[1, 2], [3]], np.zeros((0, 3)), [[np.nan]], [[np.inf, 0]],
    [[1e308, -1e308]], np.zeros((2, 2, 2, 2)), {"a": 1}, [[1 + 1j]], object(),
]  # fmt: skip


@pytest.mark.parametrize("heatmap", NO_HEATMAPS, ids=lambda value: str(value)[:20])
def test_values_that_are_no_heatmap(heatmap: Any) -> None:
    with pytest.raises((MapError, ConfigError)):
        heatmap_to_boxes(heatmap)


# --- stores ----------------------------------------------------------------------------------------------


def store(folder: Path) -> MapStore:
    made = MapStore(folder, 20)
    made.begin({"maps": "gradcam", "supervision": ["image labels"]})
    made.write(AttentionMaps("a", (10, 20), [2, 5], VALUES))
    made.finish({"maps": "gradcam", "supervision": ["image labels"]})
    return MapStore(folder, 20)


@pytest.mark.parametrize("byte", [0, 30, 100, 400, -1])
def test_a_damaged_map_is_found(tmp_path: Path, byte: int) -> None:
    good, path = store(tmp_path / "s"), tmp_path / "s/a.npz"
    assert good.has("a")
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    assert "checksum" in refused(path, lambda: good.read(SAMPLE))
    assert not good.has("a")
    assert good.damaged == [path]


TABLES = [
    "",
    "[]",
    "{",
    "null",
    "[" * 100_000,
    '{"supervision": 3}',
    '{"supervision": [1]}',
    "\x00",
    '{"a": 1e999}',
]


@pytest.mark.parametrize("text", [*TABLES, b"\xff\xfe\xff"], ids=lambda text: str(text)[:20])
def test_manifests(tmp_path: Path, text: Any) -> None:
    store(tmp_path / "s")
    path = tmp_path / "s/manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if text == '{"a": 1e999}':
        assert MapStore(tmp_path / "s", 20).supervision == ("image labels",)
    else:
        refused(path, lambda: MapStore(tmp_path / "s", 20).supervision)


@pytest.mark.parametrize(
    "text", ["[]\n", "{\n", "3\n", "[[1]]\n", "{}\n[]\n", "{}\n3\n", "[" * 100_000 + "\n", b"\xff\n"]
)
def test_checksum_files(tmp_path: Path, text: Any) -> None:
    store(tmp_path / "s")
    path = tmp_path / "s/files.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if text == "[]\n":
        assert not MapStore(tmp_path / "s", 20).has("a")
    else:
        refused(path, lambda: MapStore(tmp_path / "s", 20))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../b", "", ".", "a\0", "a/.."])
def test_ids_stay_inside_the_store(tmp_path: Path, name: str) -> None:
    made = MapStore(tmp_path / "s", 20)
    with pytest.raises(DataError, match="stays inside"):
        made.write(AttentionMaps(name, (2, 2), [0], np.ones((1, 2, 2))))
    assert not (tmp_path / "s").exists()
