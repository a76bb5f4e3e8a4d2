"""Label maps are read once, again when their file changes, and forgotten when there are too many."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsod.data.masks import ArrayMasks, PngMasks
from wsod.data.wsol import WsolMasks
from wsod.metrics import truth
from wsod.metrics.labelmaps import KEY, LabelMaps
from wsod.types import Masks, Sample

Array = np.ndarray
SIZE = (31, 45)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> LabelMaps:
    own = LabelMaps()
    monkeypatch.setattr(truth, "LABEL_MAPS", own)
    return own


def write(path: Path, seed: int) -> Path:
    pixels = (np.random.default_rng(seed).random(SIZE) > 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def masks_of(folder: Path) -> WsolMasks:
    return WsolMasks(
        (write(folder / "a.png", 0), write(folder / "b.png", 1)), write(folder / "i.png", 2), SIZE, 4
    )


def label_map(masks: Masks, label: int = 4, frame: tuple[int, int] = (20, 20)) -> tuple[Array, Array]:
    found = truth.truth_mask(Sample("a", None, SIZE, labels=[4], masks=masks), label, frame, "masks")
    assert found is not None
    return found


def test_files_are_read_once_for_equal_masks(
    tmp_path: Path, memory: LabelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = masks_of(tmp_path)
    first = label_map(masks)
    expected = truth.resize_nearest(masks.of(4), (20, 20))
    np.testing.assert_array_equal(first[0], expected)
    monkeypatch.setattr(WsolMasks, "_read", lambda *_: pytest.fail("read again"))
    again = label_map(WsolMasks(masks.masks, masks.ignored, SIZE, 4))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert other.dtype == np.bool_
    assert len(memory) == 1


def test_another_label_or_frame_is_another_label_map(tmp_path: Path, memory: LabelMaps) -> None:
    masks = masks_of(tmp_path)
    assert label_map(masks)[0].any()
    assert not label_map(masks, 3)[0].any()
    assert label_map(masks, frame=SIZE)[0].shape == SIZE
    np.testing.assert_array_equal(label_map(masks, frame=SIZE)[0], masks.of(4))
    assert len(memory) == 3


def test_a_changed_file_is_read_again(tmp_path: Path, memory: LabelMaps) -> None:
    path = write(tmp_path / "a.png", 0)
    old = label_map(PngMasks(path, SIZE, 1), 0, SIZE)[0]
    write(path, 1)
    os.utime(path, ns=(1, 1))
    new = label_map(PngMasks(path, SIZE, 1), 0, SIZE)[0]
    assert (old != new).any()


def test_masks_in_memory_are_not_kept(memory: LabelMaps) -> None:
    label_map(ArrayMasks(np.ones(SIZE, np.uint8), (4,)))
    assert len(memory) == 0


def test_those_not_asked_for_longest_go_first(tmp_path: Path) -> None:
    pair = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
    files = [PngMasks(write(tmp_path / f"{n}.png", n), SIZE, 1) for n in range(3)]
    memory = LabelMaps()
    made: list[int] = []

    def ask(n: int) -> None:
        memory.get(files[n], 0, lambda: made.append(n) or pair)  # type: ignore[func-returns-value]

    ask(0)
    memory.limit = 2 * memory.size
    assert memory.size > KEY
    for n in (1, 0, 2, 0, 1):
        ask(n)
    assert made == [0, 1, 2, 1]
    assert memory.size <= memory.limit
