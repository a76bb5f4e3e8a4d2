from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atcon.config import DataConfig
from atcon.data import Batch, Images, Item, batches, stream
from atcon.pools import ONE_SPLIT, open_sources
from atcon.subsets import label_matrix
from tests.atcon.datasets import Toy, many
from wsod.config import parse_settings
from wsod.errors import ConfigError
from wsod.models.preprocess import Preprocess

VARIED = DataConfig(crop=0.3, flip=0.5, jitter=0.4)


def images(n=11, augment=VARIED, seed=0, dataset=None):
    dataset = dataset or many(n)
    return Images(dataset, range(len(dataset)), label_matrix(dataset), Preprocess(16), augment, seed)


def same(a: Batch, b: Batch) -> bool:
    return a.rows == b.rows and torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)


def test_an_epoch_shows_every_image_once():
    found = [batch.rows for batch in islice(stream(images(12), 4, seed=1), 6)]
    for epoch in (found[:3], found[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(12))
    assert found[:3] != found[3:]
    assert all(len(rows) == 4 for rows in found)


def test_a_stream_goes_on_where_it_was_left():
    pool = images()
    whole = list(islice(stream(pool, 4, seed=3), 7))
    for start in (1, 2, 5):
        rest = islice(stream(pool, 4, seed=3, start=start), 7 - start)
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))
    other = next(stream(pool, 4, seed=4))
    assert other.rows != whole[0].rows


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_change_nothing():
    pool = images()
    alone, shared = stream(pool, 4, seed=3), stream(pool, 4, seed=3, workers=2)
    assert all(same(next(alone), next(shared)) for _ in range(5))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    next(stream(images(), 4, seed=0))
    list(batches(images(), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_varies_with_the_epoch_and_is_off_in_evaluation():
    varied, plain = images(), images(augment=None)
    assert not torch.equal(varied[Item(0, 2)][0], varied[Item(1, 2)][0])
    assert torch.equal(varied[Item(1, 2)][0], varied[Item(1, 2)][0])
    assert not torch.equal(varied[Item(0, 2)][0], images(seed=1)[Item(0, 2)][0])
    expected = Preprocess(16)(plain.dataset.image(2))[0]
    assert torch.equal(plain[Item(0, 2)][0], expected)
    assert torch.equal(plain[Item(5, 2)][0], expected)
    still = images(augment=DataConfig(flip=0.0))
    assert torch.equal(still[Item(0, 2)][0], expected)
    turned = images(augment=DataConfig(flip=1.0))
    torch.testing.assert_close(turned[Item(0, 2)][0], expected.flip(2), rtol=0, atol=0.02)


def test_evaluation_sees_all_images_in_order():
    found = list(batches(images(augment=None), 4))
    assert [row for batch in found for row in batch.rows] == list(range(11))
    assert [len(batch) for batch in found] == [4, 4, 3]


def test_targets():
    multi = next(batches(images(3, None, dataset=Toy([[0, 2], [1], [3]])), 3))
    assert multi.targets.dtype == torch.float32
    assert multi.targets.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    single = next(batches(images(3, None, dataset=Toy([[2], [1], [3]], task="multiclass")), 3))
    assert single.targets.dtype == torch.int64
    assert single.targets.tolist() == [2, 1, 3]


def test_parts_of_a_batch():
    batch = next(batches(images(augment=None), 7))
    parts = list(batch.parts(3))
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert len(list(batch.parts(99))) == 7
    moved = batch.to(torch.device("cpu"), channels_last=True)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(moved.images.numpy(), batch.images.numpy())


def test_a_split_nobody_named_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Data of one split, such as a COCO file: what is said to type instead is typed."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for k in range(7):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{k}.png")
    data = DataConfig(f"folder:{tmp_path}")
    with pytest.raises(
        ConfigError, match=r"data\.train: expected a split of folder:.*'train'.*: all\."
    ) as found:
        open_sources(data)
    assert ONE_SPLIT in str(found.value)
    with pytest.raises(ConfigError, match=r"data\.val: expected a split of folder"):
        open_sources(replace(data, train="all"))
    said = parse_settings(ONE_SPLIT.removeprefix("--set ").split(" --set "))
    subset = open_sources(replace(data, **said["data"])).subset
    assert (len(subset.train), len(subset.val)) == (4, 10)
