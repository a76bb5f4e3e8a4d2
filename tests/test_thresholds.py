"""Thresholds taken from another run: the score there, the words beside it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.metrics.test_contract import counted
from wsod import evaluate
from wsod.cli import main
from wsod.config import dump_toml
from wsod.errors import ConfigError, DataError
from wsod.metrics import METRICS
from wsod.results import Result
from wsod.store import MapStore
from wsod.thresholds import ChosenThreshold, ThresholdSource
from wsod.types import AttentionMaps

SWEPT = ["max_box_acc", "max_box_acc_v2", "mask_iou", "miou"]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noisy maps of two splits, whose best thresholds differ."""
    from wsod.data import open_dataset

    folders = {}
    for split, power in (("val", 1.0), ("test", 3.0)):
        dataset = open_dataset("shapes", split)
        folder = folders[split] = tmp_path_factory.mktemp("maps") / "noisy"
        store, rng = MapStore(folder, len(dataset.classes)), np.random.default_rng(0)
        for index in range(12):
            sample = dataset[index]
            assert sample.masks is not None
            labels = np.array(sample.classes)
            values = [(sample.masks.of(k) + rng.random(sample.size)) ** power for k in sample.classes]
            store.write(AttentionMaps(sample.image_id, sample.size, labels, np.stack(values)))
        store.finish({})
    return folders


@pytest.fixture(scope="module")
def runs(maps: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for split, folder in maps.items():
        found[split] = tmp_path_factory.mktemp("run") / split
        evaluate(folder, split=split, limit=12, metrics=SWEPT, out=found[split])
    return found


def scores(result: Result) -> Any:
    return result.rows[0].scores


def test_the_score_is_the_curve_at_the_other_run_s_threshold(
    maps: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    there, tuned = Result.load(runs["val"]), Result.load(runs["test"])
    moved = evaluate(
        maps["test"], split="test", limit=12, metrics=SWEPT, threshold_from=runs["val"], out=tmp_path
    )
    assert moved.rows[0].supervision == ("unknown", "threshold: from shapes, val")
    changed = 0
    for name in SWEPT:
        taken, best, ours = scores(there)[name]["best_threshold"], scores(tuned)[name], scores(moved)[name]
        assert ours["best_threshold"] == taken
        assert (ours["curve"], ours["thresholds"]) == (best["curve"], best["thresholds"])
        assert ours["threshold_from"] == {"data": "shapes", "split": "val"}
        curves = best["curve"] if isinstance(taken, dict) else {"": best["curve"]}
        wanted = taken if isinstance(taken, dict) else {"": taken}
        twin = np.mean([curves[key][best["thresholds"].index(t)] for key, t in wanted.items()])
        assert ours["value"] == pytest.approx(twin, abs=1e-12)
        assert ours["value"] <= best["value"]
        changed += ours["value"] < best["value"]
        own = [case.scores[name] for case in moved.cases if name in case.scores]
        assert name == "miou" or np.mean(own) == pytest.approx(twin, abs=1e-6)
    assert changed >= 2
    assert scores(Result.load(tmp_path)) == json.loads(json.dumps(scores(moved)))


def test_it_is_the_metric_with_that_single_threshold(
    maps: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    """The slow twin: a protocol whose only threshold is the other run's, with no curve at all."""
    names = ["max_box_acc", "mask_iou", "miou"]
    best = {name: scores(Result.load(runs["val"]))[name]["best_threshold"] for name in names}
    protocol = {"description": "fixed", "metrics": {n: {"thresholds": [t]} for n, t in best.items()}}
    (tmp_path / "fixed.toml").write_text(dump_toml(protocol))
    fixed = evaluate(maps["test"], split="test", limit=12, config=str(tmp_path / "fixed.toml"))
    moved = evaluate(maps["test"], split="test", limit=12, metrics=names, threshold_from=runs["val"])
    assert fixed.rows[0].supervision == ("unknown",)
    for name in names:
        for key in ("value", "per_class", "count", "interval", "best_threshold"):
            got, wanted = scores(moved)[name][key], scores(fixed)[name][key]
            assert got == (pytest.approx(wanted, abs=1e-12) if wanted is not None else None)


def test_the_evaluated_split_stays_the_evaluated_split(
    maps: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"limit": 6, "metrics": ["max_box_acc"]}
    evaluate(maps["test"], split="test", threshold_from=runs["val"], out=tmp_path, **options)
    # a threshold that was only passed on has not become that split's
    passed_on = evaluate(maps["val"], split="val", threshold_from=tmp_path, **options)
    assert passed_on.rows[0].supervision == ("unknown", "threshold: evaluated split")
    spelled = evaluate(
        maps["val"], data="shapes:seed=0", split="val", threshold_from=runs["val"] / "result.json", **options
    )
    assert spelled.rows[0].supervision == ("unknown", "threshold: evaluated split")
    same = evaluate(maps["val"], split="val", threshold_from=runs["val"] / "result.json", **options)
    assert same.rows[0].supervision == ("unknown", "threshold: evaluated split")


def test_rows_are_matched_by_name(tmp_path: Path) -> None:
    metric = METRICS["max_box_acc"](classes=8)
    evaluate(["center"], limit=3, metrics=["max_box_acc"], out=tmp_path / "one")
    source = ThresholdSource(tmp_path / "one")
    assert isinstance(source.find("anything", metric), ChosenThreshold)  # type: ignore[arg-type]
    result = Result.load(tmp_path / "one")
    row = result.rows[0]
    two = replace(result, rows=(replace(row, maps="a"), replace(row, maps="b")))
    two.save(tmp_path / "two")
    assert ThresholdSource(tmp_path / "two").find("b", metric)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a row 'center', or a single row, got a, b"):
        ThresholdSource(tmp_path / "two").find("center", metric)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": {"frame": 64}}, "max_box_acc computed as here, got processing.frame = 0 there, 64 here"),
        (
            {"metrics": {"max_box_acc": {"iou": 0.3}}},
            "max_box_acc computed as here, got iou = 0.5 there, 0.3 here",
        ),
        ({"metrics": {"mask_iou": {}}}, "a run with mask_iou, got max_box_acc"),
    ],
)
def test_another_protocol_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    evaluate("center", limit=2, metrics=["max_box_acc"], out=tmp_path / "run")
    table = {"description": "other", "metrics": {"max_box_acc": {}}, **changes}
    (tmp_path / "other.toml").write_text(dump_toml(table))
    with pytest.raises(ConfigError, match=message):
        evaluate("center", limit=2, config=str(tmp_path / "other.toml"), threshold_from=tmp_path / "run")
    # what is not swept takes nothing from the other run, and needs nothing there
    evaluate("center", limit=2, metrics=["pointing_game"], threshold_from=tmp_path / "run")


def test_refusals_are_one_line(tmp_path: Path) -> None:
    evaluate("center", limit=2, metrics=["pointing_game"], out=tmp_path / "run")
    arguments = ["evaluate", "--maps", "center", "--limit", "2", "--threshold-from"]
    for run, message in (("run", "expected a run with max_box_acc"), ("nowhere", "nowhere")):
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / run)])
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
    (tmp_path / "run" / "result.json").write_text(json.dumps({"schema": 1, "config": {}}))
    with pytest.raises(DataError, match=r"result\.json"):
        ThresholdSource(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("mask_iou", 0.123), ("mask_iou", {"0.3": 0.1}), ("max_box_acc_v2", 0.5), ("miou", 1.5)],
)
def test_a_threshold_that_is_none_of_the_metric_s_is_refused(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: threshold"):
        counted(name, [0, 1]).compute(wrong)  # type: ignore[call-arg]
