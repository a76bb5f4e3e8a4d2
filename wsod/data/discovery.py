"""The data of object discovery (Rubinstein, Joulin, Kopf and Liu, CVPR 2013), laid out as it is distributed.

    ROOT/Airplane100/0001.jpg     ROOT/Airplane100/GroundTruth/0001.png
    ROOT/Car100/…                 ROOT/Horse100/…

A folder with a `GroundTruth` in it is a class, called by its name in small letters without the number. Every
image of it is asked for that class; where the picture of the truth is black throughout (noise images of the
search the data was collected by) there is nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsod.data.dataset import ENDINGS, Dataset, image_size
from wsod.data.folder import components
from wsod.data.wsol import WsolMasks
from wsod.errors import ConfigError, DataError
from wsod.types import Sample

__all__ = ["ObjectDiscovery"]

TRUTH = "GroundTruth"


@dataclass
class ObjectDiscovery(Dataset):
    """Object discovery: one class an image and its pixels, or none of them.

    Boxes are those of the 8-connected parts; a noise image has its class and no box.

    Args:
        root: the folder with a folder a class; `Data` in the archive.
        split: `all`, or a class.
    """

    name: ClassVar[str] = "object-discovery"
    usage: ClassVar[str] = "object-discovery:ROOT"
    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: Path
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.task = "multiclass"
        folders = sorted(path.parent for path in self.root.glob(f"*/{TRUTH}"))
        if not folders:
            raise ConfigError(f"{self.name}:{self.root}", f"folders of images with {TRUTH} in them", "none")
        self.classes = tuple(folder.name.rstrip("0123456789").lower() for folder in folders)
        if len(set(self.classes)) < len(folders):
            raise DataError(self.root, "one folder a class", ", ".join(folder.name for folder in folders))
        self.splits = ("all", *self.classes)
        self.split = self._known_split(self.split)
        chosen = [
            (label, path)
            for label, folder in enumerate(folders)
            if self.split in ("all", self.classes[label])
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in ENDINGS
        ]
        self._files = {f"{path.parent.name}/{path.stem}": (label, path) for label, path in chosen}
        if not chosen or len(self._files) < len(chosen):
            raise DataError(self.root, "images of different names", f"{len(chosen)} images")
        self.ids = tuple(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image; its truth is read."""
        name = self.ids[self._at(index)]
        label, path = self._files[name]
        size = image_size(path)
        masks = WsolMasks((path.parent / TRUTH / f"{path.stem}.png",), None, size, label)
        boxes, _ = components(masks.of(label).astype(np.int64))
        return Sample(name, path, size, boxes, np.full(max(len(boxes), 1), label), masks=masks)
