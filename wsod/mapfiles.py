"""Attention maps in the files other tools write, read as they are and without running anything in them.

Understood: `.npy` of (H, W) or (K, H, W); our `.npz`; the dictionaries irn (`keys`, `high_res`) and SEAM
(`{class: map}`) store as pickled `.npy`. Only array and tensor reconstruction is let through from a pickle.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsod.errors import MapError
from wsod.types import AttentionMaps, Sample

__all__ = ["find_map_file", "read_arrays", "read_maps", "write_maps"]

Array = NDArray[Any]
HARMLESS = {"_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype", "_codec_encode", "encode"}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays, tensors and plain containers; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs") and name in HARMLESS:
            return super().find_class(module, name)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return super().find_class(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _load_storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _names(sample: Sample) -> Iterator[str]:
    # the last name of an id such as test/a.jpg serves too: many tools write all maps into one folder
    named = sample.image_path.name if sample.image_path else ""
    for base in dict.fromkeys((sample.image_id, named, Path(sample.image_id).name)):
        if base:
            yield base
            yield str(Path(base).with_suffix(""))
            if not Path(base).suffix:
                yield from (base + ending for ending in (".jpg", ".JPEG", ".png"))


def find_map_file(folder: Path, sample: Sample) -> Path:
    """The file of that image: ID or its stem, with or without the image's ending, `.npz` or `.npy`.

    Raises:
        MapError: naming the files looked for.
    """
    tried = [f"{name}{ending}" for name in dict.fromkeys(_names(sample)) for ending in (".npz", ".npy")]
    for name in tried:
        if (folder / name).is_file():
            return folder / name
    raise MapError(folder, f"a map of image {sample.image_id!r} ({', '.join(tried[:4])}, …)", "no such file")


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
        return _from_dictionary(path, content, sample)
    region = tuple(content["region"].tolist()) if "region" in content else None
    if "labels" in content:
        size = np.asarray(content.get("size", sample.size)).tolist()
        maps = _checked(path, sample.image_id, size, content["labels"], content["values"])
    else:
        maps = _from_array(path, content["values"], sample, classes)
    return replace(maps, ranking=content.get("ranking"), region=region)


def read_arrays(path: Path) -> Array | dict[Any, Any]:
    """What a .npy or .npz file holds: an array, or arrays by name or class. Nothing in it is run.

    Raises:
        MapError: naming the file.
    """
    try:
        with path.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                return {name: content[name] for name in content.files}
            return content
    except ValueError:
        return _unpickle(path)
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise MapError(path, "a NumPy .npy or .npz file", error) from error


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
    return _checked(path, sample.image_id, sample.size, labels, values)


def _from_dictionary(path: Path, content: dict[Any, Any], sample: Sample) -> AttentionMaps:
    if "keys" in content:
        labels = np.asarray(content["keys"])
        values = next((content[name] for name in ("high_res", "cam") if name in content), None)
        if values is None:
            raise MapError(path, "'high_res' or 'cam' beside 'keys'", f"{sorted(map(str, content))}")
    else:
        labels, values = np.array(list(content)), list(content.values())
    # a dictionary's maps may differ in size
    return _checked(path, sample.image_id, sample.size, labels, [np.asarray(value) for value in values])


def _checked(path: Path, image_id: str, size: Any, labels: Any, values: Any) -> AttentionMaps:
    labels = np.asarray(labels)
    several = isinstance(values, list)
    maps = [_numbers(path, each) for each in (values if several else [values])]
    if len(labels) and labels.dtype.kind not in "iu":
        raise MapError(path, "whole numbers as labels", labels.dtype)
    values = maps if several else maps[0]
    try:
        return AttentionMaps(image_id, tuple(size), labels, values)
    except MapError as error:
        raise MapError(path, error.expected, error.got, error.hint) from error


def _numbers(path: Path, values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise MapError(path, "maps of numbers", f"type {array.dtype}")
    # a whole-number map is compared as it is: float64 holds it exactly
    return array.astype(np.float64) if array.dtype.kind != "f" or array.dtype.itemsize > 8 else array


def _unpickle(path: Path) -> dict[Any, Any]:
    with path.open("rb") as file:
        try:
            header = np.lib.format
            first = header.read_magic(file) == (1, 0)
            shape = (header.read_array_header_1_0 if first else header.read_array_header_2_0)(file)[0]
            value = _ArraysOnly(file).load()
        except Exception as error:  # a hostile pickle can raise anything
            raise MapError(
                path, "arrays, or a dictionary of them", error, "Nothing in it was run."
            ) from error
    if shape == () and isinstance(value, np.ndarray):
        value = value.item()
    if not isinstance(value, dict):
        raise MapError(path, "a dictionary of maps", type(value).__name__)
    return value


def write_maps(path: Path, maps: AttentionMaps) -> None:
    """Write one image's maps as .npz, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"labels": maps.labels, "values": maps.values, "size": np.asarray(maps.size)}
    for name, value in (("ranking", maps.ranking), ("region", maps.region)):
        if value is not None:
            arrays[name] = np.asarray(value)
    aside = path.with_name(f".{path.name}.tmp.npz")
    try:
        np.savez(aside, **arrays)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
