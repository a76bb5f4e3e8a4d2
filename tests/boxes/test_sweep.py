"""Boxes at all thresholds against one threshold at a time: OpenCV, skimage, the WSOL benchmark's vectors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import skimage.measure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tests.conftest import SHARED, needs_shared
from wsod.boxes import basins, batch, hills, iou, threshold_sweep, tree
from wsod.boxes.batch import best_ious
from wsod.boxes.sweep import ThresholdSweep, levels, quantise, warm_up
from wsod.boxes.tree import fill_holes
from wsod.errors import ConfigError, MapError
from wsod.scoremaps import resize_map

Array = np.ndarray


def minmax(values: Array) -> Array:
    values = values - values.min()
    return values / values.max()


def _cam(rng: np.random.Generator, grid: int, size: tuple[int, int] = (112, 112)) -> Array:
    yy, xx = np.mgrid[:grid, :grid]
    values = np.zeros((grid, grid))
    for _ in range(5):
        y, x, width = *rng.random(2) * grid, 0.5 + 2 * rng.random()
        values += rng.random() * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / width**2)
    return minmax(resize_map(values + 0.05 * rng.random((grid, grid)), size, "bicubic"))


FAMILIES = {
    "cam7": lambda rng: _cam(rng, 7),
    "cam14": lambda rng: _cam(rng, 14),
    "cam28": lambda rng: _cam(rng, 28, (97, 64)),
    "noise": lambda rng: minmax(ndimage.gaussian_filter(rng.random((70, 81)), 2)),
    "white": lambda rng: rng.random((40, 33)),
    "tiny": lambda rng: minmax(rng.random((4, 5))),
    "row": lambda rng: rng.random((1, 30)),
    "column": lambda rng: rng.random((17, 1)),
    "sparse": lambda rng: rng.random((50, 50)) * (rng.random((50, 50)) > 0.9),
    "plateaus": lambda rng: rng.integers(0, 4, (40, 44)) / 4,
    "steps": lambda rng: np.kron(rng.integers(0, 9, (9, 7)) / 8, np.ones((6, 5))),
    "low": lambda rng: rng.random((30, 30)) * 0.02,
    "zero": lambda rng: np.zeros((9, 9)),
}


def opencv(mask: Array) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """All contour boxes and the largest contour's (half-open), by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    contours = cv2.findContours(mask.astype(np.uint8) * 255, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    rects = [cv2.boundingRect(contour) for contour in contours]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in rects]
    if not boxes:
        return [], []
    areas = [cv2.contourArea(contour) for contour in contours]
    return sorted(boxes), [list(boxes[int(np.argmax(areas))])]


def as_rows(boxes: Array) -> list[tuple[int, ...]]:
    return sorted(tuple(box) for box in boxes.astype(int).tolist())


