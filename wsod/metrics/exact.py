"""Sums of floats that do not depend on the order: shards, threads and ranks add up to the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["exact", "mean_of_exact"]

Exact = NDArray[np.object_]
# the smallest float64 is 2^-1074: every finite one is a whole number of these
_BITS = 1074


def exact(values: Any) -> Any:
    """Finite floats as Python integers in units of 2^-1074, which add without rounding.

    Args:
        values: a float, or an array of them.

    Returns:
        An integer, or an array (dtype object) of the same shape.

    >>> sum(map(exact, [1e16, 1.0, -1e16])) == exact(1.0)
    True
    """
    return _exact(np.asarray(values, np.float64))


def mean_of_exact(total: Any, count: Any) -> Any:
    """Sums of `exact` terms over counts, rounded once.

    >>> mean_of_exact(exact(0.1) + exact(0.2), 2)
    0.15000000000000002
    """
    mean = _divide(total, count)
    return mean.astype(np.float64) if isinstance(mean, np.ndarray) else mean


def _units(value: float) -> int:
    numerator, power = float(value).as_integer_ratio()
    return numerator << (_BITS + 1 - power.bit_length())


def _ratio(total: int, count: int) -> float:
    return total / (int(count) << _BITS)


_exact = np.frompyfunc(_units, 1, 1)
_divide = np.frompyfunc(_ratio, 2, 1)
