"""Any data set as ordinary files: a VOC devkit year or COCO instances, to be read by anyone's tools."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsod.data.dataset import Dataset, without_ending
from wsod.data.masks import VOID, InstanceMasks
from wsod.data.voc import VOC_CLASSES
from wsod.errors import ConfigError, DataError
from wsod.registry import nearest
from wsod.types import Sample

__all__ = ["FORMATS", "export"]

D = TypeVar("D", bound=Dataset)
#: by file name the image's id, and the file it is from or its split
Names = dict[str, tuple[str, str]]
Counted = Iterator[tuple[Dataset, Iterator[tuple[int, str]]]]


def export(
    dataset: Dataset | str,
    format: str,
    directory: Path,
    *,
    splits: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write images, boxes, flags and masks as files; the folder appears when it is complete.

    Args:
        dataset: any data set, or its spec.
        format: `voc`: DIR/VOC2012 in the devkit's layout, images as JPEG of high quality, `classes.txt` where
            the classes are not VOC's; crowds become difficult objects. `coco`: DIR/images (lossless) and
            DIR/annotations/instances_SPLIT.json, `difficult` as a key of its own.
        directory: a new or empty folder.
        splits: the splits to write, by default all of them.
        progress: called with (done, total) at each image.

    Returns:
        The spec that reads it back (for COCO, of the first split).

    Raises:
        ConfigError: for an unknown format or a folder that holds something.
        DataError: naming the image that cannot be written, such as one with labels but no boxes.
    """
    if format not in FORMATS:
        raise ConfigError("export", "a known format", repr(format), nearest(format, FORMATS))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(directory, "a new or empty folder", "something in it")
    if isinstance(dataset, str):
        from wsod.data import open_dataset  # which imports this module

        dataset = open_dataset(dataset)
    datasets = [_of_split(dataset, split) for split in splits or dataset.splits]
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    names: Names = {}
    try:
        aside.mkdir(parents=True)
        FORMATS[format](_counted(datasets, progress), names, aside)
        if directory.exists():
            directory.rmdir()
        aside.rename(directory)
    except OSError as error:
        raise DataError(directory, "a folder that can be written", error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if format == "voc":
        return f"voc2012:{directory}"
    first = sorted((directory / "annotations").glob("*.json"))[0]
    return f"coco:{directory / 'images'},{first}"


def _counted(datasets: list[Dataset], progress: Callable[[int, int], None] | None) -> Counted:
    """Each data set with its (index, id) pairs, reported as they are taken."""
    total, before = sum(map(len, datasets)), 0

    def pairs(dataset: Dataset, before: int) -> Iterator[tuple[int, str]]:
        for index, image_id in enumerate(dataset.ids):
            if progress is not None:
                progress(before + index + 1, total)
            yield index, image_id

    for dataset in datasets:
        yield dataset, pairs(dataset, before)
        before += len(dataset)


def _of_split(dataset: D, split: str) -> D:
    if split == dataset.split:
        return dataset
    # a data set's dataclass fields are its options
    other: D = dataclasses.replace(dataset, split=split)  # type: ignore[type-var]
    other.spec = dataset.spec
    return other


def _file_name(sample: Sample, split: str, names: Names) -> str:
    """The id as a plain file name without ending; two images must not become one.

    An image may be in several splits; one that is no file of its own is another in each.
    """
    image_id = sample.image_id
    name = without_ending(image_id).replace("/", "_")
    origin = image_id, str(sample.image_path or split)
    if names.setdefault(name, origin) != origin:
        got = f"{name}, as {' of '.join(names[name])}"
        raise DataError(image_id, "an id that is unique as a file name in all splits", got)
    return name


def _sample(dataset: Dataset, index: int) -> Sample:
    sample = dataset[index]
    if len(sample.labels) and not len(sample.boxes):
        raise DataError(sample.image_id, "a box for each label", "labels alone", "Files hold boxes only.")
    return sample


def _write_image(dataset: Dataset, index: int, sample: Sample, path: Path, endings: tuple[str, ...]) -> None:
    """The stored bytes where their format will do, else encoded anew."""
    source = sample.image_path
    if source is not None and source.suffix.lower() in endings and not dataset.exif:
        dataset.image(index)  # damaged files are not passed on
        shutil.copyfile(source, path)
    elif path.suffix == ".jpg":
        dataset.image(index).save(path, quality=95, subsampling=0)
    else:
        dataset.image(index).save(path)


# --- VOC -----------------------------------------------------------------------------------------------


def _one_line(text: str) -> bool:
    """Whether a list, a text a line, and XML both give it back."""
    odd = any(category(c) in ("Cc", "Cs") or c in "\ufffe\uffff" for c in text)
    return text.splitlines() == [text] == [text.strip()] and not odd


def _export_voc(datasets: Counted, names: Names, directory: Path) -> None:
    year = directory / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (year / folder).mkdir(parents=True)
    done: set[str] = set()
    for dataset, pairs in datasets:
        if len(dataset.classes) >= VOID:
            raise ConfigError("export voc", f"fewer than {VOID} classes", len(dataset.classes))
        for label, word in enumerate(dataset.classes):
            if not _one_line(word) or word in dataset.classes[:label]:
                raise ConfigError("export voc", "class names of one line, each once", repr(word)[:60])
        if dataset.classes != VOC_CLASSES:
            (year / "classes.txt").write_text("\n".join(dataset.classes) + "\n", "utf-8")
        listed, masked = [], []
        for index, image_id in pairs:
            sample = _sample(dataset, index)
            name = _file_name(sample, dataset.split, names)
            if not _one_line(name) or len(name.split()) > 1:
                raise DataError(image_id, "an id without spaces, for VOC's lists", repr(name)[:60])
            listed.append(name)
            if sample.masks is not None:
                masked.append(name)
            if name not in done:
                _write_voc_image(dataset, index, sample, year, name)
                done.add(name)
        folder, split = "Main", dataset.split.replace("/", "_")
        if split.startswith("seg-"):
            folder, split = "Segmentation", split.removeprefix("seg-")
        elif masked:
            _write_list(year / "ImageSets/Segmentation" / f"{split}.txt", masked)
        _write_list(year / "ImageSets" / folder / f"{split}.txt", listed)


def _write_list(path: Path, names: list[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names), "utf-8")


def _write_voc_image(dataset: Dataset, index: int, sample: Sample, year: Path, name: str) -> None:
    _write_image(dataset, index, sample, year / "JPEGImages" / f"{name}.jpg", (".jpg", ".jpeg"))
    tree = ElementTree.ElementTree(_voc_xml(dataset, sample, name))
    ElementTree.indent(tree, "\t")
    tree.write(year / "Annotations" / f"{name}.xml", "utf-8")
    if sample.masks is None:
        return
    semantic = sample.masks.semantic()
    _write_palette(year / "SegmentationClass" / f"{name}.png", semantic)
    if isinstance(sample.masks, InstanceMasks) and len(sample.boxes) < VOID:
        objects = np.where(semantic == -1, -1, 0)
        for n in range(len(sample.boxes)):
            objects[sample.masks.instance(n)] = n + 1
        _write_palette(year / "SegmentationObject" / f"{name}.png", objects)


def _voc_xml(dataset: Dataset, sample: Sample, name: str) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    for tag, text in (("folder", "VOC2012"), ("filename", f"{name}.jpg")):
        ElementTree.SubElement(root, tag).text = text
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", sample.size[1]), ("height", sample.size[0]), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = str(int(sample.masks is not None))
    for n, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
        height, width = sample.size
        edge = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        element = ElementTree.SubElement(root, "object")
        for tag, text in (
            ("name", dataset.classes[int(sample.labels[n])]),
            ("pose", "Unspecified"),
            ("truncated", str(int(edge))),
            ("difficult", str(int(sample.difficult[n] or sample.crowd[n]))),
        ):
            ElementTree.SubElement(element, tag).text = text
        box = ElementTree.SubElement(element, "bndbox")
        for tag, corner in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, tag).text = str(int(corner) if corner == int(corner) else corner)
    return root


