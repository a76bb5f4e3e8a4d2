"""Heatmap files → boxes, as a table, JSON, COCO results or VOC detection lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from wsod.boxes.convert import heatmap_to_boxes
from wsod.data.dataset import bare, by_stem, read_values
from wsod.errors import ConfigError, DataError, MapError
from wsod.mapfiles import read_arrays, read_beside
from wsod.pickles import MAX_VALUES
from wsod.report.tables import print_table
from wsod.scoremaps import resize_map

__all__ = ["boxes_of_files", "format_boxes", "of_label", "print_boxes"]

Found = Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]
Row = tuple[str, str, float, list[float]]
SHOWN = 1000  # rows of the table: of noise a map has a million boxes
NAMED = 10  # labels of an error


def boxes_of_files(paths: Sequence[Path], *, size: tuple[int, int] | None = None, **options: Any) -> Found:
    """Boxes and scores by (file, label); the label is empty where the file has a single map.

    Args:
        paths: .npy, the .npz of `wsod maps`, irn's and SEAM's dictionaries, grey pictures.
        size: (height, width) to resize maps to first; .npz of `wsod maps` know their image's size.
        options: of `heatmap_to_boxes`.

    Raises:
        MapError: naming the file that is no heatmap.
    """
    found = {}
    for path in paths:
        for label, heatmap, own in _heatmaps(path, size):
            try:
                found[str(path), label] = heatmap_to_boxes(heatmap, size=own, **options)
            except MapError as error:
                raise MapError(path, error.expected, error.got, error.hint) from error
    return found


def _heatmaps(
    path: Path, size: tuple[int, int] | None
) -> Iterator[tuple[str, NDArray[Any], tuple[int, int] | None]]:
    """The maps of a file with their labels, and the size each is yet to be resized to."""
    if path.suffix not in (".npy", ".npz"):
        yield "", _grey(path), size
        return
    content = read_arrays(path)
    if isinstance(content, np.ndarray):
        if content.ndim != 3:
            yield "", content, size
            return
        content = dict(enumerate(content))
    if "keys" in content:
        stack = content.get("high_res", content.get("cam"))
        content = dict(_paired(path, content["keys"], [] if stack is None else stack))
    if sum(getattr(values, "size", 0) for values in content.values()) > MAX_VALUES:
        raise MapError(path, f"at most {MAX_VALUES} values", "the same map again and again")
    if "values" not in content:
        for label, values in content.items():
            yield str(label), _array(path, values), size
        return
    beside = read_beside(path, content)
    own, stack = size or beside.size, _array(path, content["values"])
    if stack.ndim != 3:
        raise MapError(path, "values of shape (K, h, w)", "x".join(map(str, stack.shape)))
    labels = np.arange(len(stack)) if beside.labels is None else beside.labels
    for label, values in _paired(path, labels, stack):
        if beside.region is not None and own is not None:
            down, across = (new / old for new, old in zip(own, beside.size or own, strict=True))
            x0, y0, x1, y1 = beside.region
            region = (x0 * across, y0 * down, x1 * across, y1 * down)
            values = resize_map(_finite(path, values), own, region=region)
        yield str(label), values, own


def _paired(path: Path, labels: Any, maps: Any) -> Iterator[tuple[Any, Any]]:
    """Labels with their maps, which must be as many."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not isinstance(maps, list | np.ndarray) or np.ndim(maps[:0]) < 1:
        raise MapError(path, "a list of labels and one of maps", f"{type(maps).__name__}")
    if len(labels) != len(maps):
        raise MapError(path, f"{len(labels)} maps, one a label", len(maps))
    return zip(labels.tolist(), maps, strict=True)


def _array(path: Path, values: Any) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise MapError(path, "maps of numbers", getattr(values, "dtype", type(values).__name__))
    return values


