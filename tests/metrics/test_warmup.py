"""After warming up, no metric compiles anything; and equal maps in a row are swept once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.metrics.test_twins import CLASSES, TWINS, count
from wsod.boxes import basins, batch, hills, sweep, tree
from wsod.metrics import METRICS, box_hits, histograms
from wsod.metrics.box_hits import sweep_of
from wsod.metrics.warmup import warm_up
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps

AS_IT_IS = MapProcessing(normalise="none")


def test_metrics_compile_nothing_after_warming_up() -> None:
    warm_up()
    functions = [
        function
        for module in (sweep, basins, batch, hills, tree, histograms)
        for function in vars(module).values()
        if hasattr(function, "signatures")
    ]
    assert len(functions) > 15
    before = [len(function.signatures) for function in functions]
    for name, (_, options) in TWINS.items():
        count(METRICS[name](classes=CLASSES, **options))
    assert [len(function.signatures) for function in functions] == before


def maps(values: np.ndarray, image_id: str = "a") -> AttentionMaps:
    return AttentionMaps(image_id, values.shape[1:], np.arange(len(values)), values)


def test_equal_maps_in_a_row_are_swept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []
    original = box_hits.threshold_sweep
    monkeypatch.setattr(box_hits, "threshold_sweep", lambda *a, **k: swept.append(1) or original(*a, **k))
    monkeypatch.setattr(box_hits._local, "last", None, raising=False)
    one = np.random.default_rng(0).random((9, 11))
    both = maps(np.stack([one, one]))
    first = sweep_of(both, 0, AS_IT_IS, False)
    assert sweep_of(both, 1, AS_IT_IS, False) is first
    assert sweep_of(maps(one[None].copy(), "b"), 0, AS_IT_IS, False) is first
    assert len(swept) == 1
    # in any other respect different
    other = one.copy()
    other[0, 0] = np.nextafter(one[0, 0], 1)
    for values, holes, exact in (
        (other, False, False),
        (one, True, False),
        (one, False, True),
        (one[:5], False, True),
    ):
        fresh = sweep_of(maps(values[None]), 0, AS_IT_IS, holes, exact)
        assert (fresh.holes, fresh.exact) == (holes, exact)
        assert fresh.is_of(values)
        np.testing.assert_array_equal(fresh.values, original(values, exact=exact).values)
    assert len(swept) == 5
