"""Specs: names, paths, options, $WSOD_DATA; and the contract every data set keeps."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.files import coco_content, write_coco, write_folder, write_image, write_voc, write_wsol
from tests.data.test_discovery import write_discovery
from tests.data.test_shards import write_shards
from tests.data.test_svhn import write_cropped
from wsod.data import DATASETS, Dataset, open_dataset, same_images
from wsod.errors import ConfigError

MAKERS = {
    "shapes": lambda root: "shapes:count=4,size=64",
    "voc2007": lambda root: f"voc2007:{write_voc(root).rename(root / 'VOC2007').parent}",
    "voc2012": lambda root: f"voc2012:{write_voc(root)}",
    "coco": lambda root: "coco:{1},{0}".format(*write_coco(root, coco_content())),
    "wsol": lambda root: f"wsol:{write_wsol(root / 'm')},{images(root)}",
    "object-discovery": lambda root: f"object-discovery:{write_discovery(root)}",
    "svhn": lambda root: f"svhn:{write_svhn(root)}",
    "shards": lambda root: f"shards:{write_shards(root)}",
    "folder": lambda root: (
        f"folder:{write_folder(root, boxes_csv='image,label,x0,y0,x1,y1' + chr(10) + 'a,d,0,0,9,9')}"
    ),
}


def write_svhn(root: Path) -> Path:
    write_cropped(root)
    return root


def images(root: Path) -> Path:
    write_image(root / "val/x.png")
    write_image(root / "val/y,z.png")
    return root


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    spec = MAKERS[request.param](tmp_path)
    return open_dataset(spec, "val" if request.param == "voc2007" else None)


def test_every_data_set_keeps_the_contract(dataset: Dataset) -> None:
    assert len(dataset) == len(dataset.ids) == len(set(dataset.ids)) > 0
    assert dataset.split in dataset.splits
    assert dataset.task in ("multiclass", "multilabel")
    assert isinstance(dataset.classes, tuple)
    assert DATASETS[dataset.spec.partition(":")[0]] is type(dataset)
    assert dataset.usage.startswith(dataset.name)
    again = open_dataset(dataset.spec, dataset.split)
    copied = pickle.loads(pickle.dumps(dataset))
    for index, sample in enumerate(dataset):
        height, width = sample.size
        assert sample.image_id == dataset.ids[index] == again.ids[index] == copied.ids[index]
        assert dataset.image(index).size == (width, height)
        assert dataset.image(index).mode == "RGB"
        assert all(label < len(dataset.classes) for label in sample.classes)
        for x0, y0, x1, y1 in sample.boxes:
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
        for other in (again, copied):
            assert np.array_equal(other[index].boxes, sample.boxes)
            assert np.array_equal(other[index].labels, sample.labels)
            assert other.image(index).tobytes() == dataset.image(index).tobytes()
        if sample.masks is not None:
            pickle.loads(pickle.dumps(sample.masks))
            semantic = sample.masks.semantic()
            assert semantic.shape == (height, width)
            assert semantic.max() <= len(dataset.classes)
            for label in sample.classes:
                of, ignored = sample.masks.of(label), sample.masks.ignore(label)
                assert of.shape == ignored.shape == (height, width)
                assert of.dtype == ignored.dtype == bool
                assert not (of & ignored).any()
    assert dataset[-1].image_id == dataset.ids[-1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(ConfigError, match="a known split"):
        open_dataset(dataset.spec, "nosuchsplit")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "expected a known data set"),
        ("shape", "Did you mean 'shapes'?"),
        ("voc", "Did you mean 'voc20"),
        ("shapes:bais=1", "expected a known option, got 'bais'. Did you mean 'bias'?"),
        ("shapes:bias=x", "bias: expected a value of type float, got 'x'"),
        ("shapes:seed=1.5", "seed: expected a value of type int"),
        ("shapes:cue=foo", "cue: expected one of 'match'"),
        ("shapes:/data", "expected shapes[:seed=0"),
        ("voc2012", "got no root"),
        ("voc2012:", "got no root"),
        ("voc2012:/nowhere", "expected a path that exists, got /nowhere"),
        ("voc2012:/,/", "expected voc2012:ROOT"),
        ("voc2012:/,masks=all", "masks: expected one of 'official', 'aug'"),
        ("coco:/", "expected coco:IMAGES,ANNOTATIONS.json, got no annotations"),
        ("wsol", "got no metadata"),
        ("folder:/,colour=1", "expected a known option, got 'colour'"),
    ],
)
def test_wrong_specs_are_one_clear_line(spec: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSOD_DATA", raising=False)
    with pytest.raises(ConfigError) as caught:
        open_dataset(spec)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_reach_the_data_set() -> None:
    dataset = open_dataset("shapes:bias=0.25, seed=3,size=64,count=5,cue=none", "val")
    assert (dataset.bias, dataset.seed, dataset.size, len(dataset), dataset.cue) == (0.25, 3, 64, 5, "none")
    assert dataset.spec == "shapes:bias=0.25, seed=3,size=64,count=5,cue=none"
    assert open_dataset("shapes").split == "test"
    assert open_dataset("shapes:split=val").split == "val"


def test_the_root_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path / "VOCdevkit")
    monkeypatch.setenv("WSOD_DATA", str(tmp_path))
    assert len(open_dataset("voc2012")) == 1
    assert len(open_dataset("voc2012:VOCdevkit")) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSOD_DATA", "/nowhere")
    assert len(open_dataset("voc2012:VOCdevkit")) == 1
    with pytest.raises(ConfigError, match="/nowhere/VOCkit"):
        open_dataset("voc2012:VOCkit")


def test_coco_from_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, json.dumps(coco_content()))
    monkeypatch.setenv("WSOD_DATA", str(tmp_path))
    assert open_dataset("coco:images,a.json").image(0).size == (20, 10)
    alone = open_dataset("coco:annotations=a.json")
    assert not alone.has_images
    assert len(alone[0].boxes) == 3


def test_the_same_images_however_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "data/cat/a.png")
    write_image(tmp_path / "other/cat/a.png")
    monkeypatch.chdir(tmp_path)
    for one, other, same in (
        ("shapes:count=4", "shapes:count=4,seed=0", True),
        ("shapes:count=4", "shapes:count=4,seed=1", False),
        ("folder:data", f"folder:{tmp_path}/data/", True),
        ("folder:data", "folder:./data", True),
        ("folder:data", "folder:other", False),
        ("folder:data", "folder:gone", False),
    ):
        assert same_images(one, other, open_dataset(one).split) == same
