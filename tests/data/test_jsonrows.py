"""Lists of a JSON file, an object at a time: what `json.loads` finds, wherever a chunk ends."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data.files import coco_content, write_coco
from wsod.data import jsonrows
from wsod.data.coco import Coco
from wsod.data.jsonrows import find_rows
from wsod.errors import DataError

COLUMNS = {"a": ("id",), "b": ("id", "n")}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(-(2**62), 2**62)
rows = st.fixed_dictionaries({"id": numbers, "n": numbers}, optional={"x": values, "é": values})
documents = st.fixed_dictionaries(
    {"a": st.lists(rows, max_size=4), "b": st.lists(rows, max_size=4)}, optional={"info": values}
)


def found(path: Path, chunk: int) -> dict[str, list[Any]] | None:
    before, jsonrows.CHUNK = jsonrows.CHUNK, chunk
    try:
        tables = find_rows(path, COLUMNS)
    finally:
        jsonrows.CHUNK = before
    if tables is None:
        return None
    for name, columns in COLUMNS.items():
        for key in columns:
            read = tables[name].read(range(len(tables[name])))
            assert tables[name].columns[key].tolist() == [row[key] for row in read]
    return {name: table.read(range(len(table))) for name, table in tables.items()}


@given(
    document=documents,
    indent=st.none() | st.integers(0, 2),
    ascii=st.booleans(),
    chunk=st.integers(1, 40),
)
@example(document={"a": [], "b": [], "info": 0.5}, indent=None, ascii=False, chunk=1)
@example(document={"a": [], "b": [], "info": 1e-9}, indent=None, ascii=False, chunk=1)
def test_rows_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, document: Any, indent: int | None, ascii: bool, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.json"
    text = json.dumps(document, indent=indent, ensure_ascii=ascii)
    path.write_text(text, "utf-8")
    assert found(path, chunk) == {name: document[name] for name in COLUMNS}


@given(text=st.text('{}[]",:a1.e-\\ \n', max_size=30), chunk=st.integers(1, 8))
def test_no_json_is_never_rows(tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.json"
    for content in (text, f'{{"a": [], "b": []{text}}}', f'{{"a": [{text}], "b": []}}'):
        path.write_text(content, "utf-8")
        rows = found(path, chunk)
        try:
            whole = json.loads(content)
        except ValueError:
            assert rows is None
        else:
            assert rows is None or rows == {name: whole[name] for name in COLUMNS}


def test_both_ways_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_coco(tmp_path, coco_content())
    lazily = list(Coco(path))
    monkeypatch.setattr("wsod.data.coco.find_rows", lambda path, columns: None)
    at_once = list(Coco(path))
    assert len(lazily[0].boxes) == 3
    for a, b in zip(lazily, at_once, strict=True):
        assert (a.image_id, a.size, a.boxes.tolist(), a.labels.tolist()) == (
            *(b.image_id, b.size, b.boxes.tolist(), b.labels.tolist()),
        )


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path, _ = write_coco(tmp_path, coco_content())
    dataset = Coco(path)
    path.write_text(path.read_text()[:-9] + " " * 9)
    path.write_bytes(b" " + path.read_bytes())
    with pytest.raises(DataError, match="expected the file as it was when it was opened, got another"):
        list(dataset)


def test_memory_is_a_fraction_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonrows, "CHUNK", 1 << 14)
    path = tmp_path / "a.json"
    polygon = [round(0.37 * n, 2) for n in range(80)]
    row = {"n": 1, "segmentation": [polygon], "bbox": [1.5, 2.5, 3.5, 4.5]}
    path.write_text(json.dumps({"a": [], "b": [{"id": n, **row} for n in range(1000)]}))
    tracemalloc.start()
    assert find_rows(path, COLUMNS) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 4e5
    assert peak < path.stat().st_size / 2
