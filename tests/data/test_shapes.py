"""The generated data set: the same bytes everywhere, exact truth, a cue that does what it says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT
from wsod.data import open_dataset
from wsod.data.render import OUTLINES, TEXTURES, Canvas, Draw, Stamp, value_noise
from wsod.data.shapes import CLASSES, Shapes
from wsod.errors import ConfigError

PINNED = {
    ("shapes", "train", 0): "1567b82097bd1c30",
    ("shapes", "test", 399): "41a8970f2e3c7a1e",
    ("shapes:seed=7,size=64", "val", 3): "40865a73c7754692",
    ("shapes:bias=0.9,cue=deceive", "test", 1): "d01d82d252ec1a78",
}


def digest(spec: str, split: str, index: int) -> str:
    dataset = open_dataset(spec, split)
    scene, sample = dataset.scene(index), dataset[index]
    sha = hashlib.sha256(scene.pixels.tobytes() + scene.instances.tobytes())
    sha.update(repr((sample.boxes.tolist(), sample.labels.tolist(), sample.difficult.tolist())).encode())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize(("spec", "split", "index"), PINNED)
def test_scenes_are_the_same_bytes_as_ever(spec: str, split: str, index: int) -> None:
    assert digest(spec, split, index) == PINNED[spec, split, index]


def test_scenes_are_the_same_in_another_process() -> None:
    code = "from tests.data.test_shapes import digest; print(digest('shapes:seed=11', 'train', 1234))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest("shapes:seed=11", "train", 1234)


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    few, many = Shapes("val", count=5), Shapes("val")
    many.scene(77)
    assert np.array_equal(few.scene(4).pixels, many.scene(4).pixels)
    others = (Shapes("val", seed=1).scene(4), Shapes("test").scene(4), many.scene(5))
    first = few.scene(4).pixels
    assert not any(
        other.pixels.shape == first.shape and np.array_equal(other.pixels, first) for other in others
    )


@pytest.mark.slow
def test_truth_is_exact_and_scenes_are_varied() -> None:
    dataset = Shapes("train", count=300)
    labels, objects, difficult, touching, twice = [], [], 0, 0, 0
    for index, sample in enumerate(dataset):
        scene = dataset.scene(index)
        height, width = sample.size
        assert 128 <= min(height, width) <= max(height, width) <= 160
        assert 1 <= len(sample.boxes) <= 3
        assert set(np.unique(scene.instances)) == set(range(len(sample.boxes) + 1))
        for n, (x0, y0, x1, y1) in enumerate(sample.boxes.astype(int)):
            mask = sample.masks.instance(n)
            outside = mask.copy()
            outside[y0:y1, x0:x1] = False
            assert not outside.any()
            assert mask[y0:y1, x0].any()
            assert mask[y0:y1, x1 - 1].any()
            assert mask[y0, x0:x1].any()
            assert mask[y1 - 1, x0:x1].any()
            assert (sample.masks.of(sample.labels[n]) >= mask).all()
            touching += x0 == 0 or y0 == 0 or x1 == width or y1 == height
        labels += sample.labels.tolist()
        objects.append(len(sample.boxes))
        difficult += int(sample.difficult.sum())
        twice += len(sample.classes) < len(sample.boxes)
    share = np.bincount(labels, minlength=8) / len(labels)
    assert share.min() > 0.07
    assert set(objects) == {1, 2, 3}
    assert 0.02 < difficult / len(labels) < 0.2
    assert 0.05 < touching / len(labels) < 0.5
    assert twice > 20


@pytest.mark.slow
def test_difficult_means_hidden_or_tiny() -> None:
    dataset = Shapes("train", count=200)
    for index, sample in enumerate(dataset):
        for n, flag in enumerate(sample.difficult):
            if sample.masks.instance(n).sum() < 200:
                assert flag, dataset.ids[index]


def test_masks_of_a_scene_agree() -> None:
    sample = Shapes("val")[2]
    semantic = sample.masks.semantic()
    for label in range(8):
        assert np.array_equal(sample.masks.of(label), semantic == label + 1)
        assert not sample.masks.ignore(label).any()
    assert set(np.unique(semantic)) == {0, *(label + 1 for label in sample.classes)}


@pytest.mark.slow
def test_bias_ties_the_cue_to_the_main_class_in_train() -> None:
    dataset = Shapes("train", bias=0.8, count=400, size=48)
    agree = [scene.cue == scene.labels[0] for scene in map(dataset.scene, range(400))]
    assert 0.73 < np.mean(agree) < 0.87


def test_simple_scenes_have_one_object_and_one_class() -> None:
    dataset = Shapes("val", simple=True, bias=1.0, size=48, count=60)
    assert (dataset.task, Shapes("val").task) == ("multiclass", "multilabel")
    for index in range(60):
        scene, other = dataset.scene(index), Shapes("val", simple=True, size=48).scene(index)
        assert len(scene.labels) == 1
        assert set(np.unique(scene.instances)) == {0, 1}
        assert scene.difficult == (False,)
        assert scene.cue == scene.labels[0]
        # the cue is all that differs
        assert np.array_equal(scene.instances, other.instances)
        assert not np.array_equal(scene.pixels, other.pixels)


def test_fewer_kinds_and_upright_objects() -> None:
    dataset = Shapes("val", simple=True, kinds=3, upright=True, bias=1.0, cue="deceive", size=48, count=40)
    assert dataset.classes == tuple(CLASSES)[:3]
    scenes = [dataset.scene(index) for index in range(40)]
    assert {scene.labels[0] for scene in scenes} == {scene.cue for scene in scenes} == {0, 1, 2}
    assert all(scene.cue != scene.labels[0] for scene in scenes)
    # an upright square fills its box; a turned one cannot
    squares = [scene for scene in scenes if scene.labels == (1,)]
    filled = []
    for scene in squares:
        x0, y0, x1, y1 = scene.boxes()[0].astype(int)
        filled.append((scene.instances[y0:y1, x0:x1] > 0).mean())
    assert len(squares) > 5
    assert min(filled) > 0.95
    with pytest.raises(ConfigError, match="kinds"):
        Shapes("val", kinds=9)


@pytest.mark.slow
def test_cue_rules_outside_of_training() -> None:
    plain, base = Shapes("test", size=64), Shapes("test", bias=1.0, size=64, count=120)
    scenes = {
        cue: [replace(base, cue=cue).scene(i) for i in range(120)]
        for cue in ("match", "random", "deceive", "none")
    }
    assert all(scene.cue == scene.labels[0] for scene in scenes["match"])
    assert all(scene.cue != scene.labels[0] for scene in scenes["deceive"])
    assert all(scene.cue is None for scene in scenes["none"])
    assert len({scene.cue for scene in scenes["random"]}) == 8
    for i in range(20):
        without = plain.scene(i)
        # without the cue: the very scene of the unbiased data; with it: the objects' pixels are untouched
        assert np.array_equal(scenes["none"][i].pixels, without.pixels)
        assert np.array_equal(scenes["deceive"][i].instances, without.instances)
        assert not np.array_equal(scenes["deceive"][i].pixels, without.pixels)
    train = Shapes("train", bias=1.0, cue="none", size=64, count=3)
    assert all(train.scene(i).cue == train.scene(i).labels[0] for i in range(3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": -1}, "seed"),
        ({"bias": 1.5}, "bias"),
        ({"bias": float("nan")}, "bias"),
        ({"size": 8}, "size"),
        ({"count": 0}, "count"),
        ({"split": "trainn"}, "Did you mean 'train'?"),
    ],
)
def test_wrong_options_are_named(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Shapes(**options)


def test_threads_may_share_a_data_set() -> None:
    dataset, expected = Shapes("val", size=48), Shapes("val", size=48)
    wanted = [index % 7 for index in range(80)]
    with ThreadPoolExecutor(4) as pool:
        scenes = list(pool.map(dataset.scene, wanted))
    for index, scene in zip(wanted, scenes, strict=True):
        assert np.array_equal(scene.pixels, expected.scene(index).pixels)


def test_indices() -> None:
    dataset = Shapes("val", count=3)
    assert dataset[-1].image_id == dataset.ids[2] == "val_00002"
    with pytest.raises(IndexError):
        dataset[3]
    assert len(list(dataset)) == 3


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_stay_inside_their_stamp(name: str) -> None:
    canvas = Canvas(100, 120)
    stamp = Stamp.place(canvas, OUTLINES[name], (60.3, 50.7), 20.0, (1.0, 0.0))
    solid = stamp.cover > 0.5
    assert stamp.area == solid.sum() > 300
    assert not solid[[0, -1]].any()
    assert not solid[:, [0, -1]].any()
    cut = Stamp.place(canvas, OUTLINES[name], (1.0, 1.0), 20.0, (1.0, 0.0))
    assert cut.area > (cut.cover > 0.5).sum()
    gone = Stamp.place(canvas, OUTLINES[name], (-90.0, -90.0), 20.0, (1.0, 0.0))
    assert gone.cover.size == 0


@pytest.mark.parametrize("name", ["disc", "square", "ring"])
def test_areas_of_outlines_are_those_of_geometry(name: str) -> None:
    area = {"disc": np.pi * 0.95**2, "square": 1.64**2, "ring": np.pi * (0.99**2 - 0.45**2)}[name]
    stamp = Stamp.place(Canvas(200, 200), OUTLINES[name], (100.0, 100.0), 60.0, (0.6, 0.8))
    assert stamp.area == pytest.approx(area * 60**2, rel=0.01)


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_mix_both_colours(name: str) -> None:
    stamp = Stamp.place(Canvas(100, 100), OUTLINES["square"], (50.0, 50.0), 30.0, (1.0, 0.0))
    pattern = TEXTURES[name](stamp.u * 4, stamp.v * 4, 8.0, Draw(1))
    assert pattern.dtype == np.float32
    assert pattern.min() >= 0
    assert pattern.max() <= 1
    assert 0.1 < pattern[stamp.cover > 0.5].mean() < 0.9
    assert pattern.std() > 0.1


def test_value_noise_is_smooth_and_meets_its_grid() -> None:
    noise = value_noise(Draw(4), 40, 50, 8)
    grid = Draw(4).array(40 // 8 + 2, 50 // 8 + 2)
    assert noise.shape == (40, 50)
    assert np.array_equal(noise[::8, ::8], grid[:5, :7])
    assert np.abs(np.diff(noise, axis=0)).max() < 1.6 / 8


def test_every_class_has_an_outline_and_texture_of_its_own() -> None:
    assert set(CLASSES) <= set(OUTLINES)
    assert sorted(CLASSES.values()) == sorted(TEXTURES)
