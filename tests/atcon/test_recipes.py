"""Every recipe and every kind of data trains, for a step or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from atcon.config import load_config, recipes
from atcon.train import finetune
from tests.conftest import SHARED, needs_shared
from wsod.config import merge
from wsod.models import load_classifier

FEW = ["train.steps=2", "train.batch=4", "train.evaluate_every=2"]
SMALL = {"model": {"arch": "smallnet", "weights": "none", "size": 40}}


def run(recipe: str, out: Path, settings: list[str], **tables: Any) -> list[dict[str, Any]]:
    config = load_config(recipe, settings=[*FEW, *settings], overrides=merge(SMALL, tables))
    path = finetune(config, out, device="cpu")
    load_classifier(path)
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(recipes()))
@pytest.mark.slow
def test_every_recipe_trains(name: str, tmp_path: Path) -> None:
    settings = [] if load_config(name).data.per_class == 0 else ["data.per_class=1"]
    tables: dict[str, Any] = {"data": {"spec": "shapes:count=16"}}
    stages = load_config(name).stages
    if not any("supervised" in stage.objectives for stage in stages.values()):
        run("supervised", tmp_path / "start", [], **tables)
        tables["model"] = {"weights": str(tmp_path / "start" / "ft.pt")}
    lines = run(name, tmp_path / "out", settings, **tables)
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert [line["stage"] for line in lines if line.get("step") == 2 and "loss" in line] == list(stages)


@pytest.mark.slow
def test_house_numbers_train_and_are_not_mirrored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        pixels = random.integers(0, 256, (32, 32, 3, 12), np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 13)[:, None] % 10 + 1})
    data = {"spec": f"svhn:{tmp_path}", "val": "test", "flip": 1.0}
    lines = run("combining", tmp_path / "out", [], data=data)
    assert "top1" in lines[0]["evaluation"]
    from atcon.pools import open_sources
    from wsod.models.preprocess import Preprocess

    config = load_config("combining", overrides={"data": data})
    pool = open_sources(config.data).pools(Preprocess(32), 0)["labelled"]
    assert pool.augment is None


@needs_shared
@pytest.mark.parametrize("kind", ["voc2012", "coco"])
@pytest.mark.slow
def test_real_data_trains(kind: str, tmp_path: Path) -> None:
    assert SHARED is not None
    coco = SHARED / "data/coco_real"
    listing = sorted((coco / "annotations").glob("instances_train2017*.json"))
    data = {
        "voc2012": {"spec": f"voc2012:{SHARED / 'data/voc_real/VOCdevkit'}", "limit": 8},
        "coco": {"spec": f"coco:{coco / 'train2017'},{listing[0]}", "train": "all", "val": "all"},
    }[kind]
    if kind == "coco":
        data |= {"val_images": 4, "limit": 8}
    lines = run("combining", tmp_path / "out", [], data=data)
    assert "mAP" in lines[0]["evaluation"]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
