"""What is fuzzed: every parser as a function of bytes that may raise a WsodError only, with seeds."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.data.files import (
    coco_content,
    voc_object,
    write_coco,
    write_folder,
    write_image,
    write_mask,
    write_voc,
    write_wsol,
    xml,
)
from tests.data.test_svhn import write_hdf5, write_images, write_struct
from wsod.config import bind, parse_settings, read_toml
from wsod.data.coco import Coco, decode_rle
from wsod.data.dataset import image_size, read_grey, read_image, read_labels
from wsod.data.folder import Folder
from wsod.data.svhn import Svhn
from wsod.data.voc import Voc2012
from wsod.data.wsol import Wsol
from wsod.detectionfiles import DetectionFiles
from wsod.mapfiles import read_maps
from wsod.models.checkpoint import load_file, read_checkpoint
from wsod.protocols import Protocol
from wsod.results import Result
from wsod.store import MapStore
from wsod.types import Sample

Target = Callable[[bytes], object]
SAMPLE = Sample("a", None, (10, 20), np.array([[0, 0, 3, 4], [1, 1, 5, 5]]), np.array([5, 2]))
ARRAY = np.lib.format
MASK = {"size": [10, 20], "counts": "P137000000000\\3"}


def _all_of(dataset: Any) -> None:
    for index in range(min(len(dataset), 5)):
        sample = dataset[index]
        if sample.masks is not None and sample.size[0] * sample.size[1] <= 1_000_000:
            sample.masks.semantic()


def voc(root: Path) -> Target:
    path = write_voc(root) / "Annotations/a.xml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _all_of(Voc2012(root))

    return run


def coco(root: Path) -> Target:
    path, _ = write_coco(root, coco_content())

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _all_of(Coco(path))

    return run


def rle(root: Path) -> Target:
    """Two bytes of size, then COCO's compressed string."""

    def run(data: bytes) -> None:
        height, width = (data + b"\1\1")[:2]
        decode_rle({"size": [height, width], "counts": data[2:]}, (height, width), "rle")

    return run


def polygons(root: Path) -> Target:
    """A byte of size each, then float16 coordinates; 0xFFFF ends a polygon."""
    path, _ = write_coco(root, coco_content())

    def run(data: bytes) -> None:
        height, width = (int(byte) + 1 for byte in (data + b"\1\1")[:2])
        values = np.frombuffer(data[2 : len(data) // 2 * 2], np.float16).astype(float)
        cuts = np.flatnonzero(np.isnan(values))
        content = coco_content()
        content["images"][0].update(width=width, height=height)
        row = content["annotations"][0]
        row["segmentation"] = [[v for v in part.tolist() if v == v] for part in np.split(values, cuts)]
        row["bbox"] = [0, 0, width, height]
        content["annotations"] = [row]
        path.write_text(json.dumps(content))
        _all_of(Coco(path))

    return run


def _maps_of(path: Path) -> Target:
    """The bytes as a file of maps."""

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_maps(path, SAMPLE, 20)

    return run


def npy(root: Path) -> Target:
    return _maps_of(root / "a.npy")


def pickled(root: Path) -> Target:
    """The pickle inside an object .npy, its header sound."""
    path = root / "a.npy"
    header = io.BytesIO()
    ARRAY.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})

    def run(data: bytes) -> None:
        path.write_bytes(header.getvalue() + data)
        read_maps(path, SAMPLE, 20)

    return run


