"""Attention maps in the files other tools write, read as they are and without running anything in them.

Understood: `.npy` of (H, W) or (K, H, W); our `.npz`; the dictionaries irn (`keys`, `high_res`) and SEAM
(`{class: map}`) store as pickled `.npy`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os.path
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wsod.data.dataset import without_ending
from wsod.errors import MapError
from wsod.output import write_bytes
from wsod.pickles import MAX_VALUES, load_arrays
from wsod.types import MAX_PIXELS, AttentionMaps, Sample

__all__ = ["Beside", "find_map_file", "read_arrays", "read_beside", "read_maps", "write_maps"]

# a header is a Python literal, and Python 3.11 counts the depth of what it parses for all threads together
_LITERALS = threading.Lock()

Array = NDArray[Any]
MAX_BYTES = 8 * MAX_VALUES
LARGEST = 2**31


def _names(sample: Sample, last: bool) -> Iterator[str]:
    named = sample.image_path.name if sample.image_path else ""
    for base in dict.fromkeys((sample.image_id, *((named, Path(sample.image_id).name) if last else ()))):
        if base:
            yield base
            if (short := without_ending(base)) != base:  # of a.1 the map is not a's
                yield short
            else:
                yield from (base + ending for ending in (".jpg", ".JPEG", ".png"))


def find_map_file(folder: Path, sample: Sample, *, last: bool = True) -> Path:
    """The file of that image: ID or its stem, with or without the image's ending, `.npz` or `.npy`.

    Args:
        folder: of all maps.
        sample: the image.
        last: whether the last name of an id such as test/a.jpg serves too, as many tools write all maps
            into one folder. It must be that of one image.

    Raises:
        MapError: naming the files looked for.
    """
    tried = [f"{name}{ending}" for name in dict.fromkeys(_names(sample, last)) for ending in (".npz", ".npy")]
    for name in tried:
        if os.path.isfile(folder / name):  # pathlib raises where a name is too long
            return folder / name
    raise MapError(
        folder, f"a map of image {sample.image_id!r} ({', '.join(tried[:4])}, …)"[:500], "no such file"
    )


def read_maps(path: Path, sample: Sample, classes: int) -> AttentionMaps:
    """All maps in one file, as float64 where the file has it.

    (H, W) is taken for each of the image's labels; (K, H, W) for the labels of the data set in its order
    where K is their number, else for the image's own labels, ascending, where K is theirs.

    Raises:
        MapError: naming the file.
    """
    content = read_arrays(path)
    if isinstance(content, np.ndarray):
        return _from_array(path, content, sample, classes)
    if "values" not in content:
        return _from_dictionary(path, content, sample, classes)
    beside = read_beside(path, content)
    if beside.size is not None and beside.size != sample.size:
        shown = "x".join(map(str, reversed(beside.size)))
        raise MapError(path, f"maps of an image of {sample.size[1]}x{sample.size[0]}", f"of {shown}")
    if beside.labels is not None:
        maps = _checked(path, sample, beside.labels, content["values"], classes)
    else:
        maps = _from_array(path, _numbers(path, content["values"]), sample, classes)
    return replace(maps, ranking=beside.ranking, region=beside.region)


def read_arrays(path: Path) -> Array | dict[Any, Any]:
    """What a .npy or .npz file holds: an array, or arrays by name or class. Nothing in it is run.

    Raises:
        MapError: naming the file.
    """
    what = "a NumPy .npy or .npz file"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MapError(path, what, "a folder, pipe or device")
        with path.open("rb") as file:
            if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                return _read_archive(path, file)
            file.seek(0)
            whole: Array | dict[Any, Any] = _read_array(path, file, path.stat().st_size)
            return whole
    except FileNotFoundError:
        raise MapError(path, what, "no such file") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        # RuntimeError and its kin: archives that are encrypted, or packed in other ways
        raise MapError(path, what, error) from error


def _read_archive(path: Path, file: IO[bytes]) -> dict[str, Array]:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise MapError(path, f"at most {MAX_BYTES} bytes unpacked", "more")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
            # NumPy writes no others, and of those a kilobyte unpacks to gigabytes
            raise MapError(path, "arrays stored or deflated", "another compression")
        found = {}
        for info in infos:
            with archive.open(info) as member:
                array = _read_array(path, member, info.file_size)
                if member.read(1):  # the end is where the checksum is looked at
                    raise MapError(path, f"one array in {info.filename[:40]}", "more")
            if not isinstance(array, np.ndarray):
                raise MapError(path, f"an array in {info.filename[:40]}", type(array).__name__)
            found[info.filename.removesuffix(".npy")] = array
        return found


def _read_array(path: Path, file: IO[bytes], size: int) -> Any:
    """One array, or the dictionary it wraps."""
    form = np.lib.format
    try:
        first = form.read_magic(file) == (1, 0)
        read = form.read_array_header_1_0 if first else form.read_array_header_2_0
        with _LITERALS:
            shape, fortran, dtype = read(file)
    except Exception as error:  # the header is a Python literal: its parser raises many kinds
        raise MapError(path, "a NumPy .npy header", str(error)[:200] or type(error).__name__) from error
    if dtype.hasobject:
        try:
            value = load_arrays(file)
        except Exception as error:  # a hostile pickle can raise anything
            hint = "Nothing in it was run."
            got = str(error)[:200] or type(error).__name__
            raise MapError(path, "arrays, or a dictionary of them", got, hint) from error
        if not isinstance(value, dict):
            raise MapError(path, "a dictionary of maps", type(value).__name__)
        return value
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > MAX_VALUES or count * dtype.itemsize > size:
        got = f"the shape {shape}"[:60]
        raise MapError(path, f"at most {MAX_VALUES} values, all of them in the file", got)
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise MapError(path, f"{count} values", "a file cut short")
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")


@dataclass(frozen=True)
class Beside:
    """What our .npz says beside the values."""

    labels: Array | None
    size: tuple[int, int] | None
    region: tuple[float, float, float, float] | None
    ranking: Array | None


def read_beside(path: Path, content: Mapping[Any, Any]) -> Beside:
    """The fields labels (K,), size (height, width), region (x0, y0, x1, y1) and ranking (R,), checked.

    Raises:
        MapError: naming the file.
    """
    size = _whole(path, content, "size", 2)
    if size is not None and not (min(size) > 0 and size[0] * size[1] <= MAX_PIXELS):
        raise MapError(path, f"a size of 1 to {MAX_PIXELS} pixels", size.tolist())
    region = None
    if "region" in content:
        corners = _numbers(path, content["region"]).ravel()
        good = len(corners) == 4 and np.isfinite(corners).all() and np.abs(corners).max() < LARGEST
        if not good or corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise MapError(path, "a region x0, y0, x1, y1", str(corners.tolist())[:60])
        region = tuple(corners.tolist())
    return Beside(
        _whole(path, content, "labels"),
        None if size is None else (int(size[0]), int(size[1])),
        region,
        _whole(path, content, "ranking"),
    )


def _whole(path: Path, content: Mapping[Any, Any], name: str, count: int | None = None) -> Array | None:
    """A list of whole numbers."""
    if name not in content:
        return None
    value = np.asarray(content[name])
    if (
        value.dtype.kind not in "iu"
        or value.ndim != 1
        or len(value) != (len(value) if count is None else count)
    ):
        got = f"{'x'.join(map(str, value.shape)) or 'one'} of type {value.dtype}"
        raise MapError(path, f"{name}: {count or 'a list of'} whole numbers", got)
    if len(value) and not (value.min() >= -1 and value.max() < LARGEST):
        raise MapError(path, f"{name}: numbers from 0 on", f"{value.min()} to {value.max()}")
    return value.astype(np.int64)


def _from_array(path: Path, values: Array, sample: Sample, classes: int) -> AttentionMaps:
    present = np.array(sample.classes, np.int64)
    if values.ndim == 2:
        labels, values = present, np.broadcast_to(values, (len(present), *values.shape))
    elif values.ndim == 3 and len(values) == classes:
        labels = np.arange(classes)
    elif values.ndim == 3 and len(values) == len(present):
        labels = present
    else:
        raise MapError(
            path,
            f"shape (H, W), ({classes}, H, W) for all classes or ({len(present)}, H, W) for the image's",
            "x".join(map(str, values.shape)) or "a single value",
        )
    return _checked(path, sample, labels, values, classes)


def _from_dictionary(path: Path, content: dict[Any, Any], sample: Sample, classes: int) -> AttentionMaps:
    if "keys" in content:
        keys = content["keys"]
        values = next((content[name] for name in ("high_res", "cam") if name in content), None)
        if values is None:
            raise MapError(path, "'high_res' or 'cam' beside 'keys'", f"{sorted(map(str, content))}"[:200])
        values = list(values) if isinstance(values, list | np.ndarray) else [values]
    else:
        keys, values = list(content), list(content.values())
    if isinstance(keys, list) and not all(type(key) is int for key in keys):
        raise MapError(path, "whole numbers as labels", f"{keys}"[:60])
    try:
        labels = np.array(keys, np.int64) if isinstance(keys, list) else np.asarray(keys)
    except OverflowError as error:
        raise MapError(path, "labels of the data set", error) from error
    # a dictionary's maps may differ in size
    return _checked(path, sample, labels, values, classes)


def _checked(path: Path, sample: Sample, labels: Array, values: Any, classes: int) -> AttentionMaps:
    several = isinstance(values, list)
    if labels.ndim != 1 or (len(labels) and labels.dtype.kind not in "iu"):
        raise MapError(path, "whole numbers as labels", labels.dtype)
    if len(labels) and not (labels.min() >= 0 and labels.max() < (classes or LARGEST)):
        raise MapError(path, f"labels 0 to {classes - 1}", f"{labels.min()} to {labels.max()}")
    if several and sum(getattr(each, "size", 0) for each in values) > MAX_VALUES:
        raise MapError(path, f"at most {MAX_VALUES} values", "the same map again and again")
    maps = [_numbers(path, each) for each in (values if several else [values])]
    try:
        return AttentionMaps(sample.image_id, sample.size, labels, maps if several else maps[0])  # type: ignore[arg-type]  # a list is stacked
    except MapError as error:
        raise MapError(path, error.expected, error.got, error.hint) from error


def _numbers(path: Path, values: Any) -> Array:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        kind = f"type {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise MapError(path, "maps of numbers", kind)
    # a whole-number map is compared as it is: float64 holds it exactly
    wide = values.dtype.kind != "f" or values.dtype.itemsize > 8
    return values.astype(np.float64 if wide else values.dtype.newbyteorder("="), copy=False)


def write_maps(path: Path, maps: AttentionMaps) -> str:
    """Write one image's maps as .npz, whole or not at all; returns the file's SHA-256.

    Raises:
        OutputError: naming the file.
    """
    arrays: dict[str, Any] = {"labels": maps.labels, "values": maps.values, "size": np.asarray(maps.size)}
    for name, value in (("ranking", maps.ranking), ("region", maps.region)):
        if value is not None:
            arrays[name] = np.asarray(value)
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_bytes(path, file.getvalue(), held=True)
    return hashlib.sha256(file.getvalue()).hexdigest()
