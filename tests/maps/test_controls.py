from __future__ import annotations

import numpy as np
import pytest

from wsod.maps import METHODS


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
