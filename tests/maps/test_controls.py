from __future__ import annotations

import numpy as np

from wsod.maps import METHODS
from wsod.maps.controls import center


def test_center_is_the_benchmarks_gaussian_whatever_the_image():
    values = METHODS["center"].control((375, 500))
    assert values.shape == (224, 224)
    assert np.unravel_index(values.argmax(), values.shape) == (112, 112)
    assert values[112, 112] == 1
    assert values[112, 112 + 56] == np.exp(-0.5)
    assert np.array_equal(values, center((10, 10)))
    narrow = center((10, 10), sigma=10, side=101)
    assert narrow.shape == (101, 101)
    assert narrow.sum() < values.sum()
