"""House numbers' MATLAB files, read in a process of their own: damaged ones crash the libraries for them.

    python matlab.py FILE VARIABLE      that variable, as .npy
    python matlab.py FILE numbers       [[name, [[label, left, top, width, height], …]], …] as JSON

The result goes to standard output, what is wrong to standard error. As a script this imports nothing of the
package, and nothing from the folder one stands in.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["numbers", "variable"]

HDF5 = b"\x89HDF\r\n\x1a\n"
#: rows of a table beyond which a file is no list of house numbers
MOST_IMAGES, MOST_DIGITS = 10_000_000, 1000
KEYS = ("label", "left", "top", "width", "height")
Rows = Iterator[tuple[str, list[list[float]]]]


def variable(path: Path, name: str) -> Any:
    """One variable of a file in the format before 7.3."""
    from scipy.io import loadmat

    return loadmat(path, variable_names=[name], squeeze_me=False, struct_as_record=False)[name]


def numbers(path: Path) -> Rows:
    """Every image's name and its digits' rows."""
    with path.open("rb") as file:
        # MATLAB puts 512 bytes of its own before HDF5's
        head = file.read(520)
    return _from_hdf5(path) if HDF5 in (head[:8], head[512:]) else _from_struct(path)


def _from_struct(path: Path) -> Rows:
    for entry in np.ravel(variable(path, "digitStruct")):
        boxes = [[float(np.ravel(getattr(box, key))[0]) for key in KEYS] for box in np.ravel(entry.bbox)]
        yield str(np.ravel(entry.name)[0]), boxes


def _from_hdf5(path: Path) -> Rows:
    import h5py  # type: ignore[import-untyped]

    def own(group: Any, key: Any, most: int) -> Any:
        """A table in this file, of at most so many rows; links and virtual tables could name any file."""
        found = group[key]
        link = group.get(key, getlink=True) if isinstance(key, str) else None
        if isinstance(link, h5py.ExternalLink) or found.external or found.is_virtual:
            raise ValueError(f"{key}: in another file")
        if found.shape[0] > most:
            raise ValueError(f"{key}: {found.shape[0]} rows")
        return found[:, 0]

    with h5py.File(path) as file:
        struct = file["digitStruct"]
        names, places = own(struct, "name", MOST_IMAGES), own(struct, "bbox", MOST_IMAGES)
        for name, place in zip(names, places, strict=True):
            columns = []
            for key in KEYS:
                # one digit: the number itself; several: references to them
                cells = own(file[place], key, MOST_DIGITS)
                several = cells.dtype.kind == "O"
                columns.append([float(own(file, cell, 1)[0]) if several else float(cell) for cell in cells])
            boxes = [list(row) for row in zip(*columns, strict=True)]
            yield "".join(chr(code) for code in own(file, name, 4096)), boxes


def _main() -> None:
    path, what = Path(sys.argv[1]), sys.argv[2]
    try:
        with os.fdopen(os.dup(1), "wb") as out:
            if what == "numbers":
                out.write(json.dumps(list(numbers(path))).encode())
            else:
                np.save(out, variable(path, what), allow_pickle=False)
    except ImportError as error:
        sys.exit(f"without {error.name}")
    except Exception as error:  # damaged files make the readers raise almost anything
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _main()
