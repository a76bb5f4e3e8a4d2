"""result.json: versions, migration, and what is refused before anything prints it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsod import evaluate
from wsod.errors import DataError
from wsod.report.formats import format_results
from wsod.results import Result

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
    "rows of words": (edit("rows", value=["a"]), "rows, config and provenance"),
    "rows are a table": (edit("rows", value={"a": 1}), "rows, config and provenance"),
    "scores of numbers": (edit("rows", 0, "scores", value={"a": 1}), "rows, config and provenance"),
    "a value of words": (edit(*SCORE, "value", value="high"), "a number belongs"),
    "a value of true": (edit(*SCORE, "value", value=True), "a number belongs"),
    "half a count": (edit(*SCORE, "count", value=1.5), "a int belongs"),
    "class intervals of words": (edit(*SCORE, "class_intervals", value={"a": ["b", 1]}), "a number belongs"),
    "class intervals in a list": (edit(*SCORE, "class_intervals", value=[[0, 1]]), "a dict belongs"),
    "interval of words": (edit(*SCORE, "interval", value=["a", "b"]), "a number belongs"),
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


@pytest.mark.parametrize("line", ["[]", "{", '{"maps": 1}', "[" * 100_000, '{"a": 1}', "null"])
def test_wrong_cases_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"cases\.jsonl: expected a line of JSON a case"):
        Result.load(write(tmp_path, FIRST, line + "\n"))
