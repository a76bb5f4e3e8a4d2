"""A run on disk: result.json (scores, configuration, provenance) and cases.jsonl (a line a case)."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from wsod.errors import DataError
from wsod.output import remove, write_text
from wsod.strata import SIZES
from wsod.textfiles import read_text
from wsod.types import Score

__all__ = ["Case", "Interval", "Result", "Row", "class_names", "provenance", "score_fields"]

Interval = tuple[float, float]

SCHEMA = 3
LARGEST = 1e300
"""Numbers from this on are refused: a larger one, times a hundred, is none that could be printed."""
MOST_CLASSES = 1_000_000
FIELDS = ("interval", "best_threshold", "per_class", "strata", "given_predicted", "thresholds", "curve")


@dataclass(frozen=True)
class Case:
    """One (image, label) of one row, with each metric's own score of it.

    Args:
        maps: the row.
        image: its id.
        label: class name.
        scores: by metric.
        area: share of the image covered by the label's boxes; None without a box.
        rank: the label's place in the classifier's ranking, 1 = predicted; None where unknown.
        predicted: whether the label is predicted right (`wsod.strata.CaseFacts`); None where unknown.
    """

    maps: str
    image: str
    label: str
    scores: Mapping[str, float]
    area: float | None = None
    rank: int | None = None
    predicted: bool | None = None


@dataclass(frozen=True)
class Row:
    """The scores of one kind of maps.

    Args:
        maps: the map method's name, or the folder the maps were read from.
        supervision: everything those maps and scores were made with, beyond images.
        scores: by metric, the fields of `score_fields`.
    """

    maps: str
    supervision: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """All rows of a run, with what is needed to make them again."""

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: tuple[Row, ...]
    skipped: tuple[Mapping[str, str], ...] = ()
    cases: tuple[Case, ...] = field(default=(), repr=False)

    def save(self, directory: Path) -> None:
        """Write result.json and cases.jsonl, each whole or not at all; result.json last."""
        remove(directory / "result.json")  # an earlier run's would not belong to these cases
        lines = (json.dumps(_jsonable(vars(case)), ensure_ascii=False) + "\n" for case in self.cases)
        write_text(directory / "cases.jsonl", "".join(lines), held=True)
        table = {"schema": SCHEMA, **{name: getattr(self, name) for name in ("config", "provenance")}}
        table["rows"] = [vars(row) for row in self.rows]
        table["skipped"] = list(self.skipped)
        text = json.dumps(_jsonable(table), ensure_ascii=False, indent=1) + "\n"
        write_text(directory / "result.json", text, held=True)

    @classmethod
    def load(cls, directory: Path) -> Result:
        """Read a run back. One of an older schema is read as if written today.

        Raises:
            DataError: naming the file, where it is missing, broken or of a newer schema.
        """
        path = directory / "result.json" if directory.is_dir() else directory
        try:
            table = json.loads(read_text(path))
        except FileNotFoundError:
            hint = f"Write one with: wsod evaluate --maps center --out {directory}"
            if any((directory / name).is_dir() for name in (".maps", "maps")):
                hint = "The run is not finished: run its command again, it goes on."
            raise DataError(path, "a result.json of `wsod evaluate --out`", "no such file", hint) from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(path, "a result.json written by `wsod evaluate --out`", error) from error
        schema = table.get("schema") if isinstance(table, dict) else type(table).__name__
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            newer = type(schema) is int and schema > SCHEMA
            hint = "It was written by a newer version; install that one." if newer else ""
            raise DataError(path, f"schema 1 to {SCHEMA}", repr(schema)[:60], hint)
        try:
            for old in range(schema, SCHEMA):
                _MIGRATIONS[old](table)
            rows = tuple(_row(row) for row in table["rows"])
            config, about = _config(table["config"]), _is(dict, table["provenance"])
            skipped = tuple(_is(dict, one) for one in _is(list, table["skipped"]))
            for one in skipped:
                _is(str, one["error"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            got = f"{type(error).__name__} {error}"[:200]
            raise DataError(path, "rows, config and provenance", got) from error
        return cls(config, about, rows, skipped, _cases(path.parent / "cases.jsonl"))


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} where a {kind.__name__} belongs")
    return value


def _number(value: Any) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    if value is not None and not good:
        raise TypeError(f"{str(value)[:40]!r} where a number belongs")


def _interval(value: Any) -> None:
    if value is not None:
        low, high = _is(list, value)
        _number(low)
        _number(high)


def _part(value: Any) -> None:
    """A stratum: the score of some of the cases."""
    if value is not None:
        _number(_is(dict, value)["value"])
        _is(int, value["count"])
        _interval(value.get("interval"))


def _config(table: Any) -> dict[str, Any]:
    """The options, those checked that tables and comparisons read."""
    found: dict[str, Any] = _is(dict, table)
    for name in ("data", "split", "config"):
        _is(str, found[name])
    for name in _is(list, found.get("maps", [])):
        _is(str, name)
    _is(int, found.get("limit", 0))
    if not 0 <= _is(int, found.get("classes", 0)) <= MOST_CLASSES:
        raise ValueError(f"{found['classes']} classes")
    return found


def _row(table: Any) -> Row:
    """A row of result.json, its types checked: what prints it trusts them."""
    scores = _is(dict, _is(dict, table)["scores"])
    for score in scores.values():
        _number(_is(dict, score)["value"])
        for name in ("count", "skipped"):
            _is(int, score[name])
        for name in (*FIELDS, "class_intervals"):
            score.setdefault(name, None)
        _interval(score["interval"])
        for name, check in (("per_class", _number), ("class_intervals", _interval), ("strata", _part)):
            for value in _is(dict, score[name] or {}).values():
                check(value)
        if score["strata"] and (list(score["strata"]) != list(SIZES) or None in score["strata"].values()):
            raise ValueError(f"strata {', '.join(score['strata'])[:40]}")
        _part(score["given_predicted"])
        for name in ("best_threshold", "curve"):
            for value in score[name].values() if isinstance(score[name], dict) else [score[name]]:
                for number in _is(list, value or []) if name == "curve" else [value]:
                    _number(number)
        for number in _is(list, score["thresholds"] or []):
            _number(number)
        for name in ("data", "split") if score.get("threshold_from") else ():
            _is(str, _is(dict, score["threshold_from"])[name])
    used = tuple(_is(str, word) for word in _is(list, table["supervision"]))
    return Row(_is(str, table["maps"]), used, scores)


def _cases(path: Path) -> tuple[Case, ...]:
    if not path.exists():
        return ()
    try:
        return tuple(_case(json.loads(line)) for line in read_text(path).split("\n") if line)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(path, "a line of JSON a case", str(error)[:200]) from error


def _case(table: Any) -> Case:
    case = Case(**table)
    for text in (case.maps, case.image, case.label):
        _is(str, text)
    for value in (*_is(dict, case.scores).values(), case.area, case.rank):
        _number(value)
    if case.predicted is not None:
        _is(bool, case.predicted)
    # null is NaN: a case without that score
    return replace(case, scores={name: value for name, value in case.scores.items() if value is not None})


def _from_1(table: dict[str, Any]) -> None:
    """Schema 1 left out what a metric had nothing for, and did not always count what was left out."""
    for row in table["rows"]:
        for score in row["scores"].values():
            for name in FIELDS:
                score.setdefault(name, None)
            score.setdefault("skipped", 0)


def _from_2(table: dict[str, Any]) -> None:
    """Schema 2 knew intervals of whole scores only."""
    for row in table["rows"]:
        for score in row["scores"].values():
            score.setdefault("class_intervals", None)
            for part in (*(score["strata"] or {}).values(), score["given_predicted"]):
                if part is not None:
                    part.setdefault("interval", None)


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], None]] = {1: _from_1, 2: _from_2}
"""By schema: what makes a table of it one of the next."""


def class_names(classes: Iterable[str]) -> tuple[str, ...]:
    """What classes are called in results: two of one name (ImageNet has two cranes) by their numbers too.

    >>> class_names(["crane", "dog", "crane"])
    ('crane (0)', 'dog', 'crane (2)')
    """
    names = tuple(classes)
    count = Counter(names)
    return tuple(f"{name} ({label})" if count[name] > 1 else name for label, name in enumerate(names))


def score_fields(
    score: Score,
    classes: Iterable[str],
    interval: Interval | None = None,
    class_intervals: Mapping[int, Interval | None] | None = None,
    strata: Mapping[str, Any] | None = None,
    given_predicted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A Score as the fields of result.json; classes by name.

    Args:
        score: of a metric.
        classes: names by label.
        interval: its 95 % interval, or None.
        class_intervals: that of each class's value, by label; None where the metric has none.
        strata: `{"small": {"value", "count", "interval"}, …}`, or None for a metric without cases.
        given_predicted: likewise over the cases whose class is predicted right, or None.
    """
    names = class_names(classes)
    per_class, intervals = (
        None if some is None else {names[label]: value for label, value in some.items()}
        for some in (score.per_class, class_intervals)
    )
    return {
        "value": score.value,
        **score.extra,
        "interval": interval,
        "count": score.count,
        "skipped": score.skipped,
        "best_threshold": score.best_threshold,
        "per_class": per_class,
        "class_intervals": intervals,
        "strata": strata,
        "given_predicted": given_predicted,
        "thresholds": score.thresholds,
        "curve": score.curve,
    }


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("wsod-atcon", "torch", "torchvision", "numpy", "numba", "scikit-image", "pycocotools"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def _git() -> str | None:
    """Commit of the checkout this code runs from, with + where it was changed; None outside one."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():
        return None
    call = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude", "*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(**known: Any) -> dict[str, Any]:
    """Versions, commit and command line, with whatever else is known (seed, device, weight hash)."""
    program = Path(sys.argv[0])
    # of `python -m wsod` it is the package's __main__.py
    name = program.parent.name if program.name == "__main__.py" else program.name
    command = shlex.join([name, *sys.argv[1:]])
    return {"versions": _versions(), "git": _git(), "command": command, **known}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    # JSON has no NaN: a score of nothing is null
    return None if isinstance(value, float) and not math.isfinite(value) else value
