"""The experiments about heads: their parts by hand, and each of them once with two steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atcon.experiments import EXPERIMENTS, run_experiment
from atcon.experiments.attention import linear_probe
from atcon.experiments.fgsm import fgsm
from atcon.experiments.headed import map_iou, row_iou
from wsod.config import bind
from wsod.errors import ConfigError
from wsod.models import build_classifier
from wsod.store import MapStore
from wsod.types import AttentionMaps


def test_fgsm_moves_every_pixel_by_epsilon():
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", list("abc"), size=32)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (classifier.preprocess.mean, classifier.preprocess.std)
    )
    pixels = 0.3 + 0.4 * torch.rand(4, 3, 32, 32)
    images, targets = (pixels - mean) / std, torch.tensor([0, 1, 2, 0])
    assert torch.equal(fgsm(classifier, images, targets, 0.0), images)
    moved = fgsm(classifier, images, targets, 4 / 255) * std + mean
    distance = (moved - pixels).abs()
    assert float(distance.max()) == pytest.approx(4 / 255, abs=1e-6)
    assert (distance > 3.9 / 255).float().mean() > 0.99
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(classifier.eval()(x), targets)
            for x in (images, fgsm(classifier, images, targets, 1 / 255))
        ]
    assert losses[1] > losses[0]
    # pixels stay pixels
    edge = fgsm(classifier, (torch.ones(1, 3, 32, 32) - mean) / std, targets[:1], 0.1) * std + mean
    assert edge.max() <= 1 + 1e-6


def test_a_linear_probe_finds_a_linear_rule():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 8))
    rule = x[:, 0] + 0.5 * x[:, 1] > 0
    y = np.stack([~rule, rule], 1)
    scores = linear_probe(x[:200], y[:200], x[200:], 0.01)
    assert (scores.argmax(1) == y[200:].argmax(1)).mean() > 0.88


def test_overlap_of_maps(tmp_path):
    square = np.zeros((64, 64), np.float32)
    square[:10, :10] = 1
    other = np.zeros((64, 64), np.float32)
    other[50:60, 50:60] = 1
    for name, values in (("a", square), ("b", square), ("c", other)):
        MapStore(tmp_path / name / "maps" / "cam", 1).write(
            AttentionMaps("one", (64, 64), np.array([0]), values[None])
        )
    views = [tmp_path / name for name in "abc"]
    assert map_iou(views[:2], "cam", (64, 64)).value() == 1.0
    assert map_iou(views[1:], "cam", (64, 64)).value() == 0.0
    assert map_iou(views, "cam", (64, 64)).value() == pytest.approx(1 / 3)
    assert row_iou(square > 0, other > 0) == pytest.approx(0.6875)


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'lfi'"):
        bind(EXPERIMENTS["heads"], {"heads": ["lfl"]}, "heads")
    with pytest.raises(ConfigError, match="7 of 8 held out"):
        bind(EXPERIMENTS["ltpa"], {"data": "shapes:count=8", "unseen": 7}, "ltpa")
    same = {"a": {"batch": 32}, "b": {}}
    with pytest.raises(ConfigError, match="two or more different trainings"):
        bind(EXPERIMENTS["stability"], {"settings": same}, "stability")


SMALL = {"data": "shapes:simple=true,count=24", "seeds": 2, "size": 32, "train": {"steps": 1, "batch": 8}}
ROWS = {
    "heads": (
        {"heads": ["linear", "calm"]},
        {"center", "linear", "linear, gradcam", "calm", "calm, gradcam"},
    ),
    "stability": (
        {"heads": ["linear", "lfi"], "settings": {"a": {}, "b": {"lr": 1e-4}}, "others": ["center"]},
        {"linear", "lfi", "linear, center"},
    ),
    "ltpa": ({"variants": {"pc": {}}}, {"none", "pc"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_each_runs_and_says_every_measure_of_every_row(name, tmp_path):
    options, rows = ROWS[name]
    experiment = bind(EXPERIMENTS[name], {**SMALL, **options}, name)
    outcome = run_experiment(experiment, tmp_path, device="cpu")
    found = experiment.read(tmp_path / "seed0")
    assert set(found) == rows
    for row, readings in found.items():
        for measure in readings.values():
            assert 0 <= measure.value() <= 1, row
    assert outcome is not None
    assert (tmp_path / "table.md").is_file()
