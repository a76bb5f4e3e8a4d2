from __future__ import annotations

import re

import numpy as np
import pytest
import skimage.measure
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from wsod.boxes import heatmap_to_boxes, heatmap_to_mask
from wsod.errors import ConfigError, MapError

RULES = ("max", "mean_std", "otsu", "percentile", "absolute")
small_maps = arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.integers(0, 6).map(float),
)


def blobs(seed: int = 0, size: int = 40) -> np.ndarray:
    values = np.random.default_rng(seed).random((size // 5, size // 5))
    return np.kron(values, np.ones((5, 5)))


@settings(max_examples=60, deadline=None)
@given(small_maps, st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_boxes_are_those_of_the_mask_s_components(scores: np.ndarray, threshold: float) -> None:
    boxes, peaks = heatmap_to_boxes(scores, threshold)
    if scores.min() == scores.max():
        assert boxes.shape == (0, 4)
        assert peaks.shape == (0,)
        return
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    mask = heatmap_to_mask(scores, threshold)
    np.testing.assert_array_equal(mask, scores > scores.min() + threshold * (scores.max() - scores.min()))
    found = sorted((*box, peak) for box, peak in zip(boxes.tolist(), peaks.tolist(), strict=True))
    labels = skimage.measure.label(mask, connectivity=2)
    expected = sorted(
        (
            float(r.bbox[1]),
            float(r.bbox[0]),
            float(r.bbox[3]),
            float(r.bbox[2]),
            scaled[labels == r.label].max(),
        )
        for r in skimage.measure.regionprops(labels)
    )
    assert found == expected
    assert (np.diff(peaks) <= 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_map_claims_nothing(rule: str) -> None:
    for value in (0.0, 0.7, -3.0):
        constant = np.full((4, 5), value)
        assert not heatmap_to_mask(constant, rule=rule).any()
        assert len(heatmap_to_boxes(constant, rule=rule)[0]) == 0


@pytest.mark.parametrize("rule", RULES[:-1])
def test_rules_ignore_scale_and_offset(rule: str) -> None:
    scores = np.round(blobs() * 64) / 64  # powers of two: scaling is exact
    boxes, peaks = heatmap_to_boxes(scores, rule=rule)
    moved, moved_peaks = heatmap_to_boxes(scores * 8 - 4, rule=rule)
    assert len(boxes)
    np.testing.assert_array_equal(boxes, moved)
    np.testing.assert_allclose(peaks, moved_peaks)


@pytest.mark.parametrize("rule", RULES)
def test_flips_and_transposes_commute(rule: str) -> None:
    scores, side = blobs(3), 40
    boxes = {tuple(box) for box in heatmap_to_boxes(scores, rule=rule)[0]}
    flipped = {tuple(box) for box in heatmap_to_boxes(scores[:, ::-1], rule=rule)[0]}
    assert {(side - x1, y0, side - x0, y1) for x0, y0, x1, y1 in boxes} == flipped
    transposed = {tuple(box) for box in heatmap_to_boxes(scores.T, rule=rule)[0]}
    assert {(y0, x0, y1, x1) for x0, y0, x1, y1 in boxes} == transposed


def test_levels_of_the_rules() -> None:
    scores = blobs(1)
    np.testing.assert_array_equal(
        heatmap_to_mask(scores, 0.5, rule="mean_std"), scores > scores.mean() + 0.5 * scores.std()
    )
    np.testing.assert_array_equal(
        heatmap_to_mask(scores, 90, rule="percentile"), scores > np.percentile(scores, 90)
    )
    np.testing.assert_array_equal(heatmap_to_mask(scores, 0.3, rule="absolute"), scores > 0.3)
    two = np.where(np.arange(100).reshape(10, 10) % 10 < 3, 0.9, 0.1)
    np.testing.assert_array_equal(heatmap_to_mask(two, rule="otsu"), two > 0.5)


def test_largest_counts_pixels_and_min_area_drops() -> None:
    scores = np.zeros((8, 8))
    scores[0, 0] = 10  # one pixel, the peak
    scores[3:6, 3:6] = 5
    boxes, peaks = heatmap_to_boxes(scores, components="largest")
    assert boxes.tolist() == [[3, 3, 6, 6]]
    assert peaks.tolist() == [0.5]
    assert heatmap_to_boxes(scores)[0].tolist() == [[0, 0, 1, 1], [3, 3, 6, 6]]
    assert heatmap_to_boxes(scores, min_area=2)[0].tolist() == [[3, 3, 6, 6]]
    assert heatmap_to_boxes(scores, min_area=10)[0].shape == (0, 4)


def test_inputs_of_every_kind_agree() -> None:
    array = (blobs(2) * 255).astype(np.uint8)
    boxes, scores = heatmap_to_boxes(array)
    kinds = [
        torch.from_numpy(array),
        torch.from_numpy(array).float().requires_grad_(),
        torch.from_numpy(array).double(),
        Image.fromarray(array),
        array.tolist(),
        array.astype(np.float32),
    ]
    for kind in kinds:
        other_boxes, other_scores = heatmap_to_boxes(kind)
        np.testing.assert_array_equal(boxes, other_boxes)
        np.testing.assert_allclose(scores, other_scores)
    batch = heatmap_to_boxes(torch.from_numpy(np.stack([array, array.T])))
    assert isinstance(batch, list)
    assert len(batch) == 2
    np.testing.assert_array_equal(batch[0][0], boxes)
    pictures = heatmap_to_boxes([Image.fromarray(array), Image.fromarray(array[:20])])
    np.testing.assert_array_equal(pictures[0][0], boxes)
    assert heatmap_to_mask(np.stack([array, array])).shape == (2, 40, 40)
    assert heatmap_to_mask([array, array[:20]], size=(9, 8)).shape == (2, 9, 8)
    assert heatmap_to_boxes(np.zeros((0, 4, 4))) == []


def test_size_gives_boxes_in_image_pixels() -> None:
    scores = np.zeros((4, 4))
    scores[1:3, 1:3] = 1
    boxes, _ = heatmap_to_boxes(scores, 0.5, size=(80, 40))
    assert np.abs(boxes - [[10, 20, 30, 60]]).max() <= 3


@pytest.mark.parametrize(
    ("heatmap", "options", "error", "words"),
    [
        (np.array([[0.0, np.nan]]), {}, MapError, "NaN"),
        (np.stack([np.ones((2, 2)), np.full((2, 2), np.inf)]), {}, MapError, "heatmap 1"),
        (np.zeros(3), {}, MapError, "(H, W)"),
        (np.zeros((1, 1, 2, 2)), {}, MapError, "Squeeze"),
        (np.zeros((0, 2)), {}, MapError, "non-empty"),
        ("cam.npy", {}, MapError, "numbers"),
        (Image.new("RGB", (3, 3)), {}, MapError, "one channel"),
        ([np.zeros((2, 2)), np.zeros((3, 2))], {"mask": True}, MapError, "size=(height, width)"),
        (np.eye(2), {"rule": "maximum"}, ConfigError, "otsu"),
        (np.eye(2), {"threshold": 20}, ConfigError, "0 to 1"),
        (np.eye(2), {"threshold": 0.5, "rule": "otsu"}, ConfigError, "none"),
        (np.eye(2), {"components": "biggest"}, ConfigError, "largest"),
        (np.eye(2), {"size": (0, 4)}, ConfigError, "1x1"),
    ],
)
def test_bad_input_is_named(heatmap, options, error, words) -> None:  # type: ignore[no-untyped-def]
    options = dict(options)
    function = heatmap_to_mask if options.pop("mask", False) else heatmap_to_boxes
    with pytest.raises(error, match=re.escape(words)):
        function(heatmap, **options)
