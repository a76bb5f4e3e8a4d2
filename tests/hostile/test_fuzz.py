"""Random bytes and random values over every parser and the boxes: a WsodError, or a sound answer."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.data.files import coco_content, write_coco
from tests.fuzz.parsers import PARSERS, Target, seeds
from wsod import heatmap_to_boxes
from wsod.data.coco import Coco
from wsod.errors import WsodError
from wsod.metrics import METRICS
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample

pytestmark = pytest.mark.slow

EXAMPLES = 60


@pytest.fixture(scope="module")
def targets() -> dict[str, tuple[Target, list[bytes]]]:
    made = {}
    for name, make in PARSERS.items():
        root = Path(tempfile.mkdtemp(prefix=f"parser-{name}-"))
        (root / "seeds").mkdir()
        (root / "root").mkdir()
        made[name] = make(root / "root"), seeds(name, root / "seeds")
    return made


@pytest.mark.parametrize("name", PARSERS)
def test_sound_input_is_read(targets: dict[str, tuple[Target, list[bytes]]], name: str) -> None:
    target, sound = targets[name]
    ended = []
    for data in sound:
        try:
            target(data)
        except WsodError as error:
            ended.append(str(error))
    # some seeds lack a part or two, so that there is something to find
    assert len(ended) < len(sound), ended


@pytest.mark.parametrize("name", PARSERS)
def test_changed_input_ends_in_an_error_of_ours(
    targets: dict[str, tuple[Target, list[bytes]]], name: str
) -> None:
    target, sound = targets[name]

    @settings(max_examples=EXAMPLES, deadline=10_000)
    @given(st.data())
    def run(draw: st.DataObject) -> None:
        data = bytearray(draw.draw(st.sampled_from([b"", *sound])))
        for _ in range(draw.draw(st.integers(1, 4))):
            place = draw.draw(st.integers(0, len(data)))
            data[place : place + draw.draw(st.integers(0, 8))] = draw.draw(st.binary(max_size=8))
        with contextlib.suppress(WsodError):
            target(bytes(data))

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=10_000)
@given(value=JSON, data=st.data())
def test_any_json_anywhere_in_coco(
    tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    content = coco_content()
    place: Any = content
    while isinstance(place, dict | list) and place and data.draw(st.integers(0, 5)):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    path, _ = write_coco(tmp_path_factory.getbasetemp() / "coco", json.dumps(content))
    with contextlib.suppress(WsodError):
        for sample in Coco(path):
            assert sample.boxes.shape == (len(sample.labels), 4)
            if sample.masks is not None and np.prod(sample.size) < 1_000_000:
                assert sample.masks.semantic().shape == sample.size


MAPS = hnp.arrays(
    st.sampled_from([np.float64, np.float32]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0]),
)
FINITE = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1e150, 1e150) | st.sampled_from([0.0, 1.0, 1e150, -1e150, 5e-324]),
)


@settings(max_examples=200, deadline=None)
@given(heatmap=MAPS | FINITE, rule=st.sampled_from(["max", "mean_std", "otsu", "percentile", "absolute"]))
def test_any_heatmap_has_boxes_inside_it_or_is_refused(heatmap: Any, rule: Any) -> None:
    try:
        boxes, scores = heatmap_to_boxes(heatmap, rule=rule)
    except WsodError:
        assert not np.isfinite(heatmap).all() or np.abs(heatmap).max() > 1e150
        return
    height, width = heatmap.shape
    assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= (width, height)) & (boxes[:, :2] < boxes[:, 2:])).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert len(boxes) == 0 or np.ptp(heatmap) > 0


def needs(name: str) -> set[str]:
    return set(METRICS[name](processing=MapProcessing(), classes=3).needs)


SIMPLE = [name for name in METRICS if not needs(name) & {"classifier", "rows", "masks"}]


@pytest.mark.parametrize("name", SIMPLE)
def test_any_map_scores_between_0_and_1_or_not_at_all(name: str) -> None:
    @settings(max_examples=EXAMPLES // 2, deadline=None)
    @given(values=FINITE, box=st.tuples(*[st.integers(0, 11)] * 4))
    def run(values: Any, box: tuple[int, int, int, int]) -> None:
        x0, y0, dx, dy = box
        corners = [min(x0, 11), min(y0, 9), min(x0 + dx + 1, 12), min(y0 + dy + 1, 10)]
        metric = METRICS[name](processing=MapProcessing(), classes=3)
        sample = Sample("i", None, (10, 12), np.array([corners]), np.array([1]))
        maps = AttentionMaps("i", (10, 12), [1], values[None], np.array([1, 0, 2]))
        metric.update(maps, sample)
        score = metric.compute()
        assert np.isnan(score.value) or -1e-12 <= score.value <= 1 + 1e-12

    run()
