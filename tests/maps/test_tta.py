from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.maps.networks import batch, make
from wsod.data import open_dataset
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, attention_maps
from wsod.maps.tta import View, views_of
from wsod.models import build_classifier
from wsod.pipeline import iterate_maps

LABELS = [[2, 0], [1]]


def one(images: torch.Tensor, name: str = "gradcam") -> torch.Tensor:
    return attention_maps(make("deep"), images, LABELS, [name]).maps[name]


def scaled(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("name", ["gradcam", "gradcam:relu=false", "guidedbackprop"])
def test_flip_and_scales_against_single_views(name):
    images = batch(2, (16, 24))
    found = attention_maps(make("deep"), images, LABELS, [name], tta="flip,1.5").maps[name]
    large = F.interpolate(images, (24, 36), mode="bilinear", antialias=True)
    views = [one(images, name), one(images.flip(3), name).flip(2)]
    views += [one(large, name), one(large.flip(3), name).flip(2)]
    size = tuple(views[2].shape[1:])
    expected = torch.stack(
        [F.interpolate(scaled(view)[:, None], size, mode="bilinear")[:, 0] for view in views]
    ).mean(0)
    assert found.shape == (3, *size)
    torch.testing.assert_close(found, expected)


def test_a_symmetric_image_gives_a_symmetric_map():
    images = batch(1)
    images = images + images.flip(3)
    found = attention_maps(make("deep"), images, [1], ["layercam"], tta=["flip"]).maps["layercam"]
    torch.testing.assert_close(found, found.flip(2))


def test_without_augmentation_maps_and_logits_are_raw():
    images = batch(2)
    plain = attention_maps(make("deep"), images, LABELS, ["gradcam", "center"])
    same = attention_maps(make("deep"), images, LABELS, ["gradcam", "center"], tta="1")
    assert torch.equal(plain.maps["gradcam"], same.maps["gradcam"])
    augmented = attention_maps(make("deep"), images, LABELS, ["gradcam", "center"], tta="flip,0.5")
    assert torch.equal(augmented.logits, plain.logits)
    assert torch.equal(augmented.maps["center"], plain.maps["center"])
    assert not torch.equal(augmented.maps["gradcam"], plain.maps["gradcam"])


def test_further_layers_and_empty_maps():
    classifier = make("relu")
    with torch.no_grad():
        classifier.network.fc.weight[1] = -classifier.network.fc.weight[1].abs()
    names = ["layercam:layers=relus.1+relus.2", "gradcam"]
    maps = attention_maps(classifier, batch(1), [1], names, tta="flip,2").maps
    assert [tuple(found.shape) for found in maps.values()] == [(1, 16, 16)] * 2
    assert (maps["gradcam"] == 0).all()
    assert attention_maps(classifier, batch(1), [[]], names, tta="flip").maps["gradcam"].shape[0] == 0


def test_views():
    assert views_of("") == (View(),)
    assert views_of("0.5, 1, 0.5") == (View(), View(0.5))
    assert len(views_of(["flip", "0.75", "1.25"])) == 6
    for wrong in ("flop", "0", "-1", "nan"):
        with pytest.raises(ConfigError, match="tta"):
            views_of(wrong)


def test_a_network_of_one_size():
    with pytest.raises(ModelError, match="Use flip alone"):
        attention_maps(make("vit"), batch(1), [0], ["gradcam"], tta="0.5")


def test_in_the_pipeline():
    dataset = open_dataset("shapes")
    classifier = build_classifier("smallnet", dataset.classes, size=32).eval()
    methods = {"gradcam": METHODS["gradcam"], "center": METHODS["center"]}
    ((sample, maps),) = iterate_maps(dataset, [3], methods, classifier, tta="flip,2")
    tensor, _ = classifier.preprocess(dataset.image(3))
    expected = attention_maps(classifier, tensor[None], [list(sample.classes)], ["gradcam"], tta="flip,2")
    assert torch.equal(torch.from_numpy(maps["gradcam"].values), expected.maps["gradcam"])
    assert maps["gradcam"].values.shape[1:] == (8, 8)
