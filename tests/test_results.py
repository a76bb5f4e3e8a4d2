"""result.json: versions, migration, and what is refused before anything prints it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsod import evaluate
from wsod.errors import DataError
from wsod.report.formats import format_results
from wsod.results import Result, provenance

# as the first version wrote it, abridged
FIRST = {
    "schema": 1,
    "config": {"data": "shapes", "split": "test", "maps": ["center"], "config": "default"},
    "provenance": {
        "versions": {"wsod-atcon": "0.1.0"},
        "git": None,
        "command": "wsod evaluate --maps center",
    },
    "rows": [
        {
            "maps": "center",
            "supervision": ["threshold: evaluated split"],
            "scores": {
                "pointing_game": {
                    "value": 0.5,
                    "count": 4,
                    "interval": [0.25, 0.75],
                    "per_class": {"disc": 0.5},
                },
                "mask_iou": {"value": None, "count": 0, "best_threshold": None, "per_class": None},
            },
        }
    ],
    "skipped": [{"image": "a", "error": "a: expected a whole image, got half."}],
}
CASE = {"maps": "center", "image": "a", "label": "disc", "scores": {"pointing_game": 1.0}}


def write(folder: Path, table: object, cases: str = "") -> Path:
    (folder / "result.json").write_text(json.dumps(table))
    (folder / "cases.jsonl").write_text(cases)
    return folder


def test_the_first_schema_is_read_as_if_written_today(tmp_path: Path) -> None:
    old = Result.load(write(tmp_path, FIRST, json.dumps(CASE) + "\n"))
    assert old.rows[0].scores["pointing_game"]["value"] == 0.5
    assert old.cases[0].area is None
    new = evaluate("center", limit=2, out=tmp_path / "new", metrics=["pointing_game"])
    fields = set(new.rows[0].scores["pointing_game"])
    for score in old.rows[0].scores.values():
        assert fields <= set(score)
    assert "center" in format_results({"old": old, "new": Result.load(tmp_path / "new")}, "markdown")
    old.save(tmp_path)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["schema"] == json.loads((tmp_path / "new/result.json").read_text())["schema"] == 3
    assert Result.load(tmp_path) == old


def edit(*path: Any, value: Any) -> Callable[[Any], None]:
    def apply(table: Any) -> None:
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = value

    return apply


SCORE = ("rows", 0, "scores", "pointing_game")
BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "newer": (edit("schema", value=4), "schema 1 to 3, got 4. It was written by a newer version"),
    "schema of words": (edit("schema", value="1"), "schema 1 to 3"),
    "true": (edit("schema", value=True), "schema 1 to 3"),
    "a limit of words": (edit("config", "limit", value="3"), "rows, config and provenance"),
    "rows of words": (edit("rows", value=["a"]), "rows, config and provenance"),
    "rows are a table": (edit("rows", value={"a": 1}), "rows, config and provenance"),
    "scores of numbers": (edit("rows", 0, "scores", value={"a": 1}), "rows, config and provenance"),
    "a value of words": (edit(*SCORE, "value", value="high"), "a number belongs"),
    "a value of true": (edit(*SCORE, "value", value=True), "a number belongs"),
    "half a count": (edit(*SCORE, "count", value=1.5), "a int belongs"),
    "class intervals of words": (edit(*SCORE, "class_intervals", value={"a": ["b", 1]}), "a number belongs"),
    "class intervals in a list": (edit(*SCORE, "class_intervals", value=[[0, 1]]), "a dict belongs"),
    "interval of words": (edit(*SCORE, "interval", value=["a", "b"]), "a number belongs"),
    "half an interval": (edit(*SCORE, "interval", value=[0.1]), "rows, config and provenance"),
    "a value beyond floats": (edit(*SCORE, "value", value=10**400), "a number belongs"),
    "a value of infinity": (edit(*SCORE, "value", value=float("inf")), "a number belongs"),
    "strata of words": (edit(*SCORE, "strata", value="small"), "rows, config and provenance"),
    "other strata": (edit(*SCORE, "strata", value={"tiny": None}), "strata tiny"),
    "a stratum of nothing": (
        edit(*SCORE, "strata", value=dict.fromkeys(("small", "medium", "large"))),
        "strata small, medium, large",
    ),
    "a stratum without count": (edit(*SCORE, "given_predicted", value={"value": 1}), "KeyError 'count'"),
    "a threshold of words": (edit(*SCORE, "best_threshold", value={"0.5": "a"}), "a number belongs"),
    "a curve of words": (edit(*SCORE, "curve", value=["a"]), "a number belongs"),
    "curves of numbers": (edit(*SCORE, "curve", value={"0.5": 1}), "a list belongs"),
    "thresholds of lists": (edit(*SCORE, "thresholds", value=[[0]]), "a number belongs"),
    "a threshold from nowhere": (edit(*SCORE, "threshold_from", value={"data": "a"}), "KeyError 'split'"),
    "no data": (edit("config", value={"split": "test", "config": "default"}), "KeyError 'data'"),
    "a trillion classes": (edit("config", "classes", value=10**12), "1000000000000 classes"),
    "classes of words": (edit("config", "classes", value="8"), "a int belongs"),
    "skipped without error": (edit("skipped", value=[{"image": "a"}]), "KeyError 'error'"),
    "classes in a list": (edit(*SCORE, "per_class", value=[1]), "a dict belongs"),
    "config of nothing": (edit("config", value=None), "a dict belongs"),
    "supervision of letters": (edit("rows", 0, "supervision", value="boxes"), "a list belongs"),
    "skipped of words": (edit("skipped", value=["a"]), "a dict belongs"),
    "a row without name": (edit("rows", 0, "maps", value=None), "a str belongs"),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_types_are_named(tmp_path: Path, kind: str) -> None:
    table, (damage, text) = copy.deepcopy(FIRST), BAD[kind]
    damage(table)
    with pytest.raises(DataError) as caught:
        Result.load(write(tmp_path, table))
    assert str(caught.value).startswith(f"{tmp_path}/result.json: expected")
    assert text in str(caught.value)


def case(**changed: Any) -> str:
    return json.dumps({**CASE, **changed})


LINES = [
    "[]", "{", '{"maps": 1}', "[" * 100_000, '{"a": 1}', "null",
    case(image=3), case(scores=[1]), case(scores={"a": "b"}), case(scores={"a": 10**400}),
    case(area="large"), case(rank=[1]), case(predicted=1),
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_wrong_cases_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"cases\.jsonl: expected a line of JSON a case"):
        Result.load(write(tmp_path, FIRST, line + "\n"))


def test_a_case_without_a_score_has_none(tmp_path: Path) -> None:
    (read,) = Result.load(write(tmp_path, FIRST, case(scores={"a": None, "b": 1}) + "\n")).cases
    assert read.scores == {"b": 1}


@pytest.mark.parametrize("name", ["result.json", "cases.jsonl"])
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    write(tmp_path, FIRST)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: expected .* got no ordinary file"):
        Result.load(tmp_path)


@pytest.mark.parametrize(
    ("program", "said"),
    [("/x/wsod/__main__.py", "wsod"), ("/x/bin/wsod", "wsod"), ("my/study.py", "study.py")],
)
def test_the_recorded_command_can_be_run_again(
    program: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program, "evaluate", "--out", "a b"])
    assert provenance()["command"] == f"{said} evaluate --out 'a b'"