def _write_palette(path: Path, values: NDArray[np.int64]) -> None:
    """A palette PNG in VOC's colours: the bits of the index dealt out to red, green and blue; -1 as void."""
    path.parent.mkdir(exist_ok=True)
    index = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    image = Image.fromarray(np.where(values == -1, VOID, values).astype(np.uint8))
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(path)


# --- COCO ----------------------------------------------------------------------------------------------


def _export_coco(datasets: Counted, names: Names, directory: Path) -> None:
    (directory / "images").mkdir()
    (directory / "annotations").mkdir()
    for dataset, pairs in datasets:
        images: list[Mapping[str, Any]] = []
        annotations: list[Mapping[str, Any]] = []
        for index, _ in pairs:
            sample = _sample(dataset, index)
            source = sample.image_path
            ending = ".png" if source is None or dataset.exif else source.suffix.lower()
            file = f"{_file_name(sample, dataset.split, names)}{ending}"
            if not (directory / "images" / file).exists():
                _write_image(dataset, index, sample, directory / "images" / file, (ending,))
            height, width = sample.size
            number = index + 1
            images.append({"id": number, "file_name": file, "height": height, "width": width})
            annotations += _coco_rows(sample, number, len(annotations) + 1)
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = directory / "annotations" / f"instances_{dataset.split.replace('/', '_')}.json"
        path.write_text(json.dumps(content), "utf-8")


def _coco_rows(sample: Sample, image: int, first: int) -> Iterator[Mapping[str, Any]]:
    """One annotation a box; ids start at 1, as evaluators take 0 for none."""
    from pycocotools import mask as coco_mask

    for n, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
        row: dict[str, Any] = {
            "id": first + n,
            "image_id": image,
            "category_id": int(sample.labels[n]) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(sample.crowd[n]),
            "difficult": int(sample.difficult[n]),
        }
        if isinstance(sample.masks, InstanceMasks):
            mask = sample.masks.instance(n)
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            row["area"] = int(mask.sum())
        yield row


FORMATS: dict[str, Callable[[Counted, Names, Path], None]] = {
    "voc": _export_voc,
    "coco": _export_coco,
}
