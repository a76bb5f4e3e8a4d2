"""Scores by size and given a right prediction, against loops over cases.jsonl and pixels."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsod import evaluate
from wsod.data import open_dataset
from wsod.metrics import METRICS
from wsod.results import Result
from wsod.strata import CaseFacts, given_predicted, size_of, size_strata, union_area
from wsod.types import AttentionMaps, Sample

SIDE = 24
BOXES = st.lists(
    st.tuples(*[st.integers(0, SIDE - 1)] * 4).map(
        lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1]
    ),
    min_size=1,
    max_size=6,
)


@given(BOXES)
@settings(max_examples=60, deadline=None)
def test_union_area_is_the_number_of_pixels(boxes: list[list[int]]) -> None:
    pixels = np.zeros((SIDE, SIDE), bool)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = True
    assert union_area(np.array(boxes, float)) == pixels.sum()
    assert union_area(np.array(boxes, float) / 4) == pixels.sum() / 16


def naive(lines: list[Any], metric: str, keep: Any) -> tuple[float, int]:
    """The mean of the cases kept, the way the metric averages."""
    scores = defaultdict(list)
    for line in lines:
        if metric in line["scores"] and keep(line):
            scores[line["label"] if METRICS[metric].average == "classes" else ""].append(
                line["scores"][metric]
            )
    if not scores:
        return np.nan, 0
    return float(np.mean([np.mean(own) for own in scores.values()])), sum(map(len, scores.values()))


def test_strata_of_a_run(tmp_path: Path) -> None:
    names = ["max_box_acc", "pointing_game", "mask_iou", "corloc", "corloc_image", "miou", "max_box_acc_v2"]
    result = evaluate("center", limit=60, metrics=names, out=tmp_path)
    dataset = open_dataset("shapes")
    samples = {sample.image_id: sample for sample in (dataset[i] for i in range(60))}
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    for line in lines:
        sample = samples[line["image"]]
        covered = np.zeros(sample.size, bool)
        for x0, y0, x1, y1 in sample.boxes_of(dataset.classes.index(line["label"])).astype(int):
            covered[y0:y1, x0:x1] = True
        line["twin"] = covered.mean()
        assert line["area"] == pytest.approx(line["twin"], abs=1e-12)
        assert (line["rank"], line["predicted"]) == (None, None)
    limits = {"small": (0, 1 / 16), "medium": (1 / 16, 1 / 4), "large": (1 / 4, 1.1)}
    for name in names:
        score = result.rows[0].scores[name]
        assert score["given_predicted"] is None
        if name == "miou":
            assert score["strata"] is None
            continue
        assert list(score["strata"]) == ["small", "medium", "large"]
        for size, (low, high) in limits.items():

            def kept(line: Any, low: float = low, high: float = high, name: str = name) -> bool:
                alone = name != "corloc_image" or len(samples[line["image"]].classes) == 1
                return bool(low <= line["twin"] < high and alone)

            value, count = naive(lines, name, kept)
            got = score["strata"][size]
            assert got["count"] == count
            assert got["value"] == pytest.approx(value, abs=1e-9, nan_ok=True)
        if name != "corloc_image":
            assert sum(part["count"] for part in score["strata"].values()) == score["count"]
    again = Result.load(tmp_path)
    assert [case.area for case in again.cases] == [case.area for case in result.cases]


def test_given_that_the_class_is_predicted(tmp_path: Path) -> None:
    """Maps with rankings, some right and some wrong, of one class and of several."""
    from wsod.store import MapStore

    dataset = open_dataset("shapes")
    store, rng = MapStore(tmp_path / "maps", len(dataset.classes)), np.random.default_rng(0)
    rankings = {}
    for index in range(40):
        sample = dataset[index]
        ranking = rankings[sample.image_id] = rng.permutation(len(dataset.classes))
        values = rng.random((len(sample.classes), 5, 5))
        store.write(AttentionMaps(sample.image_id, sample.size, np.array(sample.classes), values, ranking))
    store.finish({})
    names = ["pointing_game", "mask_iou", "top1_loc"]
    result = evaluate(tmp_path / "maps", limit=40, metrics=names, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "cases.jsonl").read_text().splitlines()]
    classes = {dataset[i].image_id: dataset[i].classes for i in range(40)}
    for line in lines:
        label, ranking = dataset.classes.index(line["label"]), list(rankings[line["image"]])
        assert line["rank"] == ranking.index(label) + 1
        assert line["predicted"] == (label in ranking[: len(classes[line["image"]])])
    for name in names:
        value, count = naive(
            lines,
            name,
            lambda x, n=name: x["predicted"] and (n != "top1_loc" or len(classes[x["image"]]) == 1),
        )
        got = result.rows[0].scores[name]["given_predicted"]
        assert got["count"] == count
        assert 0 < count < len(lines)
        assert got["value"] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_facts_of_odd_cases() -> None:
    boxes, size = [[0, 0, 8, 8], [0, 0, 16, 16]], (16, 16)
    sample = Sample("a", None, size, boxes, [1, 2], crowd=[False, True])
    maps = AttentionMaps("a", size, [1, 2, 3], np.zeros((3, 1, 1)), [0, 2, -1, 1])
    assert CaseFacts.of(maps, sample, 1) == CaseFacts(0.25, 4, False, 2)
    assert CaseFacts.of(maps, sample, 2) == CaseFacts(None, 2, True, 2)  # a crowd has no size
    assert CaseFacts.of(maps, sample, 3) == CaseFacts(
        None, None, None, 2
    )  # nor has a class that is not there
    facts = [CaseFacts(None, None, None, 1)]
    assert size_strata([1.0], ["a"], [0], facts, "cases") is None
    assert given_predicted([1.0], ["a"], [0], facts, "cases") is None
    wrong = given_predicted([1.0], ["a"], [0], [CaseFacts(0.5, 2, False, 1)], "cases")
    assert wrong is not None
    assert (wrong["count"], np.isnan(wrong["value"])) == (0, True)
    assert [size_of(area) for area in (0.0, 1 / 16, 0.2, 1 / 4, 1.0)] == [
        "small",
        *["medium"] * 2,
        *["large"] * 2,
    ]
