from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsod.boxes import iou
from wsod.errors import MapError

corners = arrays(np.int64, (3, 4), elements=st.integers(0, 12))


@given(corners, corners, st.sampled_from([0, 1]))
def test_iou_counts_pixels(a: np.ndarray, b: np.ndarray, edge: int) -> None:
    a = np.concatenate([np.minimum(a[:, :2], a[:, 2:]), np.maximum(a[:, :2], a[:, 2:])], 1)
    b = np.concatenate([np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], 1)
    got = iou(a, b, edge)
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            masks = np.zeros((2, 14, 14), bool)
            for mask, (x0, y0, x1, y1) in zip(masks, (first, second), strict=True):
                mask[y0 : y1 + edge, x0 : x1 + edge] = True
            union = (masks[0] | masks[1]).sum()
            assert got[i, j] == ((masks[0] & masks[1]).sum() / union if union else 0.0)


def test_iou_shapes_and_errors() -> None:
    assert iou([0, 0, 1, 1], np.zeros((0, 4))).shape == (1, 0)
    assert iou([], [[0, 0, 1, 1]]).shape == (0, 1)
    with pytest.raises(MapError, match="a: expected boxes"):
        iou([[0, 0, 1]], [[0, 0, 1, 1]])
