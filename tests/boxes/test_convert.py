from __future__ import annotations

import random
import re

import numpy as np
import pytest
import skimage.measure
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from wsod.boxes import heatmap_to_boxes, heatmap_to_mask, iou
from wsod.boxes.merge import merge_groups
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


options = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(RULES),
        "area": st.sampled_from(["pixels", "contour"]),
        "min_area": st.sampled_from([0.0, 1.0, 2.5]),
        "merge_iou": st.sampled_from([None, 0.0, 0.2]),
    }
)


def rows(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[float, ...]]:
    return sorted((*box, score) for box, score in zip(found[0].tolist(), found[1].tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(small_maps, options)
def test_flips_and_transposes_commute(scores: np.ndarray, chosen: dict) -> None:
    height, width = scores.shape
    boxes = rows(heatmap_to_boxes(scores, **chosen))
    mirrored = rows(heatmap_to_boxes(scores[:, ::-1], **chosen))
    assert sorted((width - x1, y0, width - x0, y1, s) for x0, y0, x1, y1, s in boxes) == mirrored
    flipped = rows(heatmap_to_boxes(scores[::-1], **chosen))
    assert sorted((x0, height - y1, x1, height - y0, s) for x0, y0, x1, y1, s in boxes) == flipped
    transposed = rows(heatmap_to_boxes(scores.T, **chosen))
    assert sorted((y0, x0, y1, x1, s) for x0, y0, x1, y1, s in boxes) == transposed


@settings(max_examples=60, deadline=None)
@given(small_maps, st.sampled_from(RULES[:-1]), st.sampled_from([0.25, 2.0, 64.0]), st.integers(-9, 9))
def test_boxes_ignore_scale_and_offset(scores: np.ndarray, rule: str, scale: float, offset: int) -> None:
    # on whole numbers and powers of two the arithmetic of all rules but the mean's is exact
    level = {"threshold": 0.3} if rule == "mean_std" else {}
    moved = heatmap_to_boxes(scores * scale + offset * scale, rule=rule, **level)
    boxes, peaks = heatmap_to_boxes(scores, rule=rule, **level)
    if rule == "mean_std" and np.abs(scores - scores.mean() - 0.3 * scores.std()).min() < 1e-9:
        return  # a pixel on the threshold itself
    np.testing.assert_array_equal(boxes, moved[0])
    np.testing.assert_allclose(peaks, moved[1], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(small_maps, st.sampled_from([0.0, 0.2, 0.5]))
def test_every_box_is_tight(scores: np.ndarray, threshold: float) -> None:
    """Each side of a box touches the mask; together they cover all of it."""
    mask, covered = heatmap_to_mask(scores, threshold), np.zeros(scores.shape, bool)
    for x0, y0, x1, y1 in heatmap_to_boxes(scores, threshold)[0].astype(int):
        inside = mask[y0:y1, x0:x1]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
        covered[y0:y1, x0:x1] = True
    assert covered[mask].all()


@settings(max_examples=80, deadline=None)
@given(small_maps, st.sampled_from([0.0, 0.2, 0.5]))
def test_contour_area_is_opencv_s(scores: np.ndarray, threshold: float) -> None:
    cv2 = pytest.importorskip("cv2")
    mask = heatmap_to_mask(scores, threshold).astype(np.uint8)
    contours, tree = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    outer = {}
    for k, contour in enumerate(contours):
        depth, parent = 0, tree[0][k][3]
        while parent >= 0:
            depth, parent = depth + 1, tree[0][parent][3]
        if depth % 2 == 0:  # the others are of holes
            x, y, w, h = cv2.boundingRect(contour)
            outer[x, y, x + w, y + h] = cv2.contourArea(contour)
    boxes, _ = heatmap_to_boxes(scores, threshold, components="largest", area="contour")
    assert len(boxes) == bool(outer)
    if outer:
        assert outer[tuple(boxes[0])] == max(outer.values())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 6)] * 2), max_size=12),
    st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    st.randoms(),
)
def test_merging(corners: list[tuple[int, ...]], merge_iou: float, rng: random.Random) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float64).reshape(-1, 4)
    merged, group = merge_groups(boxes, merge_iou)
    # none is left to merge, each holds its own exactly, and the order did not matter
    assert (np.triu(iou(merged, merged), 1) <= merge_iou).all()
    assert sorted(set(group.tolist())) == list(range(len(merged)))
    for k, box in enumerate(merged):
        own = boxes[group == k]
        assert box.tolist() == [*own[:, :2].min(0), *own[:, 2:].max(0)]
    shuffled = list(range(len(boxes)))
    rng.shuffle(shuffled)
    again, _ = merge_groups(boxes[shuffled], merge_iou)
    assert sorted(again.tolist()) == sorted(merged.tolist())
    if len(boxes) == 2:
        assert (len(merged) == 1) == (iou(boxes[0], boxes[1])[0, 0] > merge_iou)


def test_merging_before_the_largest() -> None:
    scores = np.zeros((10, 12))
    scores[0:7, 0:2] = 4  # an L, and a bar in its corner: boxes overlap, pixels do not touch
    scores[5:7, 0:7] = 4
    scores[0:3, 4:6] = 2
    scores[9, 9:12] = 5
    assert len(heatmap_to_boxes(scores)[0]) == 3
    boxes, peaks = heatmap_to_boxes(scores, merge_iou=0.0)
    assert (boxes.tolist(), peaks.tolist()) == ([[9, 9, 12, 10], [0, 0, 7, 7]], [1.0, 0.8])
    assert len(heatmap_to_boxes(scores, merge_iou=0.5)[0]) == 3
    # the small parts go before they could be merged
    assert heatmap_to_boxes(scores, merge_iou=0.0, min_area=10)[0].tolist() == [[0, 0, 7, 7]]
    many = np.zeros((64, 64))
    many[::2, ::2] = 1
    assert len(heatmap_to_boxes(many, merge_iou=0.0)[0]) == 1024


def test_largest_by_what_a_contour_encloses() -> None:
    scores = np.zeros((20, 20))
    scores[1:11, 1:11] = 1
    scores[2:10, 2:10] = 0  # a frame of 36 pixels around 81
    scores[12:19, 12:19] = 1  # 49 pixels
    assert heatmap_to_boxes(scores, components="largest")[0].tolist() == [[12, 12, 19, 19]]
    assert heatmap_to_boxes(scores, components="largest", area="contour")[0].tolist() == [[1, 1, 11, 11]]
    scores[19, 0:10] = 1
    assert len(heatmap_to_boxes(scores, area="contour", min_area=0.5)[0]) == 2


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
        (np.eye(2), {"area": "box"}, ConfigError, "contour"),
        (np.eye(2), {"merge_iou": 1.0}, ConfigError, "below 1"),
        (np.eye(2), {"size": (0, 4)}, ConfigError, "1x1"),
    ],
)
def test_bad_input_is_named(heatmap, options, error, words) -> None:  # type: ignore[no-untyped-def]
    options = dict(options)
    function = heatmap_to_mask if options.pop("mask", False) else heatmap_to_boxes
    with pytest.raises(error, match=re.escape(words)):
        function(heatmap, **options)