@pytest.fixture(params=["basins", "tree"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the boxes, whichever the map would choose."""
    monkeypatch.setattr(basins, "MANY", {"basins": 10**9, "tree": -1}[request.param])
    name: str = request.param
    return name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_equal_opencv_s_contours_at_every_threshold(algorithm: str, family: str, seed: int) -> None:
    scores = FAMILIES[family](np.random.default_rng(seed))
    solid, holed = threshold_sweep(scores), threshold_sweep(scores, holes=True)
    values = (scores * 255).astype(np.uint8)
    for t in np.arange(0, 1, 0.03 if scores.size > 5000 else 0.01):
        _equal_at(t, values > int(t * values.max()), solid, holed)


def _equal_at(t: float, mask: Array, solid: ThresholdSweep, holed: ThresholdSweep) -> None:
    contours, largest = opencv(mask)
    assert as_rows(holed.boxes_at(t)) == contours
    assert solid.largest_at(t).tolist() == largest
    regions = skimage.measure.regionprops(skimage.measure.label(mask, connectivity=2))
    assert as_rows(solid.boxes_at(t)) == sorted((r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]) for r in regions)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lift", [0.0, 0.3])
def test_exact_boxes_equal_those_of_the_unquantised_mask(family: str, lift: float) -> None:
    scores = lift + (1 - lift) * FAMILIES[family](np.random.default_rng(3))
    solid = threshold_sweep(scores, exact=True)
    holed = threshold_sweep(scores, holes=True, exact=True)
    highest = scores.max() or 1.0
    # at scores themselves, between them, and where a byte would make no difference
    ts = [*np.arange(0, 1, 0.07), *np.random.default_rng(0).choice(scores.ravel() / highest, 9), 1 - 1e-9]
    for t in ts:
        if t < 1:
            _equal_at(t, scores > t * scores.max(), solid, holed)


def test_exact_sweeps_see_what_a_byte_hides() -> None:
    scores = [[0.5, 0.501, 0.5, 0.502, 1.0]]
    assert len(threshold_sweep(scores).boxes_at(0.5005)) == 1
    exact = threshold_sweep(scores, exact=True)
    assert as_rows(exact.boxes_at(0.5005)) == [(1, 0, 2, 1), (3, 0, 5, 1)]
    assert exact.maximum == 4
    assert exact.boxes_at(np.nextafter(1, 0)).tolist() == [[4, 0, 5, 1]]
    # all of it below the lowest score
    assert exact.boxes_at(0.1).tolist() == [[0, 0, 5, 1]]


small = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 5))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small, st.randoms(use_true_random=False))
def test_every_small_map_equals_opencv(algorithm: str, values: Array, random: Any) -> None:
    # below the byte the order of the scores is arbitrary
    scores = np.array([[(v + 0.9 * random.random()) / 255 for v in row] for row in values])
    holed = threshold_sweep(scores, holes=True)
    np.testing.assert_array_equal(holed.values, values)
    for level in range(values.max()):
        contours, largest = opencv(values > level)
        t = (level + 0.5) / values.max()
        assert as_rows(holed.boxes_at(t)) == contours
        assert holed.largest_at(t).tolist() == largest


@settings(max_examples=50, deadline=None)
@given(small)
def test_filled_map_thresholds_to_filled_masks(values: Array) -> None:
    filled = fill_holes(values, 255)
    for level in range(6):
        np.testing.assert_array_equal(filled > level, ndimage.binary_fill_holes(values > level))


@pytest.mark.parametrize("family", ["cam14", "noise", "sparse", "zero", "low"])
@pytest.mark.parametrize(("edge", "clip"), [(0, False), (1, True), (1, False)])
@pytest.mark.parametrize("exact", [False, True])
def test_best_iou_is_the_best_over_the_boxes_there(family: str, edge: int, clip: bool, exact: bool) -> None:
    scores = FAMILIES[family](np.random.default_rng(5))
    height, width = scores.shape
    truth = np.array([[3, 4, width - 5, height // 2], [0, 0, 9, 9]])
    ts = np.arange(0, 1, 0.05)
    sweep = threshold_sweep(scores, holes=True, exact=exact)
    for boxes_at, by_level in (
        (sweep.boxes_at, sweep.best_iou(truth, edge, clip)),
        (sweep.largest_at, sweep.largest_iou(truth, edge, clip)),
    ):
        expected = []
        for t in ts:
            boxes = boxes_at(t)
            if clip:
                boxes[:, 2:] = np.minimum(boxes[:, 2:], [width - 1, height - 1])
            expected.append(iou(boxes, truth, edge).max(initial=0.0))
        assert sweep.at(by_level, ts).tolist() == expected
    assert not sweep.best_iou(np.zeros((0, 4))).any()


def test_levels_are_the_benchmark_s() -> None:
    ts = np.arange(0, 1, 0.001)
    for maximum in (0, 1, 100, 254, 255):
        assert levels(ts, maximum).tolist() == [int(t * np.uint8(maximum)) for t in ts]


@pytest.mark.parametrize("scores", [[[0.0, 2.0]], [[0.0, np.nan]], [[-0.1, 1.0]], [0.5], np.zeros((0, 3))])
def test_a_map_that_is_no_score_map_is_refused(scores: Any) -> None:
    with pytest.raises(MapError, match="threshold sweep"):
        threshold_sweep(scores)


@pytest.mark.parametrize("t", [-0.1, 1.0, np.nan])
def test_thresholds_outside_are_refused(t: float) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        threshold_sweep(np.eye(3)).boxes_at(t)


@needs_shared
def test_box_lists_of_the_wsol_benchmark() -> None:
    assert SHARED is not None
    folder = SHARED / "reference" / "wsol_boxes"
    arrays_, expected = np.load(folder / "inputs.npz"), json.loads((folder / "expected.json").read_text())
    entries = json.loads((folder / "inputs.json").read_text())["maps"]
    records = [(entries[r["map"]], r) for r in expected["box_lists"]]
    records += [({"array": r["array"], "index": None}, r) for r in expected["box_lists_nonsquare"]]
    compared = 0
    for entry, record in records:
        raw = arrays_[entry["array"]]
        raw = raw if entry["index"] is None else raw[entry["index"]]
        if raw.dtype == np.uint16:
            scores = raw / 65535.0
        elif raw.shape == (224, 224):
            scores = raw
        else:
            scores = resize_map(raw, (224, 224), "bicubic-opencv")
            scores = minmax(scores) if scores.min() < scores.max() else np.zeros((224, 224))
        limits = np.array([np.inf, np.inf, scores.shape[1] - 1, scores.shape[0] - 1])
        sweep = threshold_sweep(scores, holes=True)
        rows = zip(record["thresholds"], record["single"], record["multi"], strict=True)
        for t, single, multi in rows:
            empty = [(0, 0, 0, 0)] if not sweep.maximum else []
            assert (as_rows(np.minimum(sweep.boxes_at(t), limits)) or empty) == sorted(map(tuple, multi))
            found = as_rows(np.minimum(sweep.largest_at(t), limits)) or empty
            assert found == [tuple(np.ravel(single).tolist())]
            compared += len(multi)
    assert compared > 1000


def test_quantise_truncates() -> None:
    assert quantise([[0.999, 1.0, 0.57]]).tolist() == [[254, 255, 145]]


def test_warm_up_compiles_all_that_sweeps_need() -> None:
    warm_up()
    functions = (
        hills.quantised,
        hills.survey,
        hills.find_basins,
        basins.boxes_and_gaps,
        basins.fill_holes,
        basins.largest_boxes,
        tree.boxes_and_gaps,
        tree.fill_holes,
        tree.largest_boxes,
        batch._batch,
    )
    before = [len(function.signatures) for function in functions]  # type: ignore[attr-defined]
    assert min(before) >= 1
    rng = np.random.default_rng(0)
    frozen = _cam(rng, 28).T
    frozen.flags.writeable = False
    for scores in (_cam(rng, 7), rng.random((120, 120)), frozen, np.float32(frozen)):
        for exact in (False, True):
            sweep = threshold_sweep(scores, holes=True, exact=exact)
            sweep.best_iou([[0, 0, 4, 4]])
            sweep.largest_iou(np.array([[0, 0, 4, 4]]))
        best_ious(scores[None], [[]])
    # another map does not compile another version
    assert [len(function.signatures) for function in functions] == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("components", ["all", "largest"])
@pytest.mark.parametrize("holes", [False, True])
def test_a_batch_equals_sweeps_one_by_one(algorithm: str, components: Any, holes: bool) -> None:
    for family in ("cam14", "noise", "white", "steps", "zero", "row"):
        maps = np.stack([FAMILIES[family](np.random.default_rng(seed)) for seed in range(3)])
        truth = [np.zeros((0, 4)), [[1, 0, 20, 9]], np.array([[0, 0, 9, 9], [3, 4, 30, 25]])]
        options = {"edge": 1, "clip": True}
        best, maximum = best_ious(maps, truth, components=components, holes=holes, **options)
        for scores, boxes, row, top in zip(maps, truth, best, maximum, strict=True):
            sweep = threshold_sweep(scores, holes=holes)
            own = sweep.best_iou if components == "all" else sweep.largest_iou
            by_level = own(boxes, **options)
            assert top == sweep.maximum
            assert row[: len(by_level)].tolist() == by_level.tolist()
            assert not row[len(by_level) :].any()
    assert best_ious(maps[:0], [])[0].shape == (0, 255)


def test_batches_that_cannot_be_swept_are_refused() -> None:
    maps = np.zeros((2, 3, 3))
    with pytest.raises(MapError, match="boxes for each of 2 maps"):
        best_ious(maps, [[]])
    with pytest.raises(MapError, match=r"\(N, H, W\)"):
        best_ious(maps[0], [])
    maps[1, 0, 0] = np.nan
    with pytest.raises(MapError, match="finite scores"):
        best_ious(maps, [[], []])
    with pytest.raises(ConfigError, match="components"):
        best_ious(maps, [[], []], components="some")  # type: ignore[arg-type]


def test_sweeps_of_many_threads_do_not_share_room() -> None:
    maps = [_cam(np.random.default_rng(seed), 14) for seed in range(40)]

    def boxes(scores: Array) -> tuple[list[Any], list[Any]]:
        sweep = threshold_sweep(scores, holes=True)
        return [part.tolist() for part in sweep.nodes], sweep.largest.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(boxes, maps)) == [boxes(scores) for scores in maps]
