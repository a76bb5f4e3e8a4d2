"""Comparing runs: what is paired with what, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsod import compare, evaluate
from wsod.errors import ConfigError, DataError
from wsod.results import Result


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Controls on a few generated scenes: one run of three rows, one of another draw."""
    folder = tmp_path_factory.mktemp("runs")
    evaluate(["center", "random", "sobel"], data="shapes:count=30", out=folder / "a")
    evaluate(["center", "random:seed=3"], data="shapes:count=30", out=folder / "b")
    return folder


def edited(folder: Path, target: Path, **config: Any) -> Path:
    result = Result.load(folder)
    replace(result, config={**result.config, **config}).save(target)
    return target


def test_rows_of_one_run_are_compared_with_its_first(runs: Path) -> None:
    found = compare([runs / "a"])
    assert {(one.first, one.second) for one in found.differences} == {
        (f"{runs}/a: center", f"{runs}/a: random"),
        (f"{runs}/a: center", f"{runs}/a: sobel"),
    }
    table = json.loads((runs / "a" / "result.json").read_text())
    values = {row["maps"]: row["scores"] for row in table["rows"]}
    for one in found.differences:
        metric = one.metric
        assert one.before == pytest.approx(values["center"][metric]["value"])
        assert one.after == pytest.approx(values[one.second.split(": ")[1]][metric]["value"])
        assert one.interval is not None
        assert one.interval[0] <= one.difference <= one.interval[1]
        assert one.adjusted is not None
        assert one.p_value is not None
        assert one.p_value <= one.adjusted <= 1
        assert one.raised + one.lowered == len(one.changes) <= one.cases
        sizes = [abs(change.after - change.before) for change in one.changes]
        assert sizes == sorted(sizes, reverse=True)
        total = sum(change.after - change.before for change in one.changes)
        if metric != "pointing_game":  # the mean of all others is over cases
            assert total / one.cases == pytest.approx(one.difference)


def test_rows_of_two_runs_are_paired_by_maps_or_as_said(runs: Path) -> None:
    found = compare([runs / "a", runs / "b"])
    assert {(one.first[-6:], one.second[-6:]) for one in found.differences} == {("center", "center")}
    assert all(one.difference == 0 and one.p_value is None and not one.changes for one in found.differences)
    found = compare([f"{runs}/a:random", f"{runs}/b:random:seed=3"], metrics=["energy_pointing_game"])
    (one,) = found.differences
    assert one.second.endswith("random:seed=3")
    assert one.raised
    assert one.lowered


