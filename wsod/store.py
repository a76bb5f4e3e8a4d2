"""Maps on disk: a folder a method, a file an image, a manifest written last.

maps/gradcam/2007_000032.npz    labels (K,), values (K, h, w), size, ranking, region
maps/gradcam/manifest.json      method, classes, images, and what made them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsod.config import write_text
from wsod.errors import DataError
from wsod.mapfiles import find_map_file, read_maps, write_maps
from wsod.types import AttentionMaps, Sample

__all__ = ["MapStore", "expand_map_folders"]

MANIFEST = "manifest.json"


class MapStore:
    """A folder of one method's maps.

    Args:
        folder: where they are, or will be.
        classes: number of classes of the data set they are of.
    """

    def __init__(self, folder: Path, classes: int) -> None:
        self.folder, self.classes = folder, classes
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(path, "a manifest written by `wsod maps`", error) from error
        if not isinstance(manifest, dict):
            raise DataError(path, "a manifest written by `wsod maps`", type(manifest).__name__)
        return manifest

    @property
    def supervision(self) -> tuple[str, ...]:
        """What the maps were made with; unknown for maps made elsewhere."""
        return tuple(self.manifest.get("supervision", ("unknown",)))

    def read(self, sample: Sample) -> AttentionMaps:
        """That image's maps. Raises MapError naming the file."""
        return read_maps(find_map_file(self.folder, sample), sample, self.classes)

    def has(self, image_id: str) -> bool:
        """Whether this store wrote that image's maps."""
        return self._path(image_id).exists()

    def write(self, maps: AttentionMaps) -> None:
        """Add one image's maps."""
        write_maps(self._path(maps.image_id), maps)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the manifest: the store is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / MANIFEST, json.dumps(dict(about), indent=1, ensure_ascii=False) + "\n")

    def _path(self, image_id: str) -> Path:
        path = self.folder / f"{image_id}.npz"
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise DataError(image_id, "an image id that stays inside the output folder", repr(image_id))
        return path


def expand_map_folders(name: str) -> list[Path]:
    """The stores a `--maps` argument means: none for a method's name, itself, or its subfolders."""
    folder = Path(name)
    if not name or not folder.is_dir():
        return []
    stores = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    return stores if stores and not (folder / MANIFEST).exists() else [folder]
