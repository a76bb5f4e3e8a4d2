"""Masks and boxes of training images go wherever the image goes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from atcon.build import make_objectives
from atcon.config import DataConfig, StageConfig, TermConfig
from atcon.data import Images, Item, stream
from atcon.objectives import OBJECTIVES, Objective
from atcon.pools import open_sources
from atcon.subsets import label_matrix
from tests.atcon.datasets import Toy
from tests.atcon.networks import mini_classifier
from wsod.data.masks import ArrayMasks
from wsod.errors import ConfigError
from wsod.models.preprocess import Preprocess
from wsod.registry import Registry
from wsod.types import Sample

BLOCK = (30, 12, 70, 40)


class Blocks(Toy):
    """Black images with a white rectangle of class 2, whose pixels are the mask; the last has no mask."""

    def __init__(self) -> None:
        super().__init__([[2], [2], [2]])
        self.pixels = np.zeros((64, 96), np.uint8)
        x0, y0, x1, y1 = BLOCK
        self.pixels[y0:y1, x0:x1] = 1

    def __getitem__(self, index: int) -> Sample:
        masks = ArrayMasks(self.pixels, (2,)) if index < 2 else None
        return Sample(self.ids[index], None, (64, 96), [BLOCK], [2], masks=masks)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.repeat(255 * self.pixels[..., None], 3, 2))


def blocks(preprocess: Preprocess, augment: DataConfig | None = None) -> Images:
    data = Blocks()
    return Images(data, range(3), label_matrix(data), preprocess, augment, 0, {"masks", "boxes"})


@pytest.mark.parametrize("mode", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize(
    "augment", [None, DataConfig(crop=0.4, flip=0.5, jitter=0.2)], ids=["plain", "varied"]
)
def test_mask_and_box_stay_on_the_object(mode: str, augment: DataConfig | None) -> None:
    pool = blocks(Preprocess(48, mode=mode, mean=(0, 0, 0), std=(1, 1, 1)), augment)
    seen = 0
    for epoch in range(8):
        example = pool[Item(epoch, 0)]
        white = example.image.mean(0) > example.image.max() / 2
        mask = example.truth.masks[2].bool()
        # the image is interpolated, the mask is not: they may differ along the edge
        assert (white ^ mask).sum() <= 0.03 * mask.numel()
        assert not example.truth.masks[[0, 1, 3]].any()
        boxes = example.truth.rows()
        assert len(boxes) == int(mask.any())
        if len(boxes):
            seen += 1
            ys, xs = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
            edges = torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
            assert (boxes[0, :4] - edges).abs().max() <= 2.5
            assert boxes[0, 4] == 2
    assert seen > 4


def test_what_lies_outside_the_image_is_void() -> None:
    example = blocks(Preprocess(48, mode="letterbox"))[Item(0, 0)]
    assert example.truth.void.sum(1).tolist() == [48] * 8 + [0] * 32 + [48] * 8
    assert not example.truth.masks[:, :8].any()


def test_a_batch_holds_them_and_its_parts_too() -> None:
    batch = next(stream(blocks(Preprocess(32)), 3, seed=0))
    assert batch.masks.shape == (3, 4, 32, 32)
    assert batch.masks.dtype == batch.void.dtype == batch.has_mask.dtype == torch.bool
    for row, has, mask, boxes in zip(batch.rows, batch.has_mask, batch.masks, batch.boxes, strict=True):
        assert bool(has) == bool(mask.any()) == (row < 2)
        assert boxes.shape == (1, 5)
    parts = list(batch.to(torch.device("cpu"), channels_last=True).parts(2))
    assert torch.equal(torch.cat([part.masks for part in parts]), batch.masks)
    assert [len(part.boxes) for part in parts] == [2, 1]


def test_they_are_not_read_where_nobody_wants_them_and_change_no_pixel() -> None:
    data, varied = Blocks(), DataConfig(crop=0.4, flip=0.5, jitter=0.2)
    bare = Images(data, range(3), label_matrix(data), Preprocess(32), varied)
    streams = (islice(stream(pool, 2, seed=1), 4) for pool in (bare, blocks(Preprocess(32), varied)))
    for a, b in zip(*streams, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.masks is a.void is a.has_mask is a.boxes is None


@dataclass(frozen=True)
class Masked(Objective):
    """Reads masks."""

    name: ClassVar[str] = "masked"
    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    supervision: ClassVar[tuple[str, ...]] = ("masks",)

    def __call__(self, classifier, batch, step):
        inside = (classifier(batch.images) * batch.masks.flatten(2).float().mean(2)).sum(1)
        return {self.name: (inside * batch.has_mask).mean()}


@pytest.mark.slow
def test_an_objective_gets_them_and_the_ledger_says_so(tmp_path, monkeypatch) -> None:
    from atcon.config import config_from_tables
    from atcon.train import finetune
    from wsod.models import load_classifier

    monkeypatch.setitem(OBJECTIVES._entries, "masked", Masked)
    stage = {"steps": 1, "batch": 2, "batch_norm": "frozen", "objectives": {"supervised": {}, "masked": {}}}
    table = {"data": {"spec": "shapes:count=4"}, "model": {"size": 40}, "stages": {"only": stage}}
    path = finetune(config_from_tables(table, {}, "test"), tmp_path / "out", device="cpu")
    assert load_classifier(path).supervision == ("image labels", "masks")
    # and whoever trains on from there does not forget it
    stage["objectives"] = {"supervised": {}}
    table["model"]["weights"] = str(path)
    again = finetune(config_from_tables(table, {}, "test"), tmp_path / "again", device="cpu")
    assert load_classifier(again).supervision == ("image labels", "masks")


def test_data_without_masks_is_refused(tmp_path, monkeypatch) -> None:
    for name in ("a", "b"):
        for k in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{k}.png")
    config = DataConfig(spec=f"folder:{tmp_path}", train="all", val="all", val_images=1)
    sources = open_sources(config)
    assert sources.offered == {"labels"}
    assert open_sources(DataConfig(spec="shapes:count=3")).offered == {"labels", "masks", "boxes"}
    monkeypatch.setattr("atcon.build.OBJECTIVES", Registry("objective", {"masked": Masked}))
    stage = StageConfig({"masked": TermConfig()})
    with pytest.raises(ConfigError, match="training images with masks"):
        make_objectives("only", stage, mini_classifier(), sources.offered)
