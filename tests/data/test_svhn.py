"""House numbers, read from files written as the originals are."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsod.data import open_dataset
from wsod.errors import ConfigError, DataError

DIGITS = [1, 10, 7, 10, 3]
NUMBERS = {
    "2.png": [(1, 3, 4, 5, 6), (10, 10, 4, 5, 30)],
    "1.png": [(5, 0, -1, 8, 9)],
    "10.png": [(9, 39, 2, 1, 3)],
}
"""label, left, top, width, height"""


def write_cropped(root: Path, split: str = "test") -> np.ndarray:
    root.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, len(DIGITS)), np.uint8)
    savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.array(DIGITS, np.uint8)[:, None]})
    return pixels


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in NUMBERS:
        Image.new("RGB", (40, 20), (9, 8, 7)).save(folder / name)


def write_struct(folder: Path) -> None:
    write_images(folder)
    entries = np.zeros((1, len(NUMBERS)), [("name", object), ("bbox", object)])
    for n, (name, boxes) in enumerate(NUMBERS.items()):
        kind = [(key, object) for key in ("label", "left", "top", "width", "height")]
        struct = np.zeros((1, len(boxes)), kind)
        for k, box in enumerate(boxes):
            struct[0, k] = tuple(float(value) for value in box)
        entries[0, n] = (name, struct)
    savemat(folder / "digitStruct.mat", {"digitStruct": entries})


def write_hdf5(folder: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_images(folder)
    with h5py.File(folder / "digitStruct.mat", "w", userblock_size=512) as file:
        struct, reference = file.create_group("digitStruct"), h5py.ref_dtype
        columns = {key: struct.create_dataset(key, (len(NUMBERS), 1), reference) for key in ("name", "bbox")}
        for n, (name, boxes) in enumerate(NUMBERS.items()):
            text = file.create_dataset(f"#refs#/name{n}", data=np.array([[ord(c)] for c in name], np.uint16))
            columns["name"][n, 0] = text.ref
            group = file.create_group(f"#refs#/bbox{n}")
            for k, key in enumerate(("label", "left", "top", "width", "height")):
                if len(boxes) == 1:
                    group.create_dataset(key, data=np.array([[float(boxes[0][k])]]))
                    continue
                cells = group.create_dataset(key, (len(boxes), 1), reference)
                for i, box in enumerate(boxes):
                    value = file.create_dataset(f"#refs#/{n}{key}{i}", data=np.array([[float(box[k])]]))
                    cells[i, 0] = value.ref
            columns["bbox"][n, 0] = group.ref


def test_digits(tmp_path: Path) -> None:
    pixels = write_cropped(tmp_path)
    data = open_dataset(f"svhn:{tmp_path}")
    assert (data.split, data.task, len(data), data.classes[0]) == ("test", "multiclass", 5, "0")
    assert [sample.classes for sample in data] == [(1,), (0,), (7,), (0,), (3,)]
    assert np.array_equal(np.asarray(data.image(3)), pixels[..., 3])
    assert data[0].size == (32, 32)
    assert data.ids[2] == "test_000002"
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(np.asarray(again.image(-1)), pixels[..., 4])


@pytest.mark.slow
def test_torchvision_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    write_cropped(tmp_path, "train")
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    theirs, ours = SVHN(str(tmp_path), "train"), open_dataset(f"svhn:{tmp_path}", "train")
    assert len(theirs) == len(ours)
    for n, (image, label) in enumerate(theirs):
        assert ours[n].classes == (label,)
        assert np.array_equal(np.asarray(ours.image(n)), np.asarray(image))


@pytest.mark.parametrize("write", [write_struct, write_hdf5])
@pytest.mark.slow
def test_numbers(tmp_path: Path, write) -> None:
    write(tmp_path / "train")
    write_cropped(tmp_path)
    data = open_dataset(f"svhn:{tmp_path}", "train")
    assert (data.task, data.ids, data.splits) == ("multilabel", ("1", "2", "10"), ("train", "test"))
    one, two, ten = data
    assert one.labels.tolist() == [5]
    assert one.boxes.tolist() == [[0, 0, 7, 7]]  # cut off at the edges
    assert two.labels.tolist() == [1, 0]
    assert two.boxes.tolist() == [[2, 3, 7, 9], [9, 3, 14, 20]]
    assert ten.boxes.tolist() == [[38, 1, 39, 4]]
    assert data.image(0).size == (40, 20)
    # the other split has digits alone
    assert open_dataset(f"svhn:{tmp_path}", "test").task == "multiclass"
    with pytest.raises(ConfigError, match="a known split"):
        open_dataset(f"svhn:{tmp_path},format=cropped", "train")


@pytest.mark.slow
def test_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_32x32\.mat"):
        open_dataset(f"svhn:{tmp_path}")
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="a readable MATLAB file"):
        open_dataset(f"svhn:{tmp_path}")
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [11]]})
    with pytest.raises(DataError, match="numbers from 1 to 10"):
        open_dataset(f"svhn:{tmp_path}")
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [2], [3]]})
    with pytest.raises(DataError, match="3 images as in y"):
        open_dataset(f"svhn:{tmp_path}").image(0)
    savemat(path, {"X": np.zeros((9, 32, 3, 3), np.uint8), "y": [[1], [2], [3]]})
    with pytest.raises(DataError, match=r"\(32, 32, 3, N\)"):
        open_dataset(f"svhn:{tmp_path}").image(0)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/digitStruct.mat").write_bytes(b"x" * 600)
    with pytest.raises(DataError, match="MATLAB"):
        open_dataset(f"svhn:{tmp_path}", "train")
    (tmp_path / "train/digitStruct.mat").write_bytes(b"\0" * 512 + b"\x89HDF\r\n\x1a\n" + b"x" * 600)
    with pytest.raises(DataError, match=r"digitStruct\.mat"):
        open_dataset(f"svhn:{tmp_path}", "train")


def test_a_file_that_crashes_its_reader_is_named(tmp_path: Path) -> None:
    """Found by fuzzing: scipy's reader ends the process at a number of an unknown type."""
    write_struct(tmp_path / "train")
    path = tmp_path / "train/digitStruct.mat"
    sound, number = path.read_bytes(), struct.pack("<d", 4.0)
    path.write_bytes(sound.replace(struct.pack("<II", 9, 8) + number, struct.pack("<II", 77, 8) + number, 1))
    assert path.read_bytes() != sound
    with pytest.raises(DataError, match=r"digitStruct\.mat: expected a readable MATLAB file, got "):
        open_dataset(f"svhn:{tmp_path}", "train")
