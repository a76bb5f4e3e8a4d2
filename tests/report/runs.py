"""Results made by hand, with every kind of value a table has to print."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsod.config import plain
from wsod.protocols import load_protocol
from wsod.results import Case, Result, Row

EVIL = "<script>alert('x')</script>"
METRICS = ("pointing_game", "energy_pointing_game", "max_box_acc", "max_box_acc_v2", "mask_iou")


def score(value: float | None, **more: Any) -> dict[str, Any]:
    interval = None if value is None else (max(0.0, value - 0.1), min(1.0, value + 0.1))
    known = {"value": value, "interval": interval, "count": 40, "skipped": 0, "best_threshold": None}
    return {**known, "per_class": None, "strata": None, "curve": None, "thresholds": None, **more}


def result(
    maps: tuple[str, ...] = ("gradcam", "center"),
    *,
    metrics: tuple[str, ...] = METRICS,
    protocol: str = "default",
    classes: tuple[str, ...] = ("cat", "dog"),
    images: int = 20,
    seed: int = 0,
    **config: Any,
) -> Result:
    """Random case scores of two classes an image, and the rows they add up to."""
    rng = np.random.default_rng(seed)
    rows, cases = [], []
    for name in maps:
        values = rng.random((images * len(classes), len(metrics)))
        for i, some in enumerate(values):
            image, label = f"image_{i // len(classes):03d}", classes[i % len(classes)]
            cases.append(Case(name, image, label, dict(zip(metrics, some.tolist(), strict=True)), 0.1))
        scores = {}
        for metric, mean in zip(metrics, values.mean(0).tolist(), strict=True):
            per_class = {c: float(values[k :: len(classes)].mean()) for k, c in enumerate(classes)}
            strata = {size: {"value": mean, "count": images} for size in ("small", "medium", "large")}
            curve = np.linspace(mean, 0, 11).tolist()
            scores[metric] = score(mean, per_class=per_class, strata=strata, count=len(values))
            if metric in ("max_box_acc", "mask_iou"):
                scores[metric] |= {"curve": curve, "thresholds": np.linspace(0, 1, 11).tolist()}
                scores[metric]["best_threshold"] = 0.2
        rows.append(Row(name, ("image labels", "threshold: evaluated split"), scores))
    known = {"data": "shapes", "split": "test", "labels": "truth", "config": protocol, "maps": list(maps)}
    about = {**known, "classes": len(classes), "protocol": plain(load_protocol(protocol)), **config}
    return Result(about, {"command": "wsod evaluate", "versions": {}}, tuple(rows), (), tuple(cases))
