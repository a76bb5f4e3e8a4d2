"""Errors, registries, configuration binding and the types every stage shares."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from wsod.config import bind, dump_toml, merge, parse_settings, read_toml, write_text
from wsod.errors import ConfigError, DataError, MapError, OutputError, WsodError
from wsod.registry import Registry
from wsod.types import AttentionMaps, Sample


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    count: int
    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    values: tuple[float, ...] = ()
    pair: tuple[int, int] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    table: dict[str, int] = field(default_factory=dict)
    flag: bool = False


def test_error_is_one_line_and_survives_pickling() -> None:
    error = DataError("a.xml", "a\nsize", "none", "Write it.")
    assert str(error) == "a.xml: expected a size, got none. Write it."
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError
    assert str(again) == str(error)


def test_registry_suggests_the_nearest_name() -> None:
    registry = Registry("map method", {"gradcam": 1, "layercam": 2})
    assert registry["gradcam"] == 1
    with pytest.raises(ConfigError, match=r"map method: expected a known name, got 'gradcamm'.*'gradcam'"):
        registry["gradcamm"]


def test_bind_converts_and_nests() -> None:
    table = {"count": 3, "path": "x/y", "values": [1, 2.5], "inner": {"rate": 1}, "table": {"k": 4}}
    outer = bind(Outer, table, "here")
    assert outer == Outer(3, "a", Path("x/y"), (1.0, 2.5), (1, 2), Inner(1.0), {"k": 4})
    assert isinstance(outer.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "'count'"),
        ({"count": "3"}, "type int"),
        ({"count": True}, "type int"),
        ({"count": 1.5}, "type int"),
        ({"count": 1, "mode": "c"}, "one of 'a', 'b'"),
        ({"count": 1, "values": 3}, "a list"),
        ({"count": 1, "values": ["x"]}, "type float"),
        ({"count": 1, "pair": [1]}, "2 values"),
        ({"count": 1, "inner": 3}, "a table"),
        ({"count": 1, "inner": {"rates": 1}}, "Did you mean 'rate'"),
        ({"count": 1, "table": {"k": "v"}}, "type int"),
        ({"count": 1, "flag": 1}, "type bool"),
        ({"count": 1, "inner": {"name": 5}}, "type str"),
        ({"cuont": 1}, "Did you mean 'count'"),
    ],
)
def test_bind_names_what_is_wrong(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bind(Outer, table, "recipe.toml")
    assert str(caught.value).startswith("recipe.toml")


def test_settings_are_toml_values_or_words() -> None:
    assert parse_settings(["a.b=1e-5", "a.c=word", "d=[1, 2]"]) == {
        "a": {"b": 1e-5, "c": "word"},
        "d": [1, 2],
    }
    with pytest.raises(ConfigError, match="key=value"):
        parse_settings(["novalue"])


def test_toml_round_trip(tmp_path: Path) -> None:
    outer = Outer(2, path=Path("p"), values=(1.0,), inner=Inner(0.5, "n"))
    file = tmp_path / "c.toml"
    write_text(file, dump_toml(outer))
    assert bind(Outer, read_toml(file), file) == outer
    file.write_text("a = [")
    with pytest.raises(ConfigError, match=r"c\.toml: expected a readable TOML file"):
        read_toml(file)


def test_merge_keeps_what_is_not_overridden() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}}) == {"a": {"b": 5, "c": 2}, "d": 3}


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    write_text(file, "old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"f: .*disk full"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def sample(**over: object) -> Sample:
    fields: dict[str, object] = {
        "image_id": "i",
        "image_path": None,
        "size": (10, 20),
        "boxes": [[0, 0, 5, 5], [3, 3, 20, 10]],
        "labels": [1, 2],
    }
    return Sample(**{**fields, **over})  # type: ignore[arg-type]


def test_sample_selects_boxes() -> None:
    one = sample(labels=[1, 1], difficult=[True, False], crowd=[False, True])
    assert one.classes == (1,)
    assert one.boxes_of(1).shape == (2, 4)
    assert one.boxes_of(1, difficult=False).tolist() == [[3, 3, 20, 10]]
    assert one.boxes_of(1, crowd=False).tolist() == [[0, 0, 5, 5]]
    assert one.boxes_of(7).shape == (0, 4)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"boxes": [[0, 0, 21, 5]], "labels": [0]}, "inside 20x10"),
        ({"boxes": [[5, 0, 5, 5]], "labels": [0]}, "non-empty"),
        ({"boxes": [[np.nan, 0, 5, 5]], "labels": [0]}, "finite"),
        ({"labels": [1]}, "a label for each of 2 boxes"),
        ({"labels": [1, -1]}, "at least 0"),
        ({"boxes": [[1, 2, 3]]}, "shape"),
        ({"difficult": [True]}, "difficult for each"),
        ({"size": (0, 5)}, "at least 1x1"),
    ],
)
def test_sample_refuses(over: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(**over)


def test_maps_refuse_nan_shapes_and_duplicates() -> None:
    with pytest.raises(MapError, match="i, label 4: expected a finite"):
        AttentionMaps("i", (4, 4), [4], np.full((1, 2, 2), np.nan))
    with pytest.raises(MapError, match="shape"):
        AttentionMaps("i", (4, 4), [4, 5], np.zeros((1, 2, 2)))
    with pytest.raises(MapError, match="one map a label"):
        AttentionMaps("i", (4, 4), [4, 4], np.zeros((2, 2, 2)))
    assert AttentionMaps("i", (4, 4), [4], np.zeros((1, 2, 2), int)).values.dtype == np.float32


def test_every_error_is_a_wsod_error() -> None:
    import wsod.errors as module

    for name in module.__all__:
        assert issubclass(getattr(module, name), WsodError)