def test_folders_of_maps_are_paired_by_their_last_name(runs: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        result = Result.load(runs / "a")
        rows = tuple(replace(row, maps=f"{name}/{row.maps}") for row in result.rows)
        cases = tuple(replace(case, maps=f"{name}/{case.maps}") for case in result.cases)
        replace(result, rows=rows, cases=cases).save(tmp_path / name)
    found = compare([tmp_path / "x", tmp_path / "y"], metrics=["max_box_acc"])
    assert [one.second.split("/")[-1] for one in found.differences] == ["center", "random", "sobel"]


def test_runs_of_other_data_or_protocols_are_refused_with_what_differs(runs: Path, tmp_path: Path) -> None:
    other = edited(runs / "a", tmp_path / "data", data="shapes:count=31", split="train")
    with pytest.raises(ConfigError, match=r"data = shapes:count=30 / shapes:count=31; split = test / train"):
        compare([runs / "a", other])
    moved = edited(runs / "a", tmp_path / "moved", data="shapes:count=30,seed=0")
    with pytest.raises(ConfigError, match="--same-data"):
        compare([runs / "a", moved])
    assert compare([runs / "a", moved], same_data=True).differences
    protocol = json.loads(json.dumps(Result.load(runs / "a").config["protocol"]))
    protocol["maps"]["frame"] = 224
    protocol["metrics"]["pointing_game"] = {"tolerance": 3.0}
    strict = edited(runs / "a", tmp_path / "strict", protocol=protocol)
    with pytest.raises(ConfigError, match=r"maps.frame = 0 / 224; .*pointing_game.tolerance = 15.0 / 3.0"):
        compare([runs / "a", strict])
    # a default that is written out is no other protocol
    protocol["maps"]["frame"] = 0
    protocol["metrics"]["pointing_game"] = {"tolerance": 15.0}
    assert compare([runs / "a", edited(runs / "a", tmp_path / "same", protocol=protocol)]).differences


def test_cases_that_one_side_lacks_are_said(runs: Path, tmp_path: Path) -> None:
    result = Result.load(runs / "a")
    some = tuple(case for case in result.cases if case.image != result.cases[0].image)
    replace(result, cases=some).save(tmp_path)
    found = compare([f"{runs}/a:random", f"{tmp_path}:random"])
    assert all(one.images == 29 for one in found.differences if one.metric == "energy_pointing_game")
    assert any("only one side" in note for note in found.notes)


def test_values_without_cases_are_compared_only_of_the_same_images(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "shapes:count=6,size=48", "metrics": ["miou", "pointing_game"]}
    whole = evaluate(["center", "random"], out=tmp_path / "whole", **options)
    evaluate(["center", "random"], out=tmp_path / "some", limit=4, **options)
    evaluate(["center", "random"], out=tmp_path / "again", **options)
    fault = ({"image": whole.cases[0].image, "error": "broken"},)
    replace(whole, skipped=fault).save(tmp_path / "skipped")
    scores = {**whole.rows[0].scores, "miou": {**whole.rows[0].scores["miou"], "count": 5}}
    rows = (replace(whole.rows[0], scores=scores), *whole.rows[1:])
    replace(whole, rows=rows).save(tmp_path / "counted")
    for name, lost in (("some", 2), ("skipped", 2), ("counted", 1), ("again", 0)):
        found = compare([tmp_path / "whole", tmp_path / name])
        assert [one.metric for one in found.differences].count("miou") == 2 - lost
        assert [one.metric for one in found.differences].count("pointing_game") == 2
        told = [note for note in found.notes if "miou is of other images in the two rows: not comp" in note]
        assert len(told) == lost
    with pytest.raises(ConfigError, match="expected a metric that can be compared, got miou is of other"):
        compare([tmp_path / "whole", tmp_path / "some"], metrics=["miou"])


def test_thresholds_from_elsewhere_are_said(tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": ["max_box_acc", "pointing_game"]}
    evaluate(["center"], data="shapes:count=4,size=48", split="val", out=tmp_path / "val", **options)
    options["data"] = "shapes:count=6,size=48"
    evaluate(["center"], out=tmp_path / "own", **options)
    for name in ("one", "two"):
        evaluate(["center"], out=tmp_path / name, threshold_from=tmp_path / "val", **options)
    own, one, two = (tmp_path / name for name in ("own", "one", "two"))
    told = f"threshold of the run itself ({own}), from shapes:count=4,size=48, split val ({one})"
    assert compare([own, one]).notes == (f"max_box_acc: {told}",)
    assert compare([one, two]).notes == ()
    told = f"threshold from shapes:count=4,size=48, split val ({one}), of the run itself ({own})"
    assert compare([one, own]).notes == (f"max_box_acc: {told}",)


def test_resampling_within_classes_needs_one_class_an_image(runs: Path) -> None:
    with pytest.raises(ConfigError, match="one stratum an image"):
        compare([runs / "a"], resample="class")


def test_swapping_the_sides_turns_the_sign(runs: Path) -> None:
    there = compare([f"{runs}/a:center", f"{runs}/a:sobel"]).differences
    back = compare([f"{runs}/a:sobel", f"{runs}/a:center"]).differences
    for one, other in zip(there, back, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        assert one.p_value == other.p_value
        assert one.interval is not None
        assert other.interval is not None
        assert np.allclose(one.interval, [-other.interval[1], -other.interval[0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a:centre"], "It has center, random, sobel"),
        (["a:center"], "expected two rows to compare"),
        (["nowhere"], "nowhere"),
        (["a:sobel", "b"], "RUN:MAPS"),
    ],
)
def test_wrong_rows_are_answered(runs: Path, arguments: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        compare([f"{runs}/{name}" for name in arguments])


def test_runs_without_a_score_of_a_case_are_told_from_runs_without_cases(tmp_path: Path) -> None:
    evaluate(["center", "random"], data="shapes:count=3,size=48", metrics=["miou", "pxap"], out=tmp_path)
    for run in (tmp_path, tmp_path / "result.json"):
        with pytest.raises(ConfigError, match="got only miou, pxap, without any"):
            compare([run])
    (tmp_path / "cases.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"cases\.jsonl, got none\. Evaluate again with --out"):
        compare([tmp_path])


def test_unknown_metrics_are_answered(runs: Path) -> None:
    with pytest.raises(ConfigError, match="pxap"):
        compare([runs / "a"], metrics=["pxap"])