def npz(root: Path) -> Target:
    """A sound archive around parts split at 0xFE 0xFE: values, labels, size, region, ranking."""
    path = root / "a.npz"
    names = ("values", "labels", "size", "region", "ranking")

    def run(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in zip(names, data.split(b"\xfe\xfe"), strict=False):
                if part:
                    archive.writestr(f"{name}.npy", part)
        read_maps(path, SAMPLE, 20)

    return run


def archive(root: Path) -> Target:
    return _maps_of(root / "a.npz")


def image(root: Path) -> Target:
    path = root / "a.jpg"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        height, width = image_size(path, exif=True)
        if height * width <= 1_000_000:
            read_image(path, exif=True)

    return run


def mask(root: Path) -> Target:
    path = root / "a.png"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        size = image_size(path)
        if size[0] * size[1] <= 1_000_000:
            read_grey(path)
            read_labels(path, size)

    return run


def wsol(root: Path) -> Target:
    """The four lists, split at NUL."""
    names = ("image_ids", "class_labels", "image_sizes", "localization")

    def run(data: bytes) -> None:
        write_wsol(root)
        for name, part in zip(names, data.split(b"\0"), strict=False):
            (root / f"{name}.txt").write_bytes(part)
        _all_of(Wsol(root))

    return run


def boxes_csv(root: Path) -> Target:
    path = write_folder(root) / "boxes.csv"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _all_of(Folder(root))

    return run


def boxes_json(root: Path) -> Target:
    path = write_folder(root) / "boxes.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _all_of(Folder(root))

    return run


def toml(root: Path) -> Target:
    path = root / "a.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        bind(Protocol, read_toml(path), path)

    return run


def settings(root: Path) -> Target:
    return lambda data: parse_settings(data.decode("utf-8", "surrogateescape").split("\0"))


def result(root: Path) -> Target:
    """result.json and cases.jsonl, split at NUL."""

    def run(data: bytes) -> None:
        first, _, second = data.partition(b"\0")
        (root / "result.json").write_bytes(first)
        (root / "cases.jsonl").write_bytes(second)
        Result.load(root)

    return run


def manifest(root: Path) -> Target:
    def run(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        _ = MapStore(root, 20).supervision

    return run


def checkpoint(root: Path) -> Target:
    path = root / "a.pt"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_file(path)

    return run


def safetensors(root: Path) -> Target:
    path = root / "a.safetensors"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_file(path)

    return run


def weights(root: Path) -> Target:
    """The pickle inside a checkpoint, its archive sound."""
    path = root / "a.pt"
    with zipfile.ZipFile(io.BytesIO(_torch(CHECKPOINT))) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}

    def run(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, data if name.endswith("data.pkl") else part)
        read_checkpoint(path)

    return run


def files(root: Path) -> Target:
    """The checksums of a store of maps."""

    def run(data: bytes) -> None:
        (root / "files.jsonl").write_bytes(data)
        store = MapStore(root, 20)
        store.has("a")
        _ = store.supervision

    return run


def coco_results(root: Path) -> Target:
    path = root / "a.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        DetectionFiles(path, ["a"], ["dog"], [7], [1]).read(SAMPLE)

    return run


def voc_results(root: Path) -> Target:
    def run(data: bytes) -> None:
        (root / "comp4_det_val_dog.txt").write_bytes(data)
        DetectionFiles(root, ["a"], ["dog"]).read(SAMPLE)

    return run


def house_numbers(root: Path) -> Target:
    """digitStruct.mat, of either format."""
    write_images(root / "train")

    def run(data: bytes) -> None:
        (root / "train/digitStruct.mat").write_bytes(data)
        _all_of(Svhn(root, "train"))

    return run


PARSERS: dict[str, Callable[[Path], Target]] = {
    make.__name__: make
    for make in (
        voc, coco, rle, polygons, npy, pickled, npz, archive, image, mask, wsol, boxes_csv, boxes_json, toml,
        settings, result, manifest, files, checkpoint, weights, safetensors, coco_results, voc_results,
        house_numbers,
    )
}  # fmt: skip


CHECKPOINT = {
    "format": "wsod-checkpoint-1", "arch": "smallnet", "head": "linear", "classes": ["a"],
    "task": "multilabel", "target_layer": "a", "preprocess": {}, "state": {"a.weight": torch.ones(2, 2)},
}  # fmt: skip


def _saved(save: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    picture = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(10, 20, 3)).convert(mode)
    return _saved(lambda file: picture.save(file, kind, **options))


def _torch(contents: object) -> bytes:
    return _saved(lambda file: torch.save(contents, file))


def seeds(name: str, folder: Path) -> list[bytes]:
    """Sound inputs of that parser to start from."""
    import pickle

    arrays = [np.arange(12.0).reshape(3, 4), np.ones((20, 2, 3), np.float32), np.ones((2, 3, 3), np.float16)]
    if name in ("image", "mask"):
        exif = Image.Exif()
        exif[0x0112] = 6
        kinds = [
            ("JPEG", "RGB"),
            ("JPEG", "CMYK"),
            ("PNG", "P"),
            ("PNG", "LA"),
            ("PNG", "1"),
            ("PNG", "I;16"),
        ]
        kinds += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "L"), ("WEBP", "RGB")]
        pictures = [_picture(kind, mode) for kind, mode in kinds if mode != "I;16"]
        return [*pictures, _picture("JPEG", exif=exif)]
    if name in ("npy", "npz"):
        files = [_saved(lambda file, a=a: np.save(file, a)) for a in arrays]
        labels = _saved(lambda file: np.save(file, np.array([2, 5])))
        size = _saved(lambda file: np.save(file, np.array([10, 20])))
        region = _saved(lambda file: np.save(file, np.array([0.0, 0.0, 20.0, 10.0])))
        return (
            files if name == "npy" else [*files, b"\xfe\xfe".join((files[2], labels, size, region, labels))]
        )
    if name == "archive":
        return [_saved(lambda file: np.savez(file, values=arrays[2], labels=[2, 5]))]
    if name == "pickled":
        content = {2: np.ones((2, 2)), 5: np.zeros((3, 3), np.float32)}
        irn = {"keys": np.array([2, 5]), "high_res": np.ones((2, 4, 4), np.float32)}
        object_array = np.empty((), object)
        object_array[()] = content
        return [pickle.dumps(object_array, protocol) for protocol in (2, 3, 4)] + [
            pickle.dumps(value, protocol) for value in (content, irn) for protocol in (2, 4)
        ]
    if name == "checkpoint":
        return [_torch({"a": np.float32(1).item(), "state": {}}), _torch({"format": "wsod-checkpoint-1"})]
    if name == "weights":
        with zipfile.ZipFile(io.BytesIO(_torch(CHECKPOINT))) as whole:
            return [whole.read(part) for part in whole.namelist() if part.endswith("data.pkl")]
    if name == "house_numbers":
        found = []
        for write in (write_struct, write_hdf5):
            write(folder / write.__name__)
            found.append((folder / write.__name__ / "digitStruct.mat").read_bytes())
        return found
    if name == "safetensors":
        from safetensors.torch import save

        return [save({"a": torch.ones(2, 2)})]
    wsol_lists = [write_wsol(folder / "w") / f"{n}.txt" for n in ("image_ids", "class_labels")]
    wsol_lists += [folder / "w/image_sizes.txt", folder / "w/localization.txt"]
    head = "image,label,x0,y0,x1,y1,difficult\n"
    row = {"image": "a", "label": "dog", "x0": 1, "y0": 2, "x1": 3, "y1": 4, "difficult": 0}
    texts: dict[str, list[bytes | str]] = {
        "voc": [xml(voc_object()), xml(voc_object(difficult=1) * 2)],
        "coco": [json.dumps(coco_content())],
        "rle": [b"\x04\x0452203", b"\x0a\x1452203"],
        "polygons": [b"\x09\x13" + np.array([2, 3, 6, 3, 6, 8, 2, 8], np.float16).tobytes()],
        "wsol": [b"\0".join(path.read_bytes() for path in wsol_lists)],
        "boxes_csv": [head + "a,dog,1,2,3,4,0\nsub/b.jpg,cat,0,0,20,10,1\n"],
        "boxes_json": [json.dumps([row, {**row, "image": "sub/b.jpg"}])],
        "toml": [path.read_bytes() for path in Path("eval_configs").glob("*.toml")],
        "settings": [b"train.lr=1e-5\0data.split=val\0a=[1, 2]"],
        "result": [_result() + b'\0{"maps": "a", "image": "i", "label": "l", "scores": {"m": 1.0}}\n'],
        "files": ['{"maps": "cam", "supervision": ["boxes"]}\n{"a": "00"}\n'],
        "coco_results": [
            json.dumps([{"image_id": 7, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]),
            json.dumps([{"image_id": 7, "category_id": 1, "score": 1, "segmentation": MASK}]),
        ],
        "voc_results": ["a 0.5 1 2 3 4\na 0.25 1 1 20 10\n"],
        "manifest": ['{"schema": 1, "supervision": ["image labels"], "images": 3}'],
    }
    write_image(folder / "x.png")
    write_mask(folder / "y.png", np.ones((2, 2)))
    return [text.encode() if isinstance(text, str) else text for text in texts[name]]


def _result() -> bytes:
    score = {"value": 0.5, "count": 2, "skipped": 0, "interval": [0.1, 0.9], "best_threshold": 0.2}
    rows = [{"maps": "a", "supervision": ["boxes"], "scores": {"pointing_game": score}}]
    config = {"data": "shapes", "split": "test", "config": "default"}
    table = {"schema": 1, "config": config, "provenance": {}, "rows": rows}
    return json.dumps({**table, "skipped": [{"image": "i", "error": "e"}]}).encode()
