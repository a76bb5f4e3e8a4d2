"""Loading of the reference vectors (../shared/reference) as the project's own types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import SHARED
from wsod.data.masks import SemanticMasks
from wsod.types import AttentionMaps, Sample


class SemanticTruth(SemanticMasks):
    """Masks from one array of classes: 0 = background, label + 1, -1 = void."""

    def __init__(self, classes: np.ndarray) -> None:
        self.classes = classes

    def semantic(self) -> np.ndarray:
        return self.classes


class PairOfMasks:
    """One class's pixels and ignored pixels, as `Masks`."""

    def __init__(self, foreground: np.ndarray, ignore: np.ndarray) -> None:
        self.foreground, self.ignored = foreground, ignore

    def of(self, label: int) -> np.ndarray:
        return self.foreground

    def ignore(self, label: int) -> np.ndarray:
        return self.ignored

    def semantic(self) -> np.ndarray:
        return np.where(self.ignored, -1, self.foreground.astype(np.int64))


def folder(name: str) -> Path:
    assert SHARED is not None
    return SHARED / "reference" / name


@lru_cache(maxsize=16)
def group(name: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """`(inputs.json, inputs.npz, expected.json)` of one group."""
    place = folder(name)
    inputs = json.loads((place / "inputs.json").read_text())
    arrays = np.load(place / "inputs.npz") if (place / "inputs.npz").exists() else {}
    return inputs, arrays, json.loads((place / "expected.json").read_text())


def maps_of(
    sample: Sample, values: np.ndarray, labels: Sequence[int] = (0,), ranking: Sequence[int] | None = None
) -> AttentionMaps:
    values = values if values.ndim == 3 else values[None]
    order = None if ranking is None else np.asarray(ranking)
    return AttentionMaps(sample.image_id, sample.size, np.asarray(labels), values, order)
