"""Resizing and normalising against torch and OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from wsod.errors import ConfigError
from wsod.scoremaps import MapProcessing, resample_weights, resize_map
from wsod.types import AttentionMaps

GRIDS = [(7, 7), (14, 14), (28, 28), (12, 12), (10, 14), (7, 14), (1, 1), (3, 2), (300, 250)]


def maps_of(values: np.ndarray, size: tuple[int, int], **options: object) -> AttentionMaps:
    return AttentionMaps("a", size, np.array([0]), values[None], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_resize_equals_torch(grid: tuple[int, int], mode: str) -> None:
    values = np.random.default_rng(0).random(grid)
    for size in ((224, 224), (31, 57)):
        options = {} if mode == "nearest" else {"align_corners": False}
        # torch's "nearest-exact" takes the cell the pixel's centre lies in
        name = "nearest-exact" if mode == "nearest" else mode
        expected = interpolate(torch.from_numpy(values)[None, None], size, mode=name, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(resize_map(values, size, mode), expected[0, 0].numpy(), atol=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", GRIDS)
def test_opencv_modes_equal_opencv_to_the_bit(grid: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(1)
    # a constant map keeps its last-bit noise, which the WSOL benchmark stretches to [0, 1]
    for values in (rng.random(grid), rng.standard_normal(grid) * 40, np.full(grid, 0.37)):
        for size in ((224, 224), (100, 131)):
            cubic = cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC)
            np.testing.assert_array_equal(resize_map(values, size, "bicubic-opencv"), cubic)
            nearest = cv2.resize(values, size[::-1], interpolation=cv2.INTER_NEAREST)
            np.testing.assert_array_equal(resize_map(values, size, "nearest-opencv"), nearest)
            linear = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
            np.testing.assert_allclose(resize_map(values, size), linear, rtol=1e-6, atol=1e-5)


def test_weights_sum_to_one() -> None:
    for mode in ("bilinear", "bicubic", "nearest"):
        weights = resample_weights(5, 17, mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(weights.sum(1), 1)


def test_region_is_the_part_the_map_spans() -> None:
    values = np.random.default_rng(2).random((8, 8)) + 1
    inner = resize_map(values, (32, 32))
    whole = resize_map(values, (50, 60), region=(10, 5, 42, 37))
    np.testing.assert_allclose(whole[5:37, 10:42], inner, atol=1e-12)
    outside = np.ones((50, 60), bool)
    outside[5:37, 10:42] = False
    assert (whole[outside] == whole[~outside].min()).all()
    # a letterbox: the map spans more than the image
    letterbox = resize_map(values, (16, 32), region=(0, -8, 32, 24))
    np.testing.assert_allclose(letterbox, inner[8:24], atol=1e-12)


def test_constant_maps_are_seen_before_or_after_the_resize() -> None:
    maps = maps_of(np.full((7, 7), 0.37), (64, 64))
    assert MapProcessing().score(maps, 0).constant
    assert not MapProcessing().score(maps, 0).scores.any()
    noisy = MapProcessing(frame=224, resize="bicubic-opencv", constant="resized").score(maps, 0)
    assert not noisy.constant
    assert noisy.scores.max() == 1


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("normalise", ["minmax", "max", "relu-minmax", "percentile"])
def test_scores_lie_in_the_unit_interval(normalise: str, order: str) -> None:
    values = np.random.default_rng(3).standard_normal((9, 9))
    processing = MapProcessing(normalise=normalise, order=order, resize="bicubic", percentiles=(5, 95))  # type: ignore[arg-type]
    score = processing.score(maps_of(values, (40, 50)), 0)
    assert score.scores.shape == (40, 50)
    assert score.scores.min() >= 0
    assert 0.5 < score.scores.max() <= 1
    if order == "after":
        assert score.scores.max() == 1


def test_scores_are_computed_once() -> None:
    maps = maps_of(np.eye(4), (8, 8))
    assert MapProcessing().score(maps, 0) is MapProcessing().score(maps, 0)
    assert MapProcessing(frame=5).score(maps, 0).scores.shape == (5, 5)


def test_bad_options_are_refused() -> None:
    for options in ({"frame": -1}, {"percentiles": (50.0, 50.0)}):
        with pytest.raises(ConfigError, match="percentiles"):
            MapProcessing(**options)  # type: ignore[arg-type]
