"""Data sets: images and their boxes, labels and masks, one reader a format, opened by a short spec.

A spec is a name and, after a colon, its paths and options: `shapes`, `shapes:bias=0.9,seed=3`,
`voc2012:/data/VOCdevkit`, `coco:IMAGES,ANNOTATIONS.json`, `wsol:METADATA_DIR,IMAGES`, `svhn:ROOT`,
`object-discovery:ROOT`, `folder:DIR`. A root that is left out, or a path that is relative and not here, is
looked for in `$WSOD_DATA`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any

from wsod.config import bind, parse_value
from wsod.data.check import CheckReport, check
from wsod.data.coco import Coco
from wsod.data.dataset import Dataset, read_image
from wsod.data.discovery import ObjectDiscovery
from wsod.data.download import download
from wsod.data.export import export
from wsod.data.folder import Folder
from wsod.data.shapes import Shapes
from wsod.data.shards import Shards
from wsod.data.svhn import Svhn
from wsod.data.voc import Voc2007, Voc2012
from wsod.data.wsol import Wsol
from wsod.errors import ConfigError, WsodError
from wsod.registry import Registry, nearest

__all__ = [
    "DATASETS",
    "CheckReport",
    "Dataset",
    "check",
    "download",
    "export",
    "open_dataset",
    "read_image",
    "same_images",
]

DATASETS: Registry[type[Dataset]] = Registry(
    "data set",
    {
        kind.name: kind
        for kind in (Shapes, Voc2007, Voc2012, Coco, Wsol, ObjectDiscovery, Svhn, Folder, Shards)
    },
)


def open_dataset(spec: str, split: str | None = None) -> Dataset:
    """The data set a spec names.

    Args:
        spec: `NAME[:PATH,…][,option=value,…]`.
        split: one of its splits; None = the one it is usually evaluated on.

    Raises:
        ConfigError: for an unknown name, option or split, or a path that is not there.
        DataError: naming the file, where the data set's own lists cannot be read.

    >>> open_dataset("shapes:seed=3,count=10", "train").ids[0]
    'train_00000'
    """
    name, _, rest = spec.partition(":")
    if name not in DATASETS:
        raise ConfigError(spec or "the data spec", "a known data set", repr(name), nearest(name, DATASETS))
    kind = DATASETS[name]
    table = _options(kind, spec, rest)
    if split is not None:
        table["split"] = split
    dataset = bind(kind, table, spec)
    dataset.spec = spec
    return dataset


@cache
def same_images(one: str, other: str, split: str) -> bool:
    """Whether two specs name the same images, however they are spelled: shapes:seed=0 and shapes.

    False where one of them is no longer there.
    """
    try:
        first, second = open_dataset(one, split), open_dataset(other, split)
        return first.ids == second.ids and _place(first) == _place(second)
    except WsodError:
        return False


def _place(dataset: Dataset) -> object:
    """Where its first image lies; of a data set without files, its options."""
    if not len(dataset):
        return None
    path = dataset[0].image_path
    if isinstance(path, Path):
        return path.resolve()
    options = [getattr(dataset, f.name) for f in dataclasses.fields(dataset) if f.init]  # type: ignore[arg-type]
    return type(dataset), [value.resolve() if isinstance(value, Path) else value for value in options]


def _options(kind: type[Dataset], spec: str, rest: str) -> dict[str, Any]:
    """Positional paths and `key=value` options of a spec as a table for `bind`."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    table: dict[str, Any] = {}
    positional = list(kind.paths)
    for part in (part.strip() for part in rest.split(",") if part.strip()):
        option = re.fullmatch(r"([a-z_]+)=(.*)", part)
        if option is None:
            if not positional:
                raise ConfigError(spec, kind.usage, f"{part!r}")
            table[positional.pop(0)] = part
        elif option[1] not in fields:
            raise ConfigError(spec, "a known option", repr(option[1]), nearest(option[1], list(fields)))
        else:
            table[option[1]] = option[2]
    for key, value in table.items():
        if Path in (hints[key], *typing.get_args(hints[key])):
            table[key] = _located(value, spec)
        elif str not in (hints[key], *typing.get_args(hints[key])):
            table[key] = parse_value(value)
    for key in kind.paths:
        needed = fields[key].default is dataclasses.MISSING
        if needed and key not in table:
            root = os.environ.get("WSOD_DATA")
            if root is None or len(kind.paths) > 1:
                hint = "A root may also come from $WSOD_DATA." if len(kind.paths) == 1 else ""
                raise ConfigError(spec, kind.usage, f"no {key}", hint)
            table[key] = Path(root)
    return table


def _located(text: str, spec: str) -> Path:
    """The path, or where it is relative and not here, the same under $WSOD_DATA."""
    # os.path's answer is no, where pathlib's is an error: names too long, NUL in them, unknown users
    path, root = Path(os.path.expanduser(text)), os.environ.get("WSOD_DATA")
    if root and not path.is_absolute() and not os.path.exists(path):
        path = Path(root) / path
    if not os.path.exists(path):
        hint = "A relative path is looked for here and in $WSOD_DATA; `wsod data download` downloads VOC."
        raise ConfigError(spec[:200], "a path that exists", str(path)[:200], hint)
    return path
