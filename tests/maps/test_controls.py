from __future__ import annotations

import numpy as np
import pytest
import torch

from wsod.data import open_dataset
from wsod.errors import ConfigError, MapError
from wsod.maps import METHODS, attention_maps
from wsod.models import build_classifier
from wsod.pipeline import iterate_maps


def test_center_is_the_benchmarks_gaussian_at_its_frame():
    values = METHODS["center"].control((224, 224))
    expected = np.zeros((224, 224))
    for y in range(224):
        for x in range(224):
            expected[y, x] = np.exp(-((y - 112) ** 2 + (x - 112) ** 2) / (2 * 56**2))
    expected -= expected.min()
    expected /= expected.max()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [(375, 500), (100, 31), (2, 2)])
def test_center_follows_the_shape_and_fills_the_range(size):
    values = METHODS["center"].control(size)
    assert values.shape == size
    assert np.unravel_index(values.argmax(), size) == (size[0] // 2, size[1] // 2)
    assert values.min() == 0
    assert values.max() == 1
    narrow = METHODS["center"].control(size, sigma=0.05)
    assert narrow.sum() < values.sum()


def test_center_of_a_single_pixel():
    assert METHODS["center"].control((1, 1)).tolist() == [[0.0]]


def test_random_depends_on_the_image_and_the_seed_alone():
    method = METHODS["random"]
    first = method.control((30, 40), image_id="a")
    method.control((30, 40), image_id="b")
    np.testing.assert_array_equal(method.control((224, 224), image_id="a"), first)
    assert not np.array_equal(method.control((30, 40), image_id="b"), first)
    assert not np.array_equal(method.control((30, 40), image_id="a", seed=1), first)
    assert METHODS["random:cells=0"].control((30, 40), image_id="a").shape == (30, 40)
    assert 0 <= first.min() < 0.1
    assert 0.9 < first.max() < 1
    with pytest.raises(ConfigError, match="cells"):
        method.control((3, 4), cells=-1)


def test_sobel_sees_edges_of_any_colour_and_the_right_side():
    image = np.zeros((20, 30, 3))
    image[:, 12:, 1] = 1
    found = METHODS["sobel"].control((224, 224), image=image)
    assert found.shape == (20, 30)
    assert set(np.flatnonzero(found.any(0))) == {11, 12}
    np.testing.assert_allclose(found[:, 11], 4 * 0.587)
    with pytest.raises(MapError, match="pixels for this control"):
        METHODS["sobel"].control((3, 4))


def test_controls_need_no_classifier_in_the_pipeline(tmp_path):
    dataset = open_dataset("shapes")
    names = ["random", "sobel", "uniform", "center"]
    methods = {name: METHODS[name] for name in names}
    found = list(iterate_maps(dataset, [2, 0], methods, None))
    classifier = build_classifier("smallnet", dataset.classes, size=32).eval()
    beside = list(iterate_maps(dataset, [0, 2], {**methods, "cam": METHODS["cam"]}, classifier))
    for (sample, maps), (other, same) in zip(found, reversed(beside), strict=True):
        assert sample.image_id == other.image_id
        for name in names:
            np.testing.assert_array_equal(maps[name].values, same[name].values)
        assert maps["sobel"].values.shape[1:] == sample.size
        assert maps["random"].values.shape[1:] == (14, 14)
    assert not np.array_equal(found[0][1]["random"].values[0], found[1][1]["random"].values[0])


def test_in_a_batch_each_image_has_its_own():
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = build_classifier("smallnet", ["a", "b"], size=32)
    maps = attention_maps(classifier, images, [[0, 1], [1]], ["random", "sobel"]).maps
    for found in maps.values():
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
