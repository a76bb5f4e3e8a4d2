"""Maps on disk: a folder a method, a file an image, checksums as they are written, a manifest last.

maps/gradcam/2007_000032.npz    labels (K,), values (K, h, w), size, ranking, region
maps/gradcam/files.jsonl        what made them; then, a line a batch, the SHA-256 of each image's file
maps/gradcam/files.1.jsonl      the same, while a run of several processes is at work: a file each
maps/gradcam/manifest.json      method, classes, images: the folder is complete

Of more than 10,000 images the files are spread over folders: maps/gradcam/3f7/ID.npz, where 3f7 begins the
SHA-256 of the id.

A process may be killed at any moment: an image is done when its line is there and its file is what the line
says. What is half-written or damaged is found and made again.
"""

from __future__ import annotations

import hashlib
import json
import os.path
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from wsod.data.dataset import bare, by_stem
from wsod.errors import ConfigError, DataError, MapError
from wsod.mapfiles import find_map_file, read_maps, write_maps
from wsod.output import append_line, refuse_link, remove, write_text
from wsod.types import AttentionMaps, Sample

__all__ = ["MapStore", "expand_map_folders", "folder_name"]

MANIFEST, FILES = "manifest.json", "files.jsonl"
AGAIN = "Run what made it again: only what is missing is computed."
LONG = 60
"""Characters of a method's folder, four bytes each at most: file systems take 255."""
MANY = 10_000
"""Images from which on their files are spread over 4096 folders."""