def _finite(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise MapError(path, "finite values", "NaN or infinity")
    return values


def _grey(path: Path) -> NDArray[Any]:
    """A picture's values, 8 or 16 bits."""
    try:
        values = read_values(path)
    except DataError as error:
        raise MapError(path, "a heatmap (.npy, .npz or a grey picture)", error.got, error.hint) from error
    if values.ndim == 2:
        return values
    if (values != values[..., :1]).any():
        hint = "A colour map has no values to threshold: save the map itself, as .npy."
        raise MapError(path, "a grey picture", "a coloured one", hint)
    return values[..., 0]


def of_label(found: Found, label: str) -> Found:
    """The boxes of one label's maps.

    Raises:
        ConfigError: where no map is of it, naming labels that are there.
    """
    chosen = {key: value for key, value in found.items() if key[1] == label}
    if not chosen:
        labels = list(dict.fromkeys(own for _, own in found if own))
        more = ", …" if len(labels) > NAMED else ""
        got = ", ".join(labels[:NAMED]) + more if labels else "maps without labels"
        raise ConfigError(f"--label {label}", "a label of the files' maps", got)
    return chosen


def _flat(found: Found) -> list[Row]:
    return [
        (path, label, float(score), [float(x) for x in box])
        for (path, label), (boxes, scores) in found.items()
        for box, score in zip(boxes, scores, strict=True)
    ]


def print_boxes(console: Console, found: Found) -> None:
    """The boxes that `boxes_of_files` gives, the first of them where they are many."""
    flat = _flat(found)
    rows = [(p, label, f"{s:.3f}", *(f"{x:.0f}" for x in box)) for p, label, s, box in flat[:SHOWN]]
    cut = f"; the first {SHOWN}, all of them with --format json" if len(flat) > SHOWN else ""
    title = f"{len(flat)} boxes, xyxy in pixels, half-open{cut}"
    print_table(console, title, ["file", "label", "score", "x0", "y0", "x1", "y1"], rows)


def format_boxes(found: Found, style: str, annotations: Path | None = None) -> str:
    """Boxes as text.

    Args:
        found: as `boxes_of_files` gives them.
        style: `json`, `coco` (results: x, y, width, height) or `voc` (a line a box: name, score, corners
            1-based, last pixel included).
        annotations: COCO JSON that says the ids of images and classes, for `coco`.

    Raises:
        ConfigError: `coco` without the ids it needs; `voc`, a file a class, of several classes;
            either, of two files of one image.
    """
    flat = _flat(found)
    if style == "json":
        keys = ("file", "label", "score", "box")
        return json.dumps([dict(zip(keys, item, strict=True)) for item in flat], indent=1)
    paths = list(dict.fromkeys(path for path, _ in found))
    if style == "coco":
        images, categories = _coco_ids(paths, annotations)
        _one_file_an_image(images, style)
        return json.dumps([_coco_result(row, images, categories) for row in flat], indent=1)
    names = {path: _image(path) for path in paths}
    _one_file_an_image(names, style)
    labels = sorted({label for _, label, _, _ in flat})
    if len(labels) > 1:
        got, hint = f"labels {', '.join(labels)}", "Pick one with --label."
        raise ConfigError("--format voc", "maps of one class: VOC's files are one a class", got, hint)
    return "\n".join(
        f"{names[p]} {score:.6f} {box[0] + 1:.1f} {box[1] + 1:.1f} {box[2]:.1f} {box[3]:.1f}"
        for p, _, score, box in flat
    )


def _image(path: str) -> str:
    return bare(Path(path).stem)


def _one_file_an_image(images: Mapping[str, object], style: str) -> None:
    files = {image: path for path, image in images.items()}
    for path, image in images.items():
        if files[image] != path:
            raise ConfigError(path, f"one file an image for --format {style}", f"{files[image]} too")


def _coco_ids(paths: Sequence[str], annotations: Path | None) -> tuple[dict[str, int], Sequence[int]]:
    """COCO's number of each file's image, and of the categories by rank."""
    known: dict[str, int | None] = {}
    categories: Sequence[int] = ()
    if annotations is not None:
        from wsod.data.coco import Coco

        data = Coco(annotations=annotations)
        numbers = dict(zip(data.ids, data.image_ids, strict=True))
        # of a name that two images share no other one is guessed
        known = dict.fromkeys(map(bare, data.ids))
        known |= {stem: numbers[name] for stem, name in by_stem(data.ids).items()}
        categories = data.category_ids
    images: dict[str, int] = {}
    for path in paths:
        stem = _image(path)
        # 000000391895.gradcam.npy is a map of that image too, unless an image has that very name
        name = stem if stem in known else stem.split(".")[0]
        number = known.get(name)
        if annotations is None and name.isdecimal():
            number = int(name)
        if number is None:
            wanted = "a file named by its COCO image, such as 000000391895.npy"
            raise ConfigError(path, wanted, repr(stem), "Use --format json, or give --annotations.")
        images[path] = number
    return images, categories


def _coco_result(row: Row, images: Mapping[str, int], categories: Sequence[int]) -> dict[str, Any]:
    path, label, score, (x0, y0, x1, y1) = row
    if label and not (label.isdecimal() and int(label) < len(categories)):
        hint = "Give --annotations FILE.json: COCO's numbers of classes are not their ranks."
        raise ConfigError(path, f"labels of {len(categories)} known categories", label, hint)
    return {
        "image_id": images[path],
        "category_id": categories[int(label)] if label else 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }
