"""Street View House Numbers (Netzer et al., 2011): single digits cut out, or whole numbers with boxes.

    ROOT/train_32x32.mat, test_32x32.mat, extra_32x32.mat       digits of 32x32, as torchvision downloads them
    ROOT/train/digitStruct.mat and ROOT/train/1.png, …          whole numbers, a box a digit

Labels are the digits; the files write 0 as 10. Boxes are 1-based in the files and may reach over the image's
edge; they are cut off there. `digitStruct.mat` is HDF5 (MATLAB 7.3), which takes the package h5py; one saved
in the older format is read by scipy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsod.data import matlab
from wsod.data.dataset import Dataset, image_size
from wsod.data.files import finite, inside
from wsod.errors import ConfigError, DataError
from wsod.types import Sample

__all__ = ["Svhn"]

Digit = tuple[int, tuple[float, float, float, float]]


@dataclass
class Svhn(Dataset):
    """House numbers: 10 classes, one digit an image, or several with boxes.

    Args:
        root: the folder.
        split: `train`, `test` or `extra`.
        format: `cropped` digits, `full` numbers; `auto` = full where the split has its digitStruct.mat.
    """

    name: ClassVar[str] = "svhn"
    usage: ClassVar[str] = "svhn:ROOT[,format=auto|cropped|full]"
    default_split: ClassVar[str] = "test"
    paths: ClassVar[tuple[str, ...]] = ("root",)
    mirrors: ClassVar[bool] = False

    root: Path
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    format: Literal["auto", "cropped", "full"] = "auto"
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.classes = tuple("0123456789")
        cropped = [name for name in ("train", "test", "extra") if self._file(name).is_file()]
        full = [name for name in ("train", "test", "extra") if self._list(name).is_file()]
        found = {"cropped": cropped, "full": full, "auto": list(dict.fromkeys([*full, *cropped]))}
        self.splits = tuple(found[self.format])
        if not self.splits:
            wanted = "train_32x32.mat or train/digitStruct.mat" if self.format == "auto" else self.format
            raise ConfigError(
                f"svhn:{self.root}", wanted, "none", "`wsod data download svhn` gets the digits."
            )
        self.split = self._known_split(self.split)
        self._pixels: NDArray[np.uint8] | None = None
        self._numbers: list[tuple[Path, list[Digit]]] = []
        if self.format == "full" or (self.format == "auto" and self.split in full):
            self.task = "multilabel"
            self._numbers = sorted(_numbers(self._list(self.split)), key=lambda number: _order(number[0]))
            self.ids = tuple(path.stem for path, _ in self._numbers)
            if len(set(self.ids)) < len(self.ids):
                raise DataError(self._list(self.split), "every image once", "two of one name")
        else:
            self.task = "multiclass"
            self._digits = self._read("y").astype(np.int64).ravel() % 10
            self.ids = tuple(f"{self.split}_{n:06d}" for n in range(len(self._digits)))

    def _file(self, split: str) -> Path:
        return self.root / f"{split}_32x32.mat"

    def _list(self, split: str) -> Path:
        return self.root / split / "digitStruct.mat"

    def _read(self, variable: str) -> NDArray[Any]:
        """A variable of the digits' file."""
        path = self._file(str(self.split))
        with _apart(path, variable) as file:
            values: NDArray[Any] = np.load(file, allow_pickle=False)
        expected = {"X": "(32, 32, 3, N) bytes", "y": "(N, 1) numbers from 1 to 10"}[variable]
        if values.dtype.kind not in "uif":
            raise DataError(f"{path}: {variable}", expected, values.dtype)
        if variable == "X" and (
            values.dtype != np.uint8 or values.ndim != 4 or values.shape[:3] != (32, 32, 3)
        ):
            raise DataError(f"{path}: X", expected, f"{values.dtype} of shape {values.shape}")
        if variable == "y" and not np.isin(values, np.arange(11)).all():
            raise DataError(f"{path}: y", expected, f"the value {values.max()}")
        return values

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image; a whole number's size is read from the file's header."""
        index = self._at(index)
        if not self._numbers:
            return Sample(self.ids[index], None, (32, 32), labels=self._digits[index : index + 1])
        path, digits = self._numbers[index]
        height, width = image_size(path)
        boxes, labels = [], []
        for label, (left, top, w, h) in digits:
            x0, y0 = max(left - 1, 0.0), max(top - 1, 0.0)
            x1, y1 = min(left - 1 + w, float(width)), min(top - 1 + h, float(height))
            if x0 < x1 and y0 < y1:
                boxes.append((x0, y0, x1, y1))
                labels.append(label)
        return Sample(
            self.ids[index], path, (height, width), np.array(boxes).reshape(-1, 4), np.array(labels, np.int64)
        )

    def image(self, index: int) -> Image.Image:
        """The pixels of one image."""
        if self._numbers:
            return super().image(index)
        index = self._at(index)
        if self._pixels is None:
            self._pixels = self._read("X")
            if self._pixels.shape[3] != len(self.ids):
                path, got = self._file(str(self.split)), self._pixels.shape[3]
                raise DataError(f"{path}: X", f"{len(self.ids)} images as in y", got)
        return Image.fromarray(np.ascontiguousarray(self._pixels[..., index]))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pixels": None}


def _order(path: Path) -> tuple[int, str]:
    """By number, as the files are named."""
    number = path.stem.isdecimal() and len(path.stem) < 20
    return (int(path.stem), "") if number else (-1, path.stem)


@contextmanager
def _apart(path: Path, what: str) -> Iterator[IO[bytes]]:
    """What `wsod.data.matlab` writes of a file, in a process whose end is not ours."""
    # -P: no module is taken from the folder one stands in
    command = [sys.executable, "-P", matlab.__file__, str(path), what]
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE)
        if done.returncode:
            found = done.stderr.decode("utf-8", "replace").strip().splitlines()
            got = found[-1] if found else f"its reader stopped with {done.returncode}"
            hint = "pip install h5py, or use format=cropped." if got == "without h5py" else ""
            raise DataError(path, "a readable MATLAB file", got, hint)
        out.seek(0)
        yield out


def _numbers(path: Path) -> list[tuple[Path, list[Digit]]]:
    """The image file and the digits (label, (left, top, width, height)) of each whole number."""
    with _apart(path, "numbers") as file:
        rows = json.load(file)
    try:
        for name, _ in rows:
            inside(name, path, "file names in the folder")
        return [(path.parent / name, [_digit(box) for box in boxes]) for name, boxes in rows]
    except ValueError as error:
        raise DataError(path, "names and boxes of digits", error) from error


def _digit(box: Sequence[float]) -> Digit:
    label, left, top, width, height = map(finite, box)
    if label not in range(1, 11):
        raise ValueError(f"the label {label:g}")
    return int(label) % 10, (left, top, width, height)