class MapStore:
    """A folder of one method's maps.

    Args:
        folder: where they are, or will be.
        classes: number of classes of the data set they are of.
        images: number of images it will hold.
        rank: which of the processes that write it at once this is.
        ids: of the data set; a folder made elsewhere may call those by their last name that alone have it.

    Attributes:
        damaged: files that were not what their checksum says, as `has` found them.
        lost: images whose file was damaged or missing, as `has` found them.
    """

    def __init__(
        self, folder: Path, classes: int, *, images: int = 0, rank: int = 0, ids: Sequence[str] = ()
    ) -> None:
        self.folder, self.classes, self.spread = folder, classes, images > MANY
        self.manifest = _table(folder / MANIFEST, "a manifest written by `wsod maps`")
        self.damaged: list[Path] = []
        self.lost: set[str] = set()
        self._ids = ids
        self._files = folder / (f"files.{rank}.jsonl" if rank else FILES)
        self._made, self._sums = self._read_files()
        self._pending: dict[str, str] = {}

    def _read_files(self) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """What made the maps (None: another tool), and checksums by image, of all who wrote."""
        path = self.folder / FILES
        if not path.is_file():
            return None, {}
        made, sums = _read_sums(path)
        for other in self._of_others():
            theirs, more = _read_sums(other)
            if theirs == made:  # else of a run that was killed, before maps were made anew
                sums |= more
        return made, sums

    def _of_others(self) -> list[Path]:
        return sorted(self.folder.glob("files.*.jsonl"))

    @property
    def made(self) -> Mapping[str, Any] | None:
        """All that the maps depend on; None of maps made elsewhere."""
        return self._made

    @property
    def supervision(self) -> tuple[str, ...]:
        """What the maps were made with; unknown for maps made elsewhere."""
        used = self.manifest.get("supervision", (self._made or {}).get("supervision", ["unknown"]))
        if not isinstance(used, list) or not all(isinstance(word, str) for word in used):
            raise DataError(self.folder / MANIFEST, "a list of words as supervision", repr(used)[:60])
        return tuple(used)

    def read(self, sample: Sample) -> AttentionMaps:
        """That image's maps.

        Raises:
            MapError: naming the file, where it is missing, no maps, or not what its checksum says.
        """
        if self._made is None:
            last = not self._ids or bare(sample.image_id) in self._last_names
            return read_maps(find_map_file(self.folder, sample, last=last), sample, self.classes)
        path = self._path(sample.image_id)
        if sample.image_id not in self._sums:
            of = f"of {self._made.get('data')}, split {self._made.get('split')}"
            hint = f"{self.folder} has maps of {len(self._sums)} images {of}."
            raise MapError(path, f"the maps of image {sample.image_id!r}", "none", hint)
        if not self._whole(sample.image_id):
            raise MapError(path, "the file whose checksum is in files.jsonl", "another or none", AGAIN)
        return read_maps(path, sample, self.classes)

    @cached_property
    def _last_names(self) -> Mapping[str, str]:
        return by_stem(self._ids)

    def begin(self, made: Mapping[str, Any], *, anew: Callable[[], object] | None = None) -> None:
        """Start writing, or go on where an earlier process stopped.

        Args:
            made: all that the maps depend on; words and numbers.
            anew: start over where the folder's maps were made otherwise, and call this before.

        Raises:
            ConfigError: where they were, naming the difference, without `anew`.
        """
        refuse_link(self.folder)
        made = json.loads(json.dumps(made))
        before = self._made
        if before != made:
            if before and not anew:
                key, wanted, got = _difference(made, before)
                hint = "Name another --out, or delete that folder."
                raise ConfigError(self.folder, f"maps made with {key} = {wanted!r}", f"{key} = {got!r}", hint)
            if before and anew:
                anew()
            self._made, self._sums = dict(made), {}
        self._gather()

    def _gather(self) -> None:
        """All checksums in one file, without the line a killed process may have left half-written."""
        made = json.dumps(self._made)
        lines = [made, json.dumps(self._sums)] if self._sums else [made]
        write_text(self.folder / FILES, "\n".join(lines) + "\n", held=True)
        for other in self._of_others():
            remove(other)

    def has(self, image_id: str) -> bool:
        """Whether that image's maps were written here and are still what they were."""
        if image_id not in self._sums:
            return False
        if self._whole(image_id):
            return True
        path = self._path(image_id)
        del self._sums[image_id]
        self.lost.add(image_id)
        if path.exists():
            self.damaged.append(path)
        return False

    def listed(self, image_id: str) -> bool:
        """Whether that image is done, so far as is known."""
        return image_id in self._sums

    def _whole(self, image_id: str) -> bool:
        try:
            with self._path(image_id).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self._sums[image_id]
        except OSError:
            return False

    def write(self, maps: AttentionMaps) -> None:
        """Add one image's maps; they count from the next `commit` on."""
        self._pending[maps.image_id] = write_maps(self._path(maps.image_id), maps)

    def commit(self) -> None:
        """What was written is done."""
        if self._pending:
            if self._made is None:
                self.begin({})
            if not self._files.exists():
                append_line(self._files, json.dumps(self._made))
            append_line(self._files, json.dumps(self._pending))
            self._sums |= self._pending
            self._pending = {}

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the manifest: the store is complete, once all who write have committed."""
        self.commit()
        if self._of_others():
            self._made, self._sums = self._read_files()
            self._gather()
        text = json.dumps(dict(about), indent=1, ensure_ascii=False) + "\n"
        write_text(self.folder / MANIFEST, text, held=True)

    def _path(self, image_id: str) -> Path:
        parts = image_id.split("/")
        if ".." in parts or parts[0] == "" or parts[-1] in ("", ".") or "\0" in image_id:
            raise DataError(image_id, "an image id that stays inside the output folder", repr(image_id))
        flat = self.folder / f"{image_id}.npz"
        first = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:3]
        spread = self.folder / first / f"{image_id}.npz"
        here, other = (spread, flat) if self.spread else (flat, spread)
        return other if image_id in self._sums and not here.exists() and other.exists() else here


def _read_sums(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The first line, and all others as one table; half a last line is left out."""
    made: dict[str, Any] = {}
    sums: dict[str, str] = {}
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(lines):
            table = json.loads(line)
            if number:
                sums |= {str(image): str(digest) for image, digest in table.items()}
            else:
                made = dict(table)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        hint = "Delete the folder, and make the maps again."
        raise DataError(path, "checksums written by `wsod maps`", error, hint) from error
    return made, sums


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> tuple[str, Any, Any]:
    """The first key that differs, within tables too, and its values."""
    key = next(key for key in {**other, **one} if one.get(key) != other.get(key))
    first, second = one.get(key), other.get(key)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return _difference(first, second, f"{before}{key}.")
    return before + key, first, second


def _table(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(path, what, error) from error
    if not isinstance(table, dict):
        raise DataError(path, what, type(table).__name__)
    return table


def folder_name(maps: str) -> str:
    """The folder of a map method: one, though its options may name files, such as fit=../fits/lcam.pt."""
    if "/" not in maps and len(maps) <= LONG:
        return maps
    digest = hashlib.sha256(maps.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{maps.replace('/', '_')[:LONG]}-{digest}"


def expand_map_folders(name: str) -> list[Path]:
    """The stores a `--maps` argument means: none for a method's name, itself, or its subfolders."""
    folder = Path(name)
    if not name or not os.path.isdir(folder):  # pathlib raises where a name is too long
        return []
    stores = sorted({path.parent for kind in (MANIFEST, FILES) for path in folder.glob(f"*/{kind}")})
    own = (folder / MANIFEST).exists() or (folder / FILES).exists()
    return stores if stores and not own else [folder]
